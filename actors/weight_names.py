"""Compares the names of a learner's weights with those of an engine's parameters, before any of them is loaded.

vLLM takes the weights that it knows and says nothing of the others, nor of a parameter that got none. It also joins some
weights into one parameter (`q_proj`, `k_proj` and `v_proj` into `qkv_proj`), which counts as loaded with the first of them.
"""

from collections.abc import Collection, Mapping, Sequence

from configs.errors import some

REMEDY = "the actor's model.path must name the model that the learner trains"


def require_same_names(
    parameters: Collection[str], packed: Mapping[str, Sequence[str]], weights: Collection[str]
) -> None:
    """Raises ValueError unless each weight belongs to a parameter and each parameter has all of its weights.

    Args:
        parameters: names of the engine's parameters, shared ones once.
        packed: which weights a joined parameter is made of, by the last parts of their modules' names; vLLM's
            `packed_modules_mapping`.
        weights: names of the learner's weights.
    """
    wanted = {name for parameter in parameters for name in _unpacked(parameter, packed)}
    if missing := sorted(wanted.difference(weights)):
        raise ValueError(f"the learner sent no weights for {some(missing)} of the engine's model: {REMEDY}")
    if unknown := sorted(set(weights).difference(wanted)):
        raise ValueError(f"the engine's model has no place for {some(unknown)} of the learner's: {REMEDY}")


def require_all_loaded(parameters: Collection[str], loaded: Collection[str] | None) -> None:
    """Raises ValueError where vLLM's loader, which returned `loaded`, gave a parameter nothing or does not say."""
    if loaded is None:
        raise ValueError("vLLM does not say which of the model's parameters it loaded")
    if untouched := sorted(set(parameters).difference(loaded)):
        raise ValueError(f"the engine loaded nothing into {some(untouched)}")


def _unpacked(parameter: str, packed: Mapping[str, Sequence[str]]) -> list[str]:
    parts = parameter.split(".")
    for position, part in enumerate(parts):
        if part in packed:
            return [".".join([*parts[:position], name, *parts[position + 1 :]]) for name in packed[part]]
    return [parameter]

"""What engine and learner compute in: where weights are bfloat16, a CPU may multiply float32 faster, or slower.

With AVX512-BF16 or AMX a bfloat16 product takes less than half as long as a float32 one, with AVX-512 alone somewhat longer,
and without it seven times as long. Float32 holds every bfloat16 weight exactly, so the choice changes what is rounded on the
way and nothing else. A short measurement tells; each role makes its own, and those of one machine come to the same choice.
"""

import time
from typing import TYPE_CHECKING

import structlog

from configs.schema import ModelConfig

if TYPE_CHECKING:
    import torch

log = structlog.get_logger()

MARGIN = 1.25
"""How many times as fast bfloat16 must be to be chosen: near 1 two roles' measurements could differ."""
ROUNDS = 5
ROWS, WIDTH = 256, 1024
"""Of the product that is timed: half a GFLOP."""


def compute_dtype(model: ModelConfig, *, on_cpu: bool) -> "torch.dtype":
    """The dtype that `model.compute_dtype` names.

    For `auto` it is that of the weights; for bfloat16 weights on a CPU both are measured, for well under a second.
    """
    import torch

    if model.compute_dtype != "auto":
        return getattr(torch, model.compute_dtype)
    if not on_cpu or model.dtype == "float32":
        return getattr(torch, model.dtype)
    speed = {dtype: round(_gflops(dtype), 1) for dtype in (torch.float32, torch.bfloat16)}
    chosen = torch.bfloat16 if speed[torch.bfloat16] > MARGIN * speed[torch.float32] else torch.float32
    log.info(
        "measured what to compute in",
        chosen=str(chosen).removeprefix("torch."),
        float32_gflops=speed[torch.float32],
        bfloat16_gflops=speed[torch.bfloat16],
    )
    return chosen


def _gflops(dtype: "torch.dtype") -> float:
    """Of the fastest of a few products: whatever else runs on the machine can only make one slower."""
    import torch

    rows, weight = torch.ones(ROWS, WIDTH, dtype=dtype), torch.ones(WIDTH, WIDTH, dtype=dtype)
    seconds = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        torch.nn.functional.linear(rows, weight)
        seconds.append(time.perf_counter() - started)
    return 2 * ROWS * WIDTH * WIDTH / min(seconds) / 1e9

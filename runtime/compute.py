"""Chooses what engine and learner compute in: where weights are bfloat16, a CPU may multiply float32 faster, or slower.

With AVX512-BF16 a bfloat16 product takes less than half as long as a float32 one, with AVX-512 alone somewhat longer, and
without it seven times as long. Float32 holds every bfloat16 weight exactly, so the choice changes only what is rounded
on the way. Each role makes a short measurement of its own. Other work on the machine can change its result, so a
learner that is resumed takes the choice from its checkpoint (`learner.checkpoints.in_checkpoint_dtype`).
"""

import os
import time
from typing import Literal, cast, get_args

import structlog

from configs.errors import UserError
from configs.schema import ModelConfig

log = structlog.get_logger()

Dtype = Literal["bfloat16", "float32"]

SWITCH = "ZEROTIR_CPU_DTYPE"
"""Environment variable that stands for the measurement's outcome: with it a machine computes as one with another processor
does. The tests are run as on either kind that way."""
MARGIN = 1.25
"""How many times as fast bfloat16 must be to be chosen: near 1 two roles' measurements could differ."""
ROUNDS = 5
ROWS, WIDTH = 256, 1024
"""Shape of the product that is timed: half a GFLOP."""


def compute_dtype(model: ModelConfig, *, on_cpu: bool) -> Dtype:
    """Returns the name of the dtype that `model.compute_dtype` means.

    For `auto` it is that of the weights; for bfloat16 weights on a CPU both are measured, for well under a second, unless
    `SWITCH` is set. Raises UserError where that names no dtype.
    """
    if model.compute_dtype != "auto":
        return model.compute_dtype
    if not on_cpu or model.dtype == "float32":
        return model.dtype
    if said := os.environ.get(SWITCH):
        if said not in get_args(Dtype):
            raise UserError(f"{SWITCH} is {said!r}: bfloat16 and float32 are possible, without it a CPU is measured")
        log.info(f"what to compute in was not measured: {SWITCH} is set", chosen=said)
        return cast(Dtype, said)
    float32, bfloat16 = _gflops("float32"), _gflops("bfloat16")
    chosen: Dtype = "bfloat16" if bfloat16 > MARGIN * float32 else "float32"
    log.info(
        "measured what to compute in",
        chosen=chosen,
        float32_gflops=round(float32, 1),
        bfloat16_gflops=round(bfloat16, 1),
    )
    return chosen


def _gflops(name: str) -> float:
    """Measures the fastest of a few products: whatever else runs on the machine can only make one slower."""
    import torch

    dtype: torch.dtype = getattr(torch, name)
    rows, weight = torch.ones(ROWS, WIDTH, dtype=dtype), torch.ones(WIDTH, WIDTH, dtype=dtype)
    seconds = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        torch.nn.functional.linear(rows, weight)
        seconds.append(time.perf_counter() - started)
    return 2 * ROWS * WIDTH * WIDTH / min(seconds) / 1e9

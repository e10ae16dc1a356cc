"""Each role's share of the machine's cores and GPUs, so that engine and learner do not take them from each other.

The learner gets its cores to itself; the engines' compute threads get the others, one share an actor and one for the
evaluator, if there is one. On a machine with GPUs each engine gets `actor.engine.tensor_parallel` of its own and the learner
one. What else a role does (the bus, detokenising, jails) is light and may run anywhere. A role that is started by hand takes
what its own affinity and environment allow.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from configs.errors import UserError
from configs.schema import RunConfig


class DevicesError(UserError):
    """The machine has too few GPUs for what `zerotir up` is to start."""


@dataclass(frozen=True)
class Share:
    """What one process is given."""

    affinity: frozenset[int]
    environment: dict[str, str] = field(default_factory=dict)


def visible_gpus() -> list[str]:
    """Names of the GPUs that this process may use, as `CUDA_VISIBLE_DEVICES` takes them."""
    if not any(Path("/dev").glob("nvidia[0-9]*")):
        return []  # Importing PyTorch to ask takes seconds.
    import torch

    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    count = torch.cuda.device_count()
    return named[:count] or [str(number) for number in range(count)]


def shares(config: RunConfig, gpus: Sequence[str]) -> dict[str, Share]:
    """Shares of `learner`, `actor-0`, `actor-1` ... and `evaluator`; roles that are not named may use every core.

    Raises DevicesError where there are GPUs, but fewer than the roles need.
    """
    cores = sorted(os.sched_getaffinity(0))
    every = frozenset(cores)
    engines = [f"actor-{number}" for number in range(config.launch.actors)]
    if config.launch.evaluator:
        engines.append("evaluator")
    mine = config.launch.learner_threads or max(1, len(cores) // 2)
    # On a machine with fewer cores than engines they have to share.
    for_engines = cores[: len(cores) - mine] or cores
    for_learner = cores[-mine:]
    devices = _devices(config, engines, gpus)
    result = {
        "learner": Share(
            frozenset(for_learner), {"OMP_NUM_THREADS": str(len(for_learner)), **devices.get("learner", {})}
        ),
    }
    each = max(1, len(for_engines) // len(engines))
    for number, name in enumerate(engines):
        start = (number * each) % len(for_engines)
        engine = for_engines[start : start + each]
        result[name] = Share(every, {"ZEROTIR_ENGINE_CORES": ",".join(map(str, engine)), **devices.get(name, {})})
    return result


def _devices(config: RunConfig, engines: Sequence[str], gpus: Sequence[str]) -> dict[str, dict[str, str]]:
    """The environment that leaves each role its GPUs; nothing where there are none."""
    if not gpus:
        return {}
    each = config.actor.engine.tensor_parallel
    needed = len(engines) * each + 1
    if len(gpus) < needed:
        raise DevicesError(
            f"{len(engines)} {'engine' if len(engines) == 1 else 'engines'} of {each} and a learner need {needed} GPUs, "
            f"here are {len(gpus)}: lower launch.actors or actor.engine.tensor_parallel, or start the roles by hand where "
            "there are more (docs/running.md)"
        )
    given = {name: gpus[number * each : (number + 1) * each] for number, name in enumerate(engines)}
    given["learner"] = gpus[-1:]
    return {name: {"CUDA_VISIBLE_DEVICES": ",".join(own)} for name, own in given.items()}

"""Each role's share of the machine's cores and GPUs, so that engine and learner do not take them from each other.

Without GPUs the engines' compute threads get half of the cores, one share an actor and one for the evaluator, if there is
one. The learner has the other half. While the engines have nothing to do it computes on their cores too: it runs at a lower
priority, so an engine that has work takes its cores back at once. The learner's number of threads never changes, since sums
depend on it; threads sleep at a barrier instead of spinning. `launch.learner_threads` divides the cores strictly instead.

On a machine with GPUs each engine gets `actor.engine.tensor_parallel` of its own and each rank of the learner one; the cores
are divided. Ranks share the learner's threads.
What else a role does (the bus, detokenising, jails) is light and may run anywhere. A role that is started by hand takes what
its own affinity and environment allow.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from configs.errors import UserError
from configs.schema import RunConfig
from runtime.words import counted

LOWEST_PRIORITY = 19
"""Niceness of what takes only what the roles leave."""
GIVES_WAY = 10
"""Niceness of a learner on the engines' cores: the kernel gives it a tenth of one that both want."""


class DevicesError(UserError):
    """The machine has too few GPUs for what `zerotir up` is to start."""


@dataclass(frozen=True)
class Share:
    """Says what one process is given."""

    affinity: frozenset[int]
    environment: dict[str, str] = field(default_factory=dict)
    niceness: int = 0
    """Above 0: it gives way to the others."""


def leftovers() -> Share:
    """Returns the share of a process that only follows a run: any core, at the lowest priority."""
    return Share(frozenset(os.sched_getaffinity(0)), niceness=LOWEST_PRIORITY)


def visible_gpus() -> list[str]:
    """Returns the names of the GPUs that this process may use, as `CUDA_VISIBLE_DEVICES` takes them."""
    if not any(Path("/dev").glob("nvidia[0-9]*")):
        return []  # Importing PyTorch to ask takes seconds.
    import torch

    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    count = torch.cuda.device_count()
    return named[:count] or [str(number) for number in range(count)]


def shares(config: RunConfig, gpus: Sequence[str]) -> dict[str, Share]:
    """Returns the shares of `learner`, `actor-0`, `actor-1` ... and `evaluator`; other roles may use every core.

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
    ranks = config.launch.learner_ranks
    if gpus or config.launch.learner_threads:
        threads = {"OMP_NUM_THREADS": str(max(1, len(for_learner) // ranks))}
        result = {"learner": Share(frozenset(for_learner), threads | devices.get("learner", {}))}
    else:
        threads = {"OMP_NUM_THREADS": str(max(1, len(cores) // ranks)), "OMP_WAIT_POLICY": "passive"}
        result = {"learner": Share(every, threads, GIVES_WAY)}
    each = max(1, len(for_engines) // len(engines))
    for number, name in enumerate(engines):
        start = (number * each) % len(for_engines)
        engine = for_engines[start : start + each]
        result[name] = Share(every, {"ZEROTIR_ENGINE_CORES": ",".join(map(str, engine)), **devices.get(name, {})})
    return result


def _devices(config: RunConfig, engines: Sequence[str], gpus: Sequence[str]) -> dict[str, dict[str, str]]:
    """Returns the environment that leaves each role its GPUs; nothing where there are none."""
    if not gpus:
        return {}
    each, ranks = config.actor.engine.tensor_parallel, config.launch.learner_ranks
    needed = len(engines) * each + ranks
    if len(gpus) < needed:
        raise DevicesError(
            f"{counted(len(engines), 'engine')} of {counted(each, 'GPU')} and a learner of {counted(ranks, 'rank')} need "
            f"{needed} GPUs, here are {len(gpus)}: lower launch.actors, launch.learner_ranks or "
            "actor.engine.tensor_parallel, or start the roles by hand where there are more (docs/running.md)"
        )
    given = {name: gpus[number * each : (number + 1) * each] for number, name in enumerate(engines)}
    given["learner"] = gpus[-ranks:]
    return {name: {"CUDA_VISIBLE_DEVICES": ",".join(own)} for name, own in given.items()}

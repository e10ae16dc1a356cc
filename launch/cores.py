"""Each role's share of the machine's cores, so that engine and learner do not take them from each other.

The learner gets its cores to itself; the engines' compute threads get the others, one share an actor and one for the
evaluator, if there is one. What else a role does (the bus, detokenising, jails) is light and may run anywhere. A role that
is started by hand takes what its own affinity and environment allow.
"""

import os
from dataclasses import dataclass, field

from configs.schema import RunConfig


@dataclass(frozen=True)
class Share:
    """What one process is given."""

    affinity: frozenset[int]
    environment: dict[str, str] = field(default_factory=dict)


def shares(config: RunConfig) -> dict[str, Share]:
    """Shares of `learner`, `actor-0`, `actor-1` ... and `evaluator`; roles that are not named may use every core."""
    cores = sorted(os.sched_getaffinity(0))
    every = frozenset(cores)
    engines = [f"actor-{number}" for number in range(config.launch.actors)]
    if config.launch.evaluator:
        engines.append("evaluator")
    mine = config.launch.learner_threads or max(1, len(cores) // 2)
    # On a machine with fewer cores than engines they have to share.
    for_engines = cores[: len(cores) - mine] or cores
    for_learner = cores[-mine:]
    result = {
        "learner": Share(frozenset(for_learner), {"OMP_NUM_THREADS": str(len(for_learner))}),
    }
    each = max(1, len(for_engines) // len(engines))
    for number, name in enumerate(engines):
        start = (number * each) % len(for_engines)
        engine = for_engines[start : start + each]
        result[name] = Share(every, {"ZEROTIR_ENGINE_CORES": ",".join(map(str, engine))})
    return result

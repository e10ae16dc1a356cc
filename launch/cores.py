"""Each role's share of the machine's cores, so that engine and learner do not take them from each other.

The learner gets its cores to itself; the engines' compute threads get the others, one share an actor. What else a role does
(the bus, detokenising, jails) is light and may run anywhere. A role that is started by hand takes what its own affinity
and environment allow.
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
    """Shares of `learner` and `actor-0`, `actor-1` ...; roles that are not named may use every core."""
    cores = sorted(os.sched_getaffinity(0))
    every = frozenset(cores)
    actors = config.launch.actors
    mine = config.launch.learner_threads or max(1, len(cores) // 2)
    # On a machine with fewer cores than engines they have to share.
    for_engines = cores[: len(cores) - mine] or cores
    for_learner = cores[-mine:]
    result = {
        "learner": Share(frozenset(for_learner), {"OMP_NUM_THREADS": str(len(for_learner))}),
    }
    each = max(1, len(for_engines) // actors)
    for number in range(actors):
        start = (number * each) % len(for_engines)
        engine = for_engines[start : start + each]
        result[f"actor-{number}"] = Share(every, {"ZEROTIR_ENGINE_CORES": ",".join(map(str, engine))})
    return result

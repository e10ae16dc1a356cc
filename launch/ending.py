"""Ends roles once the run is done: whoever was started for it would otherwise wait, with its GPUs, for ever.

    learner, after its last step ──▶ `end` in the run's record     (a learner that has more steps to do takes it away)
    actors, sandboxes, evaluators ── look every `LOOK_EVERY_S` seconds ──▶ finish and exit with 0

Sandboxes stay while an evaluator is alive, since it needs them. `--stay` keeps actors and sandboxes for a run that is to go
on. Cost: one small request a role every `LOOK_EVERY_S` seconds, two for a sandbox once the run is done.
"""

import asyncio

import nats.errors
import structlog

from bus.connection import TRANSIENT_ERRORS, Bus
from bus.presence import any_alive
from bus.run_record import RunEnd, recorded_end

log = structlog.get_logger()

LOOK_EVERY_S = 5.0
LEAVING = ("actor", "sandbox", "evaluator")
"""Roles that leave once the run is done."""


async def is_over(bus: Bus, role: str) -> RunEnd | None:
    """Returns the end of the run if nothing is left to do for `role`, else None. Raises what nats-py raises."""
    end = await recorded_end(bus)
    return None if end is None or (role == "sandbox" and await any_alive(bus, "evaluator")) else end


async def wait_for_end(bus: Bus, role: str, ended: asyncio.Event, known: RunEnd | None) -> None:
    """Sets `ended` and returns once nothing is left to do for `role`; what the bus does not answer is asked again.

    `known` is an end after which the run is to go on: it is not heeded.
    """
    while True:
        await asyncio.sleep(LOOK_EVERY_S)
        try:
            end = await is_over(bus, role)
        except (*TRANSIENT_ERRORS, nats.errors.Error) as error:
            log.warning("cannot see whether the run is done, will look again", error=str(error))
            continue
        if end is not None and end != known:
            log.info("the run is done", steps=end.steps)
            ended.set()
            return

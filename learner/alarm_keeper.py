"""Raises the alarms of a run while its learner is at work: in the learner's log, and in the run's bucket for every view."""

import asyncio
import contextlib
from pathlib import Path

import nats.errors
import structlog

from bus.alarms import Alarm, record_alarms
from bus.connection import TRANSIENT_ERRORS, Bus
from bus.messages import Metrics
from bus.metrics import record_of, records_of
from bus.presence import Announcer
from configs.alarms import AlarmsConfig
from learner.alarms import Watch

log = structlog.get_logger()

LOOK_EVERY_S = 5.0


class AlarmKeeper:
    """Keeps the list of the alarms that are raised now."""

    def __init__(self, bus: Bus, config: AlarmsConfig, announcer: Announcer) -> None:
        self._bus = bus
        self._announcer = announcer
        self._watch = Watch(config, announcer.id, bus.clock.now())
        self._raised: list[Alarm] = []
        self._recorded: list[Alarm] | None = None
        self._stepped = asyncio.Event()

    def recall(self, path: Path) -> None:
        """Takes in what the `metrics.jsonl` of a run that goes on has measured before."""
        for record in records_of(path):
            self._watch.see(record)

    def see(self, metrics: Metrics) -> None:
        """Takes in what a role has measured."""
        self._watch.see(record_of(metrics))
        if metrics.role == "learner":
            self._stepped.set()

    async def run(self) -> None:
        """Looks after each step and every `LOOK_EVERY_S` seconds, until cancelled."""
        while True:
            await self.look()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stepped.wait(), LOOK_EVERY_S)
            self._stepped.clear()

    async def look(self, *, done: bool = False) -> None:
        """Logs what was raised and what is over since the last time, and writes the list down where it has changed.

        `done`: no step is to come.
        """
        alarms = self._watch.alarms(self._bus.clock.now(), None if done else self._announcer.state)
        before, now = ({(each.name, each.who): each for each in some} for some in (self._raised, alarms))
        for key in now.keys() - before.keys():
            log.warning(now[key].line(), alarm=now[key].name, who=now[key].who)
        for key in before.keys() - now.keys():
            log.info("alarm is over", alarm=before[key].name, who=before[key].who)
        self._raised = alarms
        if alarms == self._recorded:
            return
        try:
            await record_alarms(self._bus, alarms)
            self._recorded = alarms
        except (*TRANSIENT_ERRORS, nats.errors.Error) as error:
            log.warning("alarms cannot be written down, will try again", error=str(error))

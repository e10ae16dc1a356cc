"""Raises the alarms of a run while its learner is at work: in the learner's log, and in the run's bucket for every view."""

import asyncio
import contextlib
import shutil
import time
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
RECORD_EVERY_S = 60.0
"""Seconds after which the list is written down again: the bus may have lost it, or a learner that was deposed changed it."""


class AlarmKeeper:
    """Keeps the list of the alarms that are raised now."""

    def __init__(self, bus: Bus, config: AlarmsConfig, announcer: Announcer, folder: Path) -> None:
        """`folder` is the run's."""
        self._bus = bus
        self._config = config
        self._announcer = announcer
        self._folder = folder
        self._watch: Watch | None = None
        self._raised: list[Alarm] = []
        self._recorded: list[Alarm] | None = None
        self._record_at = 0.0
        self._begun, self._stepped = asyncio.Event(), asyncio.Event()

    async def begin(self, step: int) -> None:
        """Takes in what the run had measured up to `step`, and begins to look: this learner is the one that trains.

        Reads the whole `metrics.jsonl`: about a second for 100 MB.
        """
        self._watch = await asyncio.to_thread(self._recall, step)
        self._begun.set()

    def _recall(self, step: int) -> Watch:
        watch = Watch(self._config, self._announcer.id, self._bus.clock.now())
        for record in records_of(self._folder / "metrics.jsonl"):
            # Later steps are done again.
            if record["role"] == "learner" and (record["step"] or 0) <= step:
                watch.see(record)
        return watch

    def see(self, metrics: Metrics) -> None:
        """Takes in what a role has measured."""
        if self._watch is None:
            return
        self._watch.see(record_of(metrics))
        if metrics.role == "learner":
            self._stepped.set()

    async def run(self) -> None:
        """Looks after each step and every `LOOK_EVERY_S` seconds once it has begun, until cancelled."""
        await self._begun.wait()
        while True:
            await self.look()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stepped.wait(), LOOK_EVERY_S)
            self._stepped.clear()

    async def look(self, *, done: bool = False) -> None:
        """Logs what was raised and what is over since the last time, and writes the list down where it has changed.

        `done`: no step is to come.
        """
        if self._watch is None:
            return
        free = shutil.disk_usage(self._folder).free / 2**30
        alarms = self._watch.alarms(self._bus.clock.now(), None if done else self._announcer.state, free)
        before, now = ({(each.name, each.who): each for each in some} for some in (self._raised, alarms))
        for key in now.keys() - before.keys():
            log.warning(now[key].line(), alarm=now[key].name, who=now[key].who)
        for key in before.keys() - now.keys():
            log.info("alarm is over", alarm=before[key].name, who=before[key].who)
        self._raised = alarms
        if alarms == self._recorded and time.monotonic() < self._record_at:
            return
        try:
            await record_alarms(self._bus, alarms)
            self._recorded = alarms
            self._record_at = time.monotonic() + RECORD_EVERY_S
        except (*TRANSIENT_ERRORS, nats.errors.Error) as error:
            log.warning("alarms cannot be written down, will try again", error=str(error))

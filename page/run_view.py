"""One run as the page shows it: what it has measured, and what its roles are doing now.

    metrics.jsonl, then the bus ──▶ `Store` ──▶ curves, Prometheus
    presence, alarms, sandboxes, streams ──asked when somebody looks──▶ `now`

A follower like any other: the run does not know of it. Nobody looks: it reads the metrics, and asks nothing.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import nats.errors
import nats.js.errors

from bus.alarms import Alarm, recorded_alarms
from bus.connection import TRANSIENT_ERRORS, Bus
from bus.messages import Presence
from bus.metrics import FLOAT_LIMIT
from bus.metrics_history import MetricsHistory
from bus.presence import who_is_alive
from bus.run_record import RunEnd, recorded_end, recorded_settings
from configs.errors import UserError
from configs.schema import RunConfig
from page.fits import Fits
from page.results import Results
from page.store import Store
from page.transcript import Transcripts
from sandbox.client import ServiceStatistics, statistics

READ_S = 1.0
FRESH_S = 1.5
"""Seconds for which an answer of the bus serves all who look."""
ASK_S = 5.0
"""Seconds within which the bus answers if it is well."""
LOOK_FOR_END_S = 2.0
PACE_STEPS = 10
"""Steps that say how long one takes."""
NEEDED = ("learner", "actor", "sandbox")
"""Roles without which a run stands still."""
STALE = "the run goes on since this page was started, and what is shown is from before: start the page again"
BALANCE = ("issued", "trained", "filtered", "failed", "open", "ignored")
STREAMS = ("TICKETS", "RETRIES", "RESULTS", "WEIGHTS", "METRICS", "DEADLETTERS")


class RunView:
    """Shows one run."""

    def __init__(
        self,
        name: str,
        folder: Path,
        bus: Bus | None,
        settings: dict[str, Any],
        alarms: Sequence[Alarm] = (),
        config: Callable[[], RunConfig | None] = lambda: None,
    ) -> None:
        """Shows the run `name`.

        Args:
            name: its id.
            folder: its folder, here or not.
            bus: None where its servers do not answer.
            settings: its configuration, as data.
            alarms: those that its folder tells of, where there is no bus.
            config: reads its configuration, by which its archive is read; None where that is not here.
        """
        self.name = name
        self.store = Store()
        self.fits = Fits(self.store)
        now = config()
        self.results = None if now is None else Results(folder, now, config)
        self.transcripts = None if now is None else Transcripts(folder, now.model.path)
        self.is_live = bus is not None
        self.is_final = False
        """Everything is read, and no more will come."""
        self._file = folder / "metrics.jsonl"
        self._final_size = 0
        self._bus = bus
        self._history = MetricsHistory(folder / "metrics.jsonl", bus, 0)
        self._steps = _wanted(settings)
        self._asked_at = 0.0
        self._asking = asyncio.Lock()
        self._alive: list[Presence] = []
        self._alarms = list(alarms)
        self._services: list[ServiceStatistics] = []
        self._streams: dict[str, dict[str, float]] = {}
        self._end: RunEnd | None = None
        self._trouble = ""
        self.answers = False
        """The bus did when it was last asked."""

    def time(self) -> float:
        """Returns what time it is in the run; of one that is over, when the learner last measured something."""
        if self._bus is not None:
            return self._bus.clock.now()
        return self.store.learner.time if self.store.learner else 0.0

    @property
    def is_stale(self) -> bool:
        """Returns whether a run that was over when the page began goes on: the page has no way to its servers."""
        return self.is_final and self._size() != self._final_size

    def _size(self) -> int:
        return self._file.stat().st_size if self._file.exists() else 0

    async def follow(self) -> None:
        """Reads what the run measures, until there is no more to come: of a run without servers, its file's end."""
        look_at = 0.0
        while True:
            measured = await self._history.read(READ_S)
            for _, metrics in measured:
                self.store.add(metrics)
                if self.results is not None:
                    self.results.note(metrics)
            if self._bus is None and not measured:
                self.is_final = True
                self._final_size = self._size()
                return
            if self._bus is not None and time.monotonic() >= look_at:
                # Soon after it the bus may be gone, and nobody may have looked.
                with contextlib.suppress(*TRANSIENT_ERRORS, nats.errors.Error):
                    self._end = await recorded_end(self._bus)
                look_at = time.monotonic() + LOOK_FOR_END_S
            # A long file must not keep others waiting.
            await asyncio.sleep(0)

    async def now(self) -> dict[str, Any]:
        """Returns what is going on, as JSON has it."""
        await self._ask()
        latest = self.store.learner
        all_steps = bool(self._steps) and self.store.step >= (self._steps or 0)
        finished = self._end is not None or (all_steps and not self.answers)
        goes_on = self.answers and not finished
        alive = self._alive if self.answers or not finished else []
        there = {presence.role for presence in alive}
        now = self.time()
        return {
            "run": self.name,
            "live": self.is_live,
            "finished": finished,
            "trouble": STALE if self.is_stale else "" if finished else self._trouble,
            "emulated": bool(latest and latest.values.get("emulated")),
            "step": self.store.step,
            "steps": self._steps,
            "left_s": self._seconds_left() if goes_on else None,
            "measured_ago_s": max(0.0, now - latest.time) if latest and self.is_live else None,
            "measured": latest.values if latest else {},
            "tokens_per_s": _sum(each.rates.get("tokens_per_s", 0.0) for each in alive if each.role == "actor"),
            "alarms": [{"name": alarm.name, "line": alarm.line(self._looked_at(now))} for alarm in self._alarms],
            "missing": [role for role in NEEDED if role not in there] if goes_on else [],
            "roles": [_role(presence, now) for presence in alive],
            "tickets": {name: latest.values.get(f"tickets_{name}") if latest else None for name in BALANCE},
            "filtered": self._totals("filtered_by_"),
            "failed": self._totals("failed_by_"),
            "sandboxes": [service.model_dump() for service in self._services],
            "streams": self._streams,
            "left_out": self.store.left_out,
        }

    def _looked_at(self, now: float) -> float | None:
        """Returns up to when alarms have been raised; None for a run that is over, of which that is not known."""
        if not self.is_live:
            return None
        return self._end.ended_at if self._end else now

    def _seconds_left(self) -> float | None:
        series = self.store.series.get(("learner", "", "step_seconds"))
        left = (self._steps or 0) - self.store.step
        if series is None or left <= 0:
            return None
        return left * fmean(series.points()[2][-PACE_STEPS:].tolist())

    def _totals(self, prefix: str) -> dict[str, float]:
        return {
            name.removeprefix(prefix).replace("_", " "): series.total
            for (role, _, name), series in self.store.series.items()
            if role == "learner" and name.startswith(prefix)
        }

    async def _ask(self) -> None:
        bus = self._bus
        if bus is None:
            return
        async with self._asking:
            if time.monotonic() - self._asked_at < FRESH_S:
                return
            try:
                async with asyncio.timeout(ASK_S):
                    settings, self._alive, self._alarms, self._services, self._end, infos = await asyncio.gather(
                        recorded_settings(bus),
                        who_is_alive(bus),
                        recorded_alarms(bus),
                        statistics(bus.client, bus.names.execution),
                        recorded_end(bus),
                        asyncio.gather(*(bus.js.stream_info(bus.names.stream(kind)) for kind in STREAMS)),
                    )
                # A learner that goes on may have got more steps.
                self._steps = _wanted(settings)
                self._streams = {
                    kind.lower(): {"messages": info.state.messages, "bytes": info.state.bytes}
                    for kind, info in zip(STREAMS, infos, strict=True)
                }
                self._trouble = bus.trouble
                self.answers = True
            except (*TRANSIENT_ERRORS, nats.errors.Error, UserError) as error:
                self.answers = False
                self._trouble = f"the bus does not answer ({type(error).__name__}): what is shown of now is old"
            self._asked_at = time.monotonic()


def _wanted(settings: dict[str, Any]) -> int | None:
    """Returns how many steps a run is to have, if its configuration, whichever version's, says so."""
    learner = settings.get("learner")
    steps = learner.get("steps") if isinstance(learner, dict) else None
    return steps if isinstance(steps, int) else None


def _sum(numbers: Iterable[float]) -> float | None:
    """Returns the sum of numbers that somebody may have made up; None where there are none that can be added."""
    found = [number for number in numbers if abs(number) < FLOAT_LIMIT]
    return sum(found) if found else None


def _role(presence: Presence, now: float) -> dict[str, Any]:
    return {
        "role": presence.role,
        "id": presence.id,
        "host": presence.host,
        "state": presence.state,
        "version": presence.version,
        "in_flight": presence.in_flight,
        "seen_ago_s": max(0.0, now - presence.time),
        "rates": {name: value for name, value in presence.rates.items() if abs(value) < FLOAT_LIMIT},
    }

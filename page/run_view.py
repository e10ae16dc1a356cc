"""One run as the page shows it: what it has measured, and what its roles are doing now.

    metrics.jsonl, then the bus ──▶ `Store` ──▶ curves, Prometheus
    presence, alarms, sandboxes, streams ──asked when somebody looks──▶ `now`

A follower like any other: the run does not know of it. Nobody looks: it reads the metrics, and asks nothing.
"""

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import nats.errors
import nats.js.errors

from bus.alarms import Alarm, recorded_alarms
from bus.connection import TRANSIENT_ERRORS, Bus
from bus.messages import Presence
from bus.metrics_history import MetricsHistory
from bus.presence import who_is_alive
from bus.run_record import RunEnd, recorded_end
from page.store import Store
from sandbox.client import ServiceStatistics, statistics

READ_S = 1.0
FRESH_S = 1.5
"""Seconds for which an answer of the bus serves all who look."""
PACE_STEPS = 10
"""Steps that say how long one takes."""
NEEDED = ("learner", "actor", "sandbox")
"""Roles without which a run stands still."""
BALANCE = ("issued", "trained", "filtered", "failed", "open", "ignored")
STREAMS = ("TICKETS", "RETRIES", "RESULTS", "WEIGHTS", "METRICS", "DEADLETTERS")


class RunView:
    """Shows one run."""

    def __init__(
        self, name: str, folder: Path, bus: Bus | None, settings: dict[str, Any], alarms: Sequence[Alarm] = ()
    ) -> None:
        """Shows the run `name`.

        Args:
            name: its id.
            folder: its folder, here or not.
            bus: None where its servers do not answer.
            settings: its configuration, as data.
            alarms: those that its folder tells of, where there is no bus.
        """
        self.name = name
        self.store = Store()
        self.is_live = bus is not None
        self.is_final = False
        """Everything is read, and no more will come."""
        self._bus = bus
        self._history = MetricsHistory(folder / "metrics.jsonl", bus, 0)
        self._steps = settings.get("learner", {}).get("steps")
        self._asked_at = 0.0
        self._asking = asyncio.Lock()
        self._alive: list[Presence] = []
        self._alarms = list(alarms)
        self._services: list[ServiceStatistics] = []
        self._streams: dict[str, dict[str, float]] = {}
        self._end: RunEnd | None = None
        self._trouble = ""

    async def follow(self) -> None:
        """Reads what the run measures, until there is no more to come: of a run without servers, its file's end."""
        while True:
            measured = await self._history.read(READ_S)
            for _, metrics in measured:
                self.store.add(metrics)
            if not measured and self._bus is None:
                self.is_final = True
                return
            # A long file must not keep others waiting.
            await asyncio.sleep(0)

    async def now(self) -> dict[str, Any]:
        """Returns what is going on, as JSON has it."""
        await self._ask()
        latest = self.store.latest.get(("learner", ""))
        measured = dict(latest[2]) if latest else {}
        done = self._end is not None
        there = {presence.role for presence in self._alive}
        now = self._bus.clock.now() if self._bus else time.time()
        rates = [presence.rates.get("tokens_per_s", 0.0) for presence in self._alive if presence.role == "actor"]
        return {
            "run": self.name,
            "live": self.is_live,
            "finished": done,
            "trouble": self._trouble,
            "emulated": bool(measured.get("emulated")),
            "step": self.store.step,
            "steps": self._steps,
            "left_s": None if done or not self.is_live else self._seconds_left(),
            "measured_ago_s": max(0.0, now - latest[0]) if latest else None,
            "measured": measured,
            "tokens_per_s": sum(rates) if rates else None,
            "alarms": [
                {"name": alarm.name, "line": alarm.line(self._end.ended_at if self._end else now)}
                for alarm in self._alarms
            ],
            "missing": [role for role in NEEDED if role not in there] if self.is_live and not done else [],
            "roles": [_role(presence, now) for presence in self._alive],
            "tickets": {name: measured.get(f"tickets_{name}") for name in BALANCE},
            "filtered": self._totals("filtered_by_"),
            "failed": self._totals("failed_by_"),
            "sandboxes": [service.model_dump() for service in self._services],
            "streams": self._streams,
            "names_left_out": self.store.left_out,
        }

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
                self._alive, self._alarms, self._services, self._end, infos = await asyncio.gather(
                    who_is_alive(bus),
                    recorded_alarms(bus),
                    statistics(bus.client, bus.names.execution),
                    recorded_end(bus),
                    asyncio.gather(*(bus.js.stream_info(bus.names.stream(kind)) for kind in STREAMS)),
                )
                self._streams = {
                    kind.lower(): {"messages": info.state.messages, "bytes": info.state.bytes}
                    for kind, info in zip(STREAMS, infos, strict=True)
                }
                self._trouble = bus.trouble
            except (*TRANSIENT_ERRORS, nats.errors.Error) as error:
                self._trouble = f"the bus does not answer ({type(error).__name__}): what is shown of now is old"
            self._asked_at = time.monotonic()


def _role(presence: Presence, now: float) -> dict[str, Any]:
    return {
        "role": presence.role,
        "id": presence.id,
        "host": presence.host,
        "state": presence.state,
        "version": presence.version,
        "in_flight": presence.in_flight,
        "seen_ago_s": max(0.0, now - presence.time),
        "rates": presence.rates,
    }

"""Shows a run under `zerotir up`: each role's state as it changes, a line for each step, and what is going on just now.

It reads presence and the metrics log, as `zerotir status` and `zerotir metrics` do.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nats.errors
import nats.js.errors
import structlog

from bus.alarms import Alarm, recorded_alarms
from bus.connection import TRANSIENT_ERRORS, Bus
from bus.messages import Presence
from bus.metrics import follow_metrics
from bus.presence import who_is_alive
from configs.schema import RunConfig
from launch.screen import say
from launch.views import seconds_left, step_line
from runtime.terminal import printable
from runtime.words import time_left

log = structlog.get_logger()

STILL_WAITING_S = 20.0
LOOK_EVERY_S = 0.5
ALARMS_EVERY_S = 1.0


class RunScreen:
    """Shows one run while it is on."""

    def __init__(self, config: RunConfig, steps: Sequence[dict[str, Any]], show: Callable[[str], None]) -> None:
        """`steps`: records of the steps that were done before; `show` sets the line that says what is going on."""
        self._config = config
        self._steps = list(steps)
        self._show = show
        self._states: dict[str, str] = {}
        self.last_step: int = steps[-1]["step"] if steps else 0
        """The highest that was measured: what a learner does again after a restart is no progress."""

    @property
    def seen(self) -> set[str]:
        """Returns the ids of all roles that have given a sign of life."""
        return set(self._states)

    def stopping(self) -> None:
        """Says that the run ends."""
        say("stopping every role")
        self._show("stopping every role")

    async def show_presence(self, bus: Bus) -> None:
        """Says what each role is doing whenever that changes, and now and then while nothing does. Raises BusError."""
        spoken = time.monotonic()
        while True:
            there = await alive(bus) or []
            bus.require_connection()
            for presence in there:
                # Counts change all the time: they are told only when it was quiet for long.
                headline = presence.state.partition(":")[0]
                waited = presence.role == "learner" and time.monotonic() - spoken > STILL_WAITING_S
                if self._states.get(presence.id) != headline or waited:
                    self._states[presence.id] = headline
                    say(f"{presence.id:<10} {printable(presence.state)}")
                    spoken = time.monotonic()
            self._show(self._now(there))
            await asyncio.sleep(LOOK_EVERY_S)

    async def show_alarms(self, bus: Bus) -> None:
        """Says what alarms are raised from now on, once each, and when they are over."""
        begun = bus.clock.now()
        shown: dict[tuple[str, str], Alarm] = {}
        while True:
            try:
                # Those before are the last life's.
                alarms = [alarm for alarm in await recorded_alarms(bus) if alarm.since >= begun]
                raised = {(alarm.name, alarm.who): alarm for alarm in alarms}
            except (*TRANSIENT_ERRORS, nats.errors.Error) as error:
                log.warning("alarms not readable", error=str(error))
            else:
                for key in raised.keys() - shown.keys():
                    say(raised[key].line(), matters=True)
                for name, who in shown.keys() - raised.keys():
                    say(f"alarm {name} ({who}) is over")
                shown = raised
            await asyncio.sleep(ALARMS_EVERY_S)

    def _now(self, there: Sequence[Presence]) -> str:
        parts = [f"{self.last_step} of {self._config.learner.steps} steps"]
        if (left := seconds_left(self._steps, self._config.learner.steps)) is not None:
            parts[0] += f", {time_left(left)}"
        parts += [f"learner: {presence.state}" for presence in there if presence.role == "learner"]
        actors = [presence for presence in there if presence.role == "actor"]
        rate = sum(presence.rates.get("tokens_per_s", 0.0) for presence in actors)
        return "  |  ".join([*parts, f"{len(actors)} actors, {rate:.0f} tokens/s"])

    async def show_steps(self, bus: Bus, first_new: int) -> None:
        """Says what each step measured, from message `first_new` of the metrics log on."""
        async for _, metrics in follow_metrics(bus, first_new):
            if metrics.role != "learner" or metrics.step is None:
                continue
            self.last_step = max(self.last_step, metrics.step)
            self._steps.append({"step": metrics.step, **metrics.values})
            steps = self._config.learner.steps
            say(step_line(metrics, steps, seconds_left(self._steps, steps)))


async def alive(bus: Bus) -> list[Presence] | None:
    """Returns the roles that are alive; None where the bus does not say."""
    try:
        return await who_is_alive(bus)
    except (*TRANSIENT_ERRORS, nats.js.errors.NotFoundError) as error:
        log.warning("presence not readable", error=str(error))
        return None


async def relay(folder: Path) -> None:
    """Prints what roles print into their files in `folder` from now on, each line with the role's name."""
    read = {path: path.stat().st_size for path in folder.glob("*.out")}
    while True:
        for path in sorted(folder.glob("*.out")):
            with path.open("rb") as file:
                file.seek(read.get(path, 0))
                # What has no end yet is read again.
                whole, newline, _ = file.read().rpartition(b"\n")
            if newline:
                read[path] = read.get(path, 0) + len(whole) + 1
                for line in whole.decode(errors="replace").split("\n"):
                    say(f"{path.stem:<10} | {line}")
        await asyncio.sleep(LOOK_EVERY_S)

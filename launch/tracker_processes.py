"""Keeps `zerotir track` going for each tracker that a run under `zerotir up` has.

Whatever becomes of a tracker is told, and is no concern of the run's: one that fails is started again, later and later, and
goes on behind what its tracker has.
"""

import asyncio
import contextlib
import time
from collections.abc import Sequence
from pathlib import Path
from shlex import quote

from configs.schema import TrackerName
from launch.cores import leftovers
from launch.processes import RoleProcess
from launch.screen import say
from tracking.worker import where_to_look

FIRST_PAUSE_S = 10.0
LONGEST_PAUSE_S = 600.0
LOOK_EVERY_S = 0.5
LATE_S = 60.0
"""Seconds after which a tracker that has not taken the run is told of."""
FINISH_S = 60.0
"""Bounds how long a run that is done waits for its trackers."""


class TrackerProcesses:
    """The trackers of one run."""

    def __init__(self, names: Sequence[TrackerName], folder: Path) -> None:
        self._names = names
        self._folder = folder
        self._keeping: dict[str, asyncio.Task[None]] = {}
        self._processes: dict[str, RoleProcess] = {}
        self._is_done = asyncio.Event()
        """The run is done."""
        self._telling: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Starts all of them."""
        self._keeping = {name: asyncio.create_task(self._keep(name)) for name in self._names}
        self._telling = asyncio.create_task(self._tell_where())

    async def finish(self, stop: asyncio.Event) -> None:
        """Waits until trackers have what a run that is done has measured, for `FINISH_S` seconds or until `stop` is set."""
        self._is_done.set()
        there = {name: task for name, task in self._keeping.items() if not task.done()}
        if there:
            say(f"waits for trackers to take the last metrics: {', '.join(there)} (Ctrl-C does not wait)")
            stopping = asyncio.ensure_future(stop.wait())
            everything = asyncio.gather(*there.values(), return_exceptions=True)
            await asyncio.wait((everything, stopping), timeout=FINISH_S, return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
        for name, task in self._keeping.items():
            if not task.done():
                say(f"{name} has not taken everything; later: {self._by_hand(name)}", matters=True)
            elif (error := task.exception()) is not None:
                say(f"{name} could not be kept going ({error}); later: {self._by_hand(name)}", matters=True)

    async def stop(self) -> None:
        """Ends all of them: they have a few seconds in which to give their trackers what they have."""
        for task in (*self._keeping.values(), *([self._telling] if self._telling else ())):
            task.cancel()
        await asyncio.gather(*(process.stop() for process in self._processes.values()))

    def _by_hand(self, name: str) -> str:
        return f"zerotir track {quote(str(self._folder))} --to {name}"

    async def _tell_where(self) -> None:
        """Says where people find the run in each tracker, once it is there."""
        told = set[str]()
        begun = time.time()
        late_at: float | None = time.monotonic() + LATE_S
        while told != set(self._names):
            if late_at is not None and time.monotonic() > late_at:
                late_at = None
                for missing in sorted(set(self._names) - told):
                    printed = self._folder / "logs" / f"track-{missing}.out"
                    say(f"{missing} has not taken the run yet; training does not wait for it ({printed})", matters=True)
            for name, where in where_to_look(self._folder, since=begun).items():
                if name in self._names and name not in told:
                    say(f"{name:<10} {where}")
                    told.add(name)
            await asyncio.sleep(LOOK_EVERY_S)

    async def _keep(self, name: TrackerName) -> None:
        """Starts a tracker again and again, until it has all of a run that is done, or needs something of the user."""
        pause_s = FIRST_PAUSE_S
        while True:
            is_last = self._is_done.is_set()
            process = await self._start(name)
            code = await process.wait()
            await process.stop()
            if code == 0 and self._is_done.is_set():
                return
            ending = f"track-{name} {process.ending()}"
            if code == 2:
                say(f"{ending}; training goes on without it. Once that is mended: {self._by_hand(name)}", matters=True)
                return
            if code and is_last:
                say(f"{ending}; it has not taken everything. Later: {self._by_hand(name)}", matters=True)
                return
            if code:
                say(f"{ending}; training goes on, and it is started again in {pause_s:.0f} s", matters=True)
            # With 0 it saw no servers, for a moment, or sees the end of the run before it is seen here.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._is_done.wait()
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S) if code else FIRST_PAUSE_S

    async def _start(self, name: TrackerName) -> RoleProcess:
        output = self._folder / "logs" / f"track-{name}.out"
        process = RoleProcess(f"track-{name}", ["track", str(self._folder), "--to", name], output, leftovers())
        self._processes[name] = process
        await process.start()
        return process

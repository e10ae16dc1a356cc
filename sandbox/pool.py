"""Jails that are started before they are wanted, so that a program waits neither for nsjail nor for an import.

Each serves one program; a new one takes its place in the background. Two kinds wait: with a bare interpreter, and with
all packages imported, for code that imports one.

    run --takes--> waiting jails <--fills-- starters
        (or waits for the next one)         (a few at a time, woken by every taking, start and death)

Who finds none waits in line, at most `PLACE_S` seconds; starters serve the line before they fill up.
"""

import asyncio
import os
import re
from collections import deque
from collections.abc import Coroutine, Sequence
from types import TracebackType
from typing import Self

import structlog

from bus.messages import ExecutionResult
from sandbox.jail import Jail, JailError, WaitingJail, failure
from sandbox.program import PLACE_S, refusal

log = structlog.get_logger()

ATTEMPTS = 3
"""Jails that a program is given to, until one begins it."""
RETRY_S = 1.0
"""Pause after a jail could not be started and nobody waits for one."""
FIRST_GUESS_MB = {False: 16.0, True: 128.0}
"""Memory of a waiting jail, bare or with packages, until the first one says what it holds."""


def imports_any(code: str, packages: Sequence[str]) -> bool:
    """Whether `code` seems to import one of `packages`.

    A guess that costs time where it is wrong, never correctness, so it reads import statements as text, in time linear
    in the code's length: Python's own parser, with hostile code before it, belongs into the jail.
    """
    if not packages:
        return False
    names = "|".join(map(re.escape, packages))
    return re.search(rf"(?:^|[;:])[ \t]*(?:import|from)[ \t][^\n;:#]*\b(?:{names})\b", code, re.MULTILINE) is not None


class _Shelf:
    """The jails of one kind."""

    def __init__(self, loaded: bool, target: int) -> None:
        self.loaded = loaded
        self.target = target
        self.ready: deque[WaitingJail] = deque()
        self.line: deque[asyncio.Future[WaitingJail]] = deque()
        self.starting = 0
        self.size_mb = FIRST_GUESS_MB[loaded]

    @property
    def held_mb(self) -> float:
        return self.size_mb * (len(self.ready) + self.starting)


class Pool:
    """Runs programs in jails that are ready; entered before use, and left when all runs are over."""

    def __init__(self, jail: Jail) -> None:
        self._jail = jail
        self._config = jail.config
        self._shelves = {
            False: _Shelf(False, self._config.warm),
            True: _Shelf(True, self._config.warm_with_packages if self._config.packages else 0),
        }
        cores = len(os.sched_getaffinity(0))
        self._starters = cores + 1
        # What nobody waits for leaves the other cores to the programs that run.
        self._background_starters = max(1, cores // 2)
        self._tasks: set[asyncio.Task[None]] = set()
        self._full = asyncio.Event()
        self._closed = False

    async def __aenter__(self) -> Self:
        self._fill()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        waiting = [jail for shelf in self._shelves.values() for jail in shelf.ready]
        await asyncio.gather(*(jail.end() for jail in waiting))

    def waiting(self, *, loaded: bool) -> int:
        """Jails of a kind that wait for a program now."""
        return len(self._shelves[loaded].ready)

    async def filled(self) -> None:
        """Returns once as many jails wait as are to, or as the memory allows. The caller sets the bound."""
        await self._full.wait()

    async def run(self, code: str, timeout_s: float) -> ExecutionResult:
        """Runs `code` as `Jail.run` does, in a jail that waits or in the next one that is ready."""
        refused = refusal(code, self._config)
        if refused is not None:
            return refused
        loaded = self._shelves[True].target > 0 and imports_any(code, self._config.packages)
        reason = ""
        for _ in range(ATTEMPTS):
            try:
                jail = await self._take(self._shelves[loaded])
            except TimeoutError:
                return failure(f"no jail was ready within {PLACE_S:.0f} s: lower sandbox.concurrency")
            except JailError as error:
                reason = str(error)
                continue
            try:
                return await jail.run(code, timeout_s)
            except JailError as error:
                # It died while it waited; the program has not begun, so another jail may have it.
                reason = str(error)
        return failure(reason)

    async def _take(self, shelf: _Shelf) -> WaitingJail:
        try:
            for jail in shelf.ready:
                # One that has just died is for `_watch` to clear away.
                if not jail.exited.is_set():
                    shelf.ready.remove(jail)
                    return jail
            place: asyncio.Future[WaitingJail] = asyncio.get_running_loop().create_future()
            shelf.line.append(place)
        finally:
            self._fill()
        try:
            async with asyncio.timeout(PLACE_S):
                return await asyncio.shield(place)
        except BaseException:
            if place in shelf.line:
                shelf.line.remove(place)
            elif place.done() and not place.cancelled() and place.exception() is None:
                # Given up in the moment in which it came: it goes to the next.
                self._give(shelf, place.result())
            raise

    def _wants(self, shelf: _Shelf) -> bool:
        if len(shelf.line) > shelf.starting:
            return True
        held = sum(each.held_mb for each in self._shelves.values())
        fits = held + shelf.size_mb <= self._config.warm_memory_mb
        return fits and len(shelf.ready) + shelf.starting < shelf.target + len(shelf.line)

    def _fill(self) -> None:
        """Starts as many jails as are wanted and as may start together.

        Those in line come first, and neither kind's line may hold up the other's.
        """
        shelves = self._shelves.values()
        self._full.clear()
        while not self._closed:
            starting = sum(shelf.starting for shelf in shelves)
            wanting = [shelf for shelf in shelves if self._wants(shelf)]
            if not wanting and not starting:
                self._full.set()
            shelf = min(wanting, key=lambda shelf: (not shelf.line, shelf.starting), default=None)
            if shelf is None or starting >= (self._starters if shelf.line else self._background_starters):
                return
            shelf.starting += 1
            self._spawn(self._start(shelf))

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _start(self, shelf: _Shelf) -> None:
        try:
            jail = await self._jail.start(loaded=shelf.loaded)
        except (JailError, OSError) as error:
            if shelf.line:
                shelf.line.popleft().set_exception(JailError(f"{type(error).__name__}: {error}"))
            else:
                log.error("a jail could not be started", reason=str(error))
                await asyncio.sleep(RETRY_S)
        else:
            shelf.size_mb = jail.memory_mb
            self._give(shelf, jail)
        finally:
            shelf.starting -= 1
            self._fill()

    def _give(self, shelf: _Shelf, jail: WaitingJail) -> None:
        """To the first in line, or onto the shelf."""
        if shelf.line:
            shelf.line.popleft().set_result(jail)
        else:
            shelf.ready.append(jail)
            self._spawn(self._watch(shelf, jail))

    async def _watch(self, shelf: _Shelf, jail: WaitingJail) -> None:
        """Replaces a jail that dies while it waits."""
        await jail.exited.wait()
        if jail in shelf.ready:
            log.warning("a waiting jail has ended and is replaced", nsjail_pid=jail.pid)
            shelf.ready.remove(jail)
            await jail.end()
            self._fill()

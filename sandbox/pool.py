"""Keeps idle jails, started before they are wanted, so that a program waits neither for nsjail nor for an import.

Each jail serves one program; a new one replaces it in the background. There are two kinds: with a bare interpreter, and
with all packages imported, for code that imports one.

    run --takes--> idle jails <--fills-- starters
        (or waits for the next one)      (a few at a time, woken by every taking, start and death)

A program that finds no idle jail waits in a queue, at most `QUEUE_S` seconds. Starters serve the queue before they fill up.
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
from sandbox.jail import IdleJail, Jail, JailError, failure
from sandbox.program import QUEUE_S, refusal

log = structlog.get_logger()

ATTEMPTS = 3
"""Jails that a program is given to, until one begins it."""
RETRY_S = 1.0
"""Pause after a jail could not be started and no program waits for one."""
FIRST_GUESS_MB = {False: 16.0, True: 128.0}
"""Memory of an idle jail, bare or with packages, until the first one says what it holds."""


def imports_any(code: str, packages: Sequence[str]) -> bool:
    """Returns whether `code` seems to import one of `packages`.

    A guess that costs time where it is wrong, never correctness, so it reads import statements as text, in time linear
    in the code's length: Python's own parser, with hostile code before it, belongs into the jail.
    """
    if not packages:
        return False
    names = "|".join(map(re.escape, packages))
    return re.search(rf"(?:^|[;:])[ \t]*(?:import|from)[ \t][^\n;:#]*\b(?:{names})\b", code, re.MULTILINE) is not None


class _IdleJails:
    """Holds the idle jails of one kind, and the queue for them."""

    def __init__(self, loaded: bool, target: int) -> None:
        self.loaded = loaded
        self.target = target
        self.ready: deque[IdleJail] = deque()
        self.queue: deque[asyncio.Future[IdleJail]] = deque()
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
        self._idle = {
            False: _IdleJails(False, self._config.warm),
            True: _IdleJails(True, self._config.warm_with_packages if self._config.packages else 0),
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
        left = [jail for idle in self._idle.values() for jail in idle.ready]
        await asyncio.gather(*(jail.end() for jail in left))

    def idle(self, *, loaded: bool) -> int:
        """Returns the number of idle jails of a kind."""
        return len(self._idle[loaded].ready)

    async def filled(self) -> None:
        """Returns once as many jails are idle as are to be, or as the memory allows. The caller sets the bound."""
        await self._full.wait()

    async def run(self, code: str, timeout_s: float) -> ExecutionResult:
        """Runs `code` as `Jail.run` does, in an idle jail or in the next one that is ready."""
        refused = refusal(code, self._config)
        if refused is not None:
            return refused
        loaded = self._idle[True].target > 0 and imports_any(code, self._config.packages)
        reason = ""
        for _ in range(ATTEMPTS):
            try:
                jail = await self._take(self._idle[loaded])
            except TimeoutError:
                return failure(f"no jail was ready within {QUEUE_S:.0f} s: lower sandbox.concurrency")
            except JailError as error:
                reason = str(error)
                continue
            try:
                return await jail.run(code, timeout_s)
            except JailError as error:
                # It died while it was idle; the program has not begun, so another jail may have it.
                reason = str(error)
        return failure(reason)

    async def _take(self, idle: _IdleJails) -> IdleJail:
        try:
            for jail in idle.ready:
                # One that has just died is for `_watch` to clear away.
                if not jail.exited.is_set():
                    idle.ready.remove(jail)
                    return jail
            waiter: asyncio.Future[IdleJail] = asyncio.get_running_loop().create_future()
            idle.queue.append(waiter)
        finally:
            self._fill()
        try:
            async with asyncio.timeout(QUEUE_S):
                return await asyncio.shield(waiter)
        except BaseException:
            if waiter in idle.queue:
                idle.queue.remove(waiter)
            elif waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                # Given up in the moment in which it came: it goes to the next.
                self._give(idle, waiter.result())
            raise

    def _wants(self, idle: _IdleJails) -> bool:
        if len(idle.queue) > idle.starting:
            return True
        held = sum(each.held_mb for each in self._idle.values())
        fits = held + idle.size_mb <= self._config.warm_memory_mb
        return fits and len(idle.ready) + idle.starting < idle.target + len(idle.queue)

    def _fill(self) -> None:
        """Starts as many jails as are wanted and as may start together.

        The queues come first, and neither kind's queue may hold up the other's.
        """
        kinds = self._idle.values()
        self._full.clear()
        while not self._closed:
            starting = sum(idle.starting for idle in kinds)
            wanting = [idle for idle in kinds if self._wants(idle)]
            if not wanting and not starting:
                self._full.set()
            idle = min(wanting, key=lambda idle: (not idle.queue, idle.starting), default=None)
            if idle is None or starting >= (self._starters if idle.queue else self._background_starters):
                return
            idle.starting += 1
            self._spawn(self._start(idle))

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _start(self, idle: _IdleJails) -> None:
        try:
            jail = await self._jail.start(loaded=idle.loaded)
        except (JailError, OSError) as error:
            if idle.queue:
                idle.queue.popleft().set_exception(JailError(f"{type(error).__name__}: {error}"))
            else:
                log.error("a jail could not be started", reason=str(error))
                await asyncio.sleep(RETRY_S)
        else:
            idle.size_mb = jail.memory_mb
            self._give(idle, jail)
        finally:
            idle.starting -= 1
            self._fill()

    def _give(self, idle: _IdleJails, jail: IdleJail) -> None:
        """Gives a jail to the first program in the queue, or adds it to the idle ones."""
        if idle.queue:
            idle.queue.popleft().set_result(jail)
        else:
            idle.ready.append(jail)
            self._spawn(self._watch(idle, jail))

    async def _watch(self, idle: _IdleJails, jail: IdleJail) -> None:
        """Replaces a jail that dies while it is idle."""
        await jail.exited.wait()
        if jail in idle.ready:
            log.warning("an idle jail has ended and is replaced", nsjail_pid=jail.pid)
            idle.ready.remove(jail)
            await jail.end()
            self._fill()

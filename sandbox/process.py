"""Supervises one nsjail process: started, read within bounds, ended and waited for, whatever happens.

The program's two streams and nsjail's log come through three pipes that only this process reads. nsjail's configuration
and the program's source go in through two more: nsjail does nothing before it has read the configuration, and a jail
waits until the pipe of the source ends.
"""

import asyncio
import contextlib
import fcntl
import os
import re
import signal
from collections.abc import Callable, Sequence

import structlog

from sandbox.program import STOP_S

log = structlog.get_logger()

LOG_BYTES = 256 * 1024
WAITING = re.compile(rb"\nwaiting with (\d+) KiB\n")
STARTED = re.compile(rb"\nprogram started\n")
"""The lines by which `bootstrap.py` says on the log how far it is; nsjail's own come before them."""


class Stream:
    """Reads a pipe to its end and never lets its writer wait for long; keeps the first `limit` bytes.

    `data` is what was kept, `overflow` says whether there was more, `ended` whether the end was read or `close` called.
    """

    def __init__(self, limit: int, changed: Callable[[], None]) -> None:
        """`changed` is called after each read."""
        self.data = bytearray()
        self.overflow = False
        self.ended = False
        self._limit = limit
        self._changed = changed
        self._loop = asyncio.get_running_loop()
        self._reader, self.writer = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._reader, False)
        self._loop.add_reader(self._reader, self._read)

    def _read(self) -> None:
        try:
            chunk = os.read(self._reader, 65536)
        except BlockingIOError:
            return
        room = self._limit - len(self.data)
        self.data += chunk[:room]
        self.overflow |= len(chunk) > room
        if not chunk:
            self.close()
        self._changed()

    def close(self) -> None:
        """Stops reading."""
        if not self.ended:
            self._loop.remove_reader(self._reader)
            os.close(self._reader)
            self.ended = True


class JailProcess:
    """A running nsjail; whoever makes one calls `end`, whatever happens.

    Attributes: `pid`; `stdout` and `stderr` (the program's) and `log` (nsjail's); `exited`; after the end `status`, nsjail's
    exit status or minus the signal that killed it, and `cpu_s`, the CPU seconds of it and of everything that it waited for.
    """

    status: int
    cpu_s: float

    def __init__(self, argv: list[str], descriptors: Sequence[int], limit: int) -> None:
        """Starts `argv`. Raises OSError where the machine has no more processes or descriptors.

        Args:
            argv: the command; it finds its configuration on descriptor 4.
            descriptors: what it finds from descriptor 5 on.
            limit: bytes that are kept of each of the program's streams.
        """
        self.exited = asyncio.Event()
        self._waiters: set[asyncio.Future[None]] = set()
        self._inputs: list[int] = []
        streams: list[Stream] = []
        opened: list[int] = []
        try:
            for most in (limit, limit, LOG_BYTES):
                streams.append(Stream(most, self._changed))
                opened.append(streams[-1].writer)
            self.stdout, self.stderr, self.log = streams
            for _ in range(2):
                reader, writer = os.pipe2(os.O_CLOEXEC)
                opened.append(reader)
                self._inputs.append(writer)
                os.set_blocking(writer, False)
            source, configuration = opened[-2:]
            ends = []
            for end in (source, self.stdout.writer, self.log.writer, self.stderr.writer, configuration, *descriptors):
                # A copy above all targets: no target can then overwrite an end that is still to be copied.
                ends.append(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 5 + len(descriptors)))
                opened.append(ends[-1])
            self.pid = os.posix_spawn(
                argv[0],
                argv,
                {"PATH": os.defpath},
                file_actions=[(os.POSIX_SPAWN_DUP2, end, number) for number, end in enumerate(ends)],
                setpgroup=0,
            )
            try:
                self._pidfd = os.pidfd_open(self.pid)
            except OSError:
                os.kill(self.pid, signal.SIGTERM)
                os.waitpid(self.pid, 0)
                raise
        except OSError:
            for stream in streams:
                stream.close()
            self._close_inputs()
            raise
        finally:
            for descriptor in opened:
                os.close(descriptor)
        asyncio.get_running_loop().add_reader(self._pidfd, self._reap)

    @property
    def running(self) -> bool:
        """Returns whether nsjail has not ended."""
        return not self.exited.is_set()

    async def configure(self, configuration: bytes) -> None:
        """Gives nsjail its configuration, once. The caller sets the bound."""
        await self._write(self._inputs.pop(), configuration)

    async def feed(self, source: bytes) -> None:
        """Gives the idle jail its program, once. The caller sets the bound."""
        await self._write(self._inputs.pop(), source)

    async def said(self, line: re.Pattern[bytes]) -> None:
        """Returns once `line` is on the log, or once nsjail has ended without it. The caller sets the bound."""
        await self._until(lambda: line.search(self.log.data) is not None or not self.running)

    async def ended_or_overflowed(self) -> None:
        """Returns once nsjail has ended or a stream of the program passed its limit. The caller sets the bound."""
        await self._until(lambda: not self.running or self.stdout.overflow or self.stderr.overflow)

    async def end(self) -> None:
        """Ends nsjail if it runs, reaps it and reads the pipes to their ends; once ended, does nothing."""
        streams = (self.stdout, self.stderr, self.log)
        try:
            # SIGTERM lets nsjail end the jail and clean up after it; SIGKILL is for one that is stuck: the kernel then
            # ends the jail, whose process 1 asked for that before the program began and cannot take it back.
            for number in (signal.SIGTERM, signal.SIGKILL):
                if self.running:
                    signal.pidfd_send_signal(self._pidfd, number)
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(STOP_S):
                            await self.exited.wait()
            if self.running:
                raise RuntimeError(
                    f"nsjail {self.pid} did not end {STOP_S:.0f} s after SIGKILL: look at its kernel stack"
                )
            try:
                async with asyncio.timeout(STOP_S):
                    await self._until(lambda: all(stream.ended for stream in streams))
            except TimeoutError:
                log.error("a jail's pipe stayed open after its end: a process is left", nsjail_pid=self.pid)
        finally:
            self._close_inputs()
            for stream in streams:
                stream.close()

    async def _until(self, condition: Callable[[], bool]) -> None:
        """Returns once `condition` holds; it is asked again after each read and at nsjail's end."""
        while not condition():
            change = asyncio.get_running_loop().create_future()
            self._waiters.add(change)
            try:
                await change
            finally:
                self._waiters.discard(change)

    def _changed(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def _write(self, descriptor: int, data: bytes) -> None:
        """Writes all and closes. A reader that has ended is no error: how it ended is on the log."""
        loop = asyncio.get_running_loop()
        writable = asyncio.Event()
        rest = memoryview(data)
        try:
            while rest:
                try:
                    rest = rest[os.write(descriptor, rest) :]
                except BlockingIOError:
                    writable.clear()
                    loop.add_writer(descriptor, writable.set)
                    await writable.wait()
        except BrokenPipeError:
            return
        finally:
            loop.remove_writer(descriptor)
            os.close(descriptor)

    def _close_inputs(self) -> None:
        while self._inputs:
            os.close(self._inputs.pop())

    def _reap(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        _, status, usage = os.wait4(self.pid, 0)
        self.status = os.waitstatus_to_exitcode(status)
        self.cpu_s = usage.ru_utime + usage.ru_stime
        self.exited.set()
        self._changed()

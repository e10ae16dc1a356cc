"""One supervised nsjail process: started, read within bounds, ended and waited for, whatever happens.

The program's two streams and nsjail's log come through three pipes that only this process reads. The program's source
goes in as a sealed memory file, so nothing has to be written while it runs.
"""

import asyncio
import fcntl
import os
import signal
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import structlog

from sandbox.program import STOP_S

log = structlog.get_logger()

LOG_BYTES = 256 * 1024
STARTED = b"program started\n"
"""The line by which `bootstrap.py` says on the log that the program begins."""


class Stream:
    """Reads a pipe to its end and never lets its writer wait for long; keeps the first `limit` bytes.

    `data` is what was kept, `overflow` is set once there was more, `changed` at each read, `ended` at the end.
    """

    def __init__(self, limit: int) -> None:
        self.data = bytearray()
        self.overflow = asyncio.Event()
        self.changed = asyncio.Event()
        self.ended = asyncio.Event()
        self._limit = limit
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
        self.changed.set()
        if len(chunk) > room:
            self.overflow.set()
        if not chunk:
            self.close()

    def close(self) -> None:
        """Stops reading."""
        if not self.ended.is_set():
            self._loop.remove_reader(self._reader)
            os.close(self._reader)
            self.ended.set()


class JailProcess:
    """A running nsjail; leaving the `async with` block ends it and reaps it, also on cancellation.

    Attributes: `stdout` and `stderr` (the program's) and `log` (nsjail's); after the end `status`, nsjail's exit status
    or minus the signal that killed it, and `cpu_s`, the CPU seconds of it and of everything that it waited for.
    """

    status: int
    cpu_s: float

    def __init__(self, argv: list[str], source: bytes, descriptors: Sequence[int], limit: int) -> None:
        """Starts `argv`. Raises OSError where the machine has no more processes or descriptors.

        Args:
            argv: the command. It finds the program's source on descriptor 0, the pipes for the program's standard
                output and error on 1 and 3, for the log on 2, and `descriptors` as 4, 5, ...
            source: the program.
            descriptors: what else the command needs.
            limit: bytes that are kept of each of the program's streams.
        """
        self._exited = asyncio.Event()
        self.stdout, self.stderr, self.log = Stream(limit), Stream(limit), Stream(LOG_BYTES)
        streams = (self.stdout, self.stderr, self.log)
        opened = [stream.writer for stream in streams]
        try:
            stdin = memory_file("program", source)
            opened.append(stdin)
            ends = []
            for end in (stdin, self.stdout.writer, self.log.writer, self.stderr.writer, *descriptors):
                # A copy above all targets: no target can then overwrite an end that is still to be copied.
                ends.append(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 4 + len(descriptors)))
                opened.append(ends[-1])
            self._pid = os.posix_spawn(
                argv[0],
                argv,
                {"PATH": os.defpath},
                file_actions=[(os.POSIX_SPAWN_DUP2, end, number) for number, end in enumerate(ends)],
                setpgroup=0,
            )
            try:
                self._pidfd = os.pidfd_open(self._pid)
            except OSError:
                os.kill(self._pid, signal.SIGTERM)
                os.waitpid(self._pid, 0)
                raise
        except OSError:
            for stream in streams:
                stream.close()
            raise
        finally:
            for descriptor in opened:
                os.close(descriptor)
        asyncio.get_running_loop().add_reader(self._pidfd, self._reap)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.shield(asyncio.ensure_future(self._end()))

    @property
    def running(self) -> bool:
        """nsjail has not ended."""
        return not self._exited.is_set()

    async def started(self) -> None:
        """Returns once the program runs, or once nsjail has ended without it. The caller sets the bound."""
        while STARTED not in self.log.data and self.running:
            self.log.changed.clear()
            await _first(self.log.changed, self._exited)

    async def ended_or_overflowed(self) -> None:
        """Returns once nsjail has ended or a stream of the program passed its limit. The caller sets the bound."""
        await _first(self._exited, self.stdout.overflow, self.stderr.overflow)

    async def _end(self) -> None:
        """Ends nsjail if it runs, and reads the pipes to their ends."""
        streams = (self.stdout, self.stderr, self.log)
        try:
            # SIGTERM lets nsjail end the jail and clean up after it; SIGKILL is for one that is stuck: the kernel then
            # ends the jail, whose process 1 asked for that before the program began and cannot take it back.
            for number in (signal.SIGTERM, signal.SIGKILL):
                if self.running:
                    signal.pidfd_send_signal(self._pidfd, number)
                    await _first(self._exited, timeout_s=STOP_S)
            if self.running:
                raise RuntimeError(
                    f"nsjail {self._pid} did not end {STOP_S:.0f} s after SIGKILL: look at its kernel stack"
                )
            try:
                async with asyncio.timeout(STOP_S):
                    for stream in streams:
                        await stream.ended.wait()
            except TimeoutError:
                log.error("a jail's pipe stayed open after its end: a process is left", nsjail_pid=self._pid)
        finally:
            for stream in streams:
                stream.close()

    def _reap(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        _, status, usage = os.wait4(self._pid, 0)
        self.status = os.waitstatus_to_exitcode(status)
        self.cpu_s = usage.ru_utime + usage.ru_stime
        self._exited.set()


def memory_file(name: str, content: bytes) -> int:
    """A descriptor, opened for reading only, of a memory file that nobody can change."""
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with os.fdopen(os.dup(descriptor), "wb") as file:
            file.write(content)
        seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
        return os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(descriptor)


async def _first(*events: asyncio.Event, timeout_s: float | None = None) -> None:
    """Waits until one of `events` is set or `timeout_s` seconds are over."""
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()

"""Finished results on their way to the result stream: published in order, kept while the bus is away or full.

    rollout ── store ──▶ queue in memory ──▶ result stream
                             │ refused once: everything that waits, and what comes, is in a file as well
    an actor that starts ────┘ takes over the files that dead ones left, before anything of its own

A rollout keeps its slot until its result is stored. So queue and file never hold more than `actor.max_rollouts` results
beside those that were taken over, and an actor without a free slot pulls no tickets. The learner unblocks it by purging, or
the bus by coming back. A result may be stored twice; the learner takes the first.

A result that is larger than the server's messages can never be stored. It goes to a file of its own, a dead letter says so,
and its ticket ends with a failure.
"""

import asyncio
import contextlib
import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import BinaryIO

import msgpack
import nats.errors
import structlog

from bus.codec import MessageError, decode, encode
from bus.connection import Bus
from bus.messages import Failure, Trajectory
from configs.schema import MOST_MESSAGE_BYTES
from runtime.files import try_lock, write_whole

log = structlog.get_logger()

PATIENCE_S = 3600.0
TOO_LARGE = "result too large"
"""Reason of the failure that takes the place of a result which no message can hold."""

Result = Trajectory | Failure


@dataclass(eq=False)
class _PendingResult:
    result: Result
    adopted: bool = False
    in_file: bool = False
    stored: asyncio.Future[Result] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Outbox:
    """One actor's; `run` publishes what `store` brings."""

    def __init__(self, bus: Bus, folder: Path, name: str) -> None:
        """`folder` is shared with the other actors of this run on this host."""
        self._bus = bus
        self._folder = folder
        self._path = folder / f"{name}-{os.getpid()}.results"
        self._pending: deque[_PendingResult] = deque()
        self._filled = asyncio.Event()
        self._file: FileIO | None = None
        self._adopted: list[BinaryIO] = []
        self.taken_over: set[int] = set()
        """Tickets whose results were taken over and are stored: whoever gets one again has nothing to do."""

    def __len__(self) -> int:
        """Returns the number of results that are not stored yet."""
        return len(self._pending)

    async def store(self, result: Result) -> Result:
        """Returns what the stream has now: `result` or, where no message can hold it, a failure.

        Cancelled, it leaves the result where it is: it is still published.
        """
        pending = _PendingResult(result)
        self._pending.append(pending)
        if self._file is not None:
            self._write()
        self._filled.set()
        return await pending.stored

    async def run(self) -> None:
        """Publishes until cancelled. Raises BusError where the stream takes nothing for `PATIENCE_S` seconds."""
        self._adopt()
        while True:
            while not self._pending:
                self._filled.clear()
                await self._filled.wait()
            pending = self._pending[0]
            try:
                await self._bus.publish_until_stored(self._bus.names.results, pending.result, PATIENCE_S, self.keep)
            except nats.errors.MaxPayloadError:
                if isinstance(pending.result, Failure):
                    raise
                pending.result = await self._set_aside(pending.result)
                continue
            self._pending.popleft()
            if pending.adopted:
                self.taken_over.add(pending.result.ticket)
            if not pending.stored.done():
                pending.stored.set_result(pending.result)
            if not self._pending:
                self._discard()

    async def _set_aside(self, result: Trajectory) -> Failure:
        """Keeps a result that no message can hold for people, and returns the failure with which its ticket ends."""
        data = encode(result)
        detail = (
            f"{len(data):,} bytes, the bus takes {self._bus.client.max_payload:,}: raise max_payload of its servers"
        )
        path = self._folder / f"ticket-{result.ticket}.too-large"
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_whole(path, data, mode=0o600)
        except OSError as error:
            log.error("a result that is too large is lost", ticket=result.ticket, error=str(error))
        log.error("a result is too large for the bus", ticket=result.ticket, detail=detail, file=str(path))
        with contextlib.suppress(nats.errors.Error):
            await self._bus.dead_letter(self._bus.names.stream("RESULTS"), 0, data, f"ticket {result.ticket}: {detail}")
        return Failure(
            ticket=result.ticket,
            group=result.group,
            reason=TOO_LARGE,
            detail=detail,
            attempts=1,
            actor=result.actor,
            published_at=self._bus.clock.now(),
            run=result.run,
        )

    def _adopt(self) -> None:
        """Takes over the results in files that nobody holds any more."""
        for path in sorted(self._folder.glob("*.results")):
            try:
                file = path.open("rb")
            except FileNotFoundError:
                continue  # Another actor that starts was faster, and is done.
            if not try_lock(file):
                file.close()
                continue
            self._adopted.append(file)
            results = list(_read(file))
            log.info("publishing what an earlier actor could not", file=str(path), results=len(results))
            for result in results:
                self._pending.append(_PendingResult(result, adopted=True, in_file=True))
        if not self._pending:
            self._discard()

    def keep(self) -> None:
        """Keeps what waits in the file as well, from now on until the queue is empty."""
        if self._file is None and self._pending:
            log.warning("results that are not stored yet are kept", results=len(self), file=str(self._path))
        self._write()

    def _write(self) -> None:
        """Appends what waits and is in no file; what a full disk does not take is tried again with the next refusal."""
        waiting = [pending for pending in self._pending if not pending.in_file]
        if not waiting:
            return
        try:
            if self._file is None:
                self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                # Without a buffer: what could not be written must not be tried again when the file is closed.
                self._file = self._path.open("wb", buffering=0)
                try_lock(self._file)
            for pending in waiting:
                _append(self._file, msgpack.packb(encode(pending.result)))
                pending.in_file = True
        except OSError as error:
            log.error("results are kept in memory alone", file=str(self._path), error=str(error))

    def _discard(self) -> None:
        """Removes the files: everything is stored."""
        for file in (*self._adopted, *([self._file] if self._file else [])):
            Path(file.name).unlink(missing_ok=True)
            file.close()
        self._adopted, self._file = [], None


def _append(file: FileIO, data: bytes) -> None:
    """Appends `data` and forces it to the disk, or leaves the file as it was: half a result would hide those behind it.

    Raises OSError.
    """
    end = file.seek(0, os.SEEK_END)
    left = memoryview(data)
    try:
        while left:
            left = left[file.write(left) :]
        # Some file systems say only now that there was no room.
        os.fsync(file.fileno())
    except OSError:
        file.truncate(end)
        raise


def _read(file: BinaryIO) -> Iterator[Result]:
    """Yields the results of a file that are whole: a crash may have cut the last one short."""
    try:
        for data in msgpack.Unpacker(file, max_buffer_size=2 * MOST_MESSAGE_BYTES):
            yield decode(data, Trajectory, Failure)
    except (MessageError, ValueError, msgpack.UnpackException) as error:
        log.error("kept results are damaged, their tickets are worked on again", file=file.name, error=str(error))

"""The results of a run in the order of its result stream: read, judged, archived, and in the end purged.

    result stream ──▶ readable? ──▶ of this run, within its limits? ──▶ answers an open ticket? ──▶ counts: ledger, archive
                         └── no: dead letters ──┘                          └── no: ignored, and counted by reason

`ResultLog` alone decides whether a result counts. It takes results one at a time, so that the batch of a step is formed at
the first position of the log at which it can be. Results that the archive holds and the bus no longer does come first.

Actors are held back while the stream is full. A checkpoint lets the results go that it covers; `fills_up` says when one is
due before its time.
"""

import asyncio
import time
from collections import deque
from pathlib import Path

import nats.js.errors
import numpy as np
import structlog
from nats.js.api import StreamState

from bus.codec import MessageError, decode
from bus.connection import TRANSIENT_ERRORS, Bus
from bus.log_reader import LogReader
from bus.messages import Failure, Trajectory
from configs.schema import RolloutConfig
from learner.tickets.archive import Archive, CheckpointError, Mark, last_archived, raw_archive
from learner.tickets.filters import is_finite
from learner.tickets.ledger import Ledger
from runtime.files import write_whole

log = structlog.get_logger()

READ_AHEAD = 64
LOOK_EVERY_S = 10.0
"""How often a learner that waits looks whether the result stream fills up."""


class ResultLog:
    """Brings the results of one run into the ledger. Only the learner that holds the run's folder may open it."""

    def __init__(self, bus: Bus, ledger: Ledger, folder: Path, rollout: RolloutConfig, vocabulary: int) -> None:
        """`folder` is the archive's; `rollout` and `vocabulary` are what results are held against."""
        self._bus = bus
        self._ledger = ledger
        self._folder = folder
        self._rollout = rollout
        self._vocabulary = vocabulary
        self._stream = bus.names.stream("RESULTS")
        self._lost_file = folder / "lost-with-the-bus"
        self._unread: deque[tuple[int, bytes]] = deque()
        self._look_at = time.monotonic() + LOOK_EVERY_S
        self._archive: Archive
        self._reader: LogReader

    async def state(self) -> StreamState:
        """Returns the state of the result stream. Raises what nats-py raises."""
        return (await self._bus.js.stream_info(self._stream)).state

    def require_whole(self, before: StreamState, position: int) -> None:
        """Checks that no result is missing between the checkpoint, at `position`, and the bus; changes nothing.

        An earlier learner may still be running and purge, so `before` is the stream's state from before the checkpoint was
        read.

        Raises CheckpointError where results are missing, or where the archive is another run's.
        """
        self._require_whole(before, position, last_archived(self._folder, self._bus.address.run))

    async def open(self, mark: Mark) -> None:
        """Opens archive and stream behind the ledger's position; `mark` is where the archive was at the checkpoint.

        Raises CheckpointError as `require_whole` does, and where the archive does not come to `mark`.
        """
        self._archive = Archive(self._folder, mark)
        state = await self.state()
        self._require_whole(state, self._ledger.position, self._archive.last)
        known = max(self._ledger.position, self._archive.last, self._lost_up_to())
        if state.last_seq < known:
            self._archive.cut(2**64)
            await self._skip(state.last_seq, known)
        else:
            # What a checkpoint covers stays, also where it was not purged.
            self._archive.cut(max(state.first_seq, self._ledger.position + 1))
            known = max(self._ledger.position, self._archive.last)
        self._unread.extend(raw_archive(self._folder, after=self._ledger.position))
        self._reader = LogReader(self._bus, self._stream, self._bus.names.results, known + 1)

    async def take(self, version: int) -> bool:
        """Takes the next result; returns whether there was one within half a second.

        `version` names the archive's file: it is the one whose batch is being collected.
        """
        if not self._unread:
            self._unread.extend(await self._reader.read(READ_AHEAD, timeout_s=0.5))
        if not self._unread:
            return False
        self._judge(version, *self._unread.popleft())
        return True

    async def recover(self) -> bool:
        """Has the stream go on where reading is, if it has lost what was read; returns whether it had.

        Results that were stored since then are lost as well: their tickets are issued again (`learner.tickets.lost`). Raises
        BusError, what nats-py raises.
        """
        last = (await self.state()).last_seq
        if last >= self._reader.position:
            return False
        await self._skip(last, self._reader.position)
        return True

    async def _skip(self, last: int, known: int) -> None:
        log.warning("the bus has lost results that were read", stream_ends_at=last, known_up_to=known)
        # The archive is the only copy now. What was read and is not in it (ignored, or not judged yet) is lost if this
        # learner dies: the next one must not take that for another learner's doing.
        self.sync()
        write_whole(self._lost_file, f"{known}\n")
        await self._bus.skip_to("RESULTS", known + 1)

    def _lost_up_to(self) -> int:
        """Returns up to which sequence the bus has lost what the archive lacks; 0 where it has lost nothing."""
        return int(self._lost_file.read_text()) if self._lost_file.exists() else 0

    async def fills_up(self) -> bool:
        """Returns whether results that only a checkpoint lets go take up half of their stream; asks every `LOOK_EVERY_S`.

        Without that checkpoint actors would wait for room in the stream, and the learner for actors.
        """
        if time.monotonic() < self._look_at:
            return False
        self._look_at = time.monotonic() + LOOK_EVERY_S
        try:
            info = await self._bus.js.stream_info(self._stream)
        except (*TRANSIENT_ERRORS, nats.js.errors.APIError) as error:
            log.warning("result stream out of reach", error=str(error))
            return False
        if 2 * info.state.bytes <= (info.config.max_bytes or 0) or info.state.first_seq > self._ledger.position:
            return False
        log.warning("the result stream fills up: a checkpoint before its time", bytes=info.state.bytes)
        return True

    def sync(self) -> Mark:
        """Forces the archive to the disk; returns where it is: after this a checkpoint may count on it."""
        self._archive.sync()
        return self._archive.mark

    async def purge(self) -> None:
        """Takes the results off the bus that were taken. Only what a checkpoint covers may leave it."""
        try:
            # Up to, not including, the sequence.
            await self._bus.js.purge_stream(self._stream, seq=self._ledger.position + 1)
        except (*TRANSIENT_ERRORS, nats.js.errors.APIError) as error:
            log.warning("results were not purged, the next checkpoint does it", error=str(error))

    async def close(self) -> None:
        """Ends the reading."""
        await self._reader.close()

    def _judge(self, version: int, sequence: int, data: bytes) -> None:
        try:
            result = decode(data, Trajectory, Failure)
            require_usable(result, self._bus.address.run, self._rollout, self._vocabulary)
        except MessageError as error:
            self._ledger.position = sequence
            self._ledger.ignored["unreadable"] += 1
            self._dead_letter(sequence, data, str(error))
            return
        if isinstance(result, Trajectory) and not is_finite(result):
            # A copy for people; its ticket ends here, as filtered.
            self._dead_letter(sequence, data, "log-probabilities that are not finite")
        ignored = self._ledger.accept(sequence, result)
        if ignored is None:
            self._archive.append(version, sequence, result)
        else:
            log.info("result ignored", ticket=result.ticket, reason=ignored)

    def _dead_letter(self, sequence: int, data: bytes, reason: str) -> None:
        asyncio.get_running_loop().create_task(self._bus.dead_letter(self._stream, sequence, data, reason))

    def _require_whole(self, before: StreamState, position: int, archived: int) -> None:
        known = max(position, archived, self._lost_up_to())
        if before.first_seq > known + 1:
            raise CheckpointError(
                f"the results {known + 1} to {before.first_seq - 1} of run {self._bus.address.run} were used by another "
                f"learner and are not in {self._folder.parent}: resume in the folder that holds its checkpoints, or put "
                "back what is missing of them"
            )


def require_usable(result: Trajectory | Failure, run: str, rollout: RolloutConfig, vocabulary: int) -> None:
    """Raises MessageError where `result` is not of `run`, or breaks what its tickets ask for.

    Whoever may answer tickets can write whatever decodes: such a result would train on something else than this run's
    policy sampled, or would stop the learner.

    Args:
        rollout: limits and sampling that every ticket of the run carries.
        vocabulary: token ids of the model are below it.
    """
    if result.run != run:
        raise MessageError(f"a result of run {result.run[:64]!r}, this is {run!r}")
    if isinstance(result, Failure):
        if result.response_length > rollout.max_response_tokens:
            raise MessageError(
                f"a failure after {result.response_length} response tokens, the limit is {rollout.max_response_tokens}"
            )
        return
    largest = np.maximum.reduce(result.tokens)
    if largest >= vocabulary:
        raise MessageError(f"token id {largest}, the model's end at {vocabulary - 1}")
    if result.temperature != rollout.temperature:
        raise MessageError(f"sampled at temperature {result.temperature}, the tickets ask for {rollout.temperature}")
    if len(result.tool_calls) > rollout.max_tool_calls:
        raise MessageError(f"{len(result.tool_calls)} tool calls, the limit is {rollout.max_tool_calls}")
    if result.prompt_length > rollout.max_prompt_tokens or result.response_length > rollout.max_response_tokens:
        raise MessageError(
            f"{result.prompt_length} prompt and {result.response_length} response tokens, the limits are "
            f"{rollout.max_prompt_tokens} and {rollout.max_response_tokens}"
        )

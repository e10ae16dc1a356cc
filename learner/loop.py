"""The learner: the asyncio side of training, one step after another.

    read results until the batch is ready --> train (in a thread) --> copy weights --> checkpoint --> read results ...
                                                                        |
                      meanwhile, in a task of its own: publish the weights, then issue the tickets that they admit

It waits for results (unblocked by actors; `learner.batch_timeout_s` without any new one is an error), for the bus (bounded
requests), for its own training thread, and with the next copy for the version before to be published. A version's tickets go
out after its manifest: a learner that was deposed issues none. It holds at most (max_staleness + 1) batches of trajectories.
What it does follows from its checkpoint and the result log alone: results are taken one at a time, in log order, and the
batch is formed at the first position at which it can be.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
from nats.js.api import StreamState

from bus.codec import MessageError, decode
from bus.connection import TRANSIENT_ERRORS, Bus, BusError
from bus.log_reader import LogReader
from bus.messages import Failure, Trajectory
from bus.metrics import MetricsWriter, record_metrics, run_of
from bus.presence import Announcer, last_sign
from configs.schema import RunConfig
from learner.checkpoints import CheckpointError, Checkpoints
from learner.folder_lock import sole_learner
from learner.step_metrics import batch_metrics
from learner.steps import Steps
from learner.tickets.archive import Archive, last_archived, raw_archive
from learner.tickets.dispatcher import Dispatcher
from learner.tickets.filters import is_finite
from learner.tickets.ledger import Batch
from learner.tickets.lost import LostTickets
from learner.tickets.usable import require_usable
from learner.weight_publisher import WeightPublisher
from runtime.waiting import done_or_stopped
from tasks.problems import ProblemOrder

if TYPE_CHECKING:
    from learner.training.trainer import Trainer

log = structlog.get_logger()

READ_AHEAD = 64
STOP_S = 20.0
"""For what cannot be broken off (a checkpoint, a request to a bus that is away) once the learner is told to stop."""
LOOK_AT_RESULTS_S = 10.0
"""How often a learner that waits looks whether the result stream fills up."""


class Learner:
    """Trains until `learner.steps` steps are done or it is told to stop."""

    def __init__(
        self,
        config: RunConfig,
        bus: Bus,
        weights_bus: Bus,
        trainer: "Trainer",
        problems: ProblemOrder,
        folder: Path,
        announcer: Announcer,
    ) -> None:
        self._config = config
        self._bus = bus
        self._trainer = trainer
        self._folder = folder
        self._announcer = announcer
        # Freed memory stays with the thread that had it: several in turn would hold several times as much.
        self._thread = ThreadPoolExecutor(1, "train")
        self._steps = Steps(config, trainer, folder)
        self._ledger = self._steps.ledger
        self._dispatcher = Dispatcher(bus, config, problems, self._ledger)
        self._lost = LostTickets(bus, self._ledger, self._dispatcher, announcer.id)
        self._checkpoints = Checkpoints(folder / "checkpoints", config.learner.checkpoint)
        self._weights = WeightPublisher(weights_bus, config.weights, trainer)
        self._release: asyncio.Task[None] | None = None
        self._metrics = MetricsWriter(bus, "learner", announcer.id, emulated=config.emulated)
        self._unread: deque[tuple[int, bytes]] = deque()
        self._look_at_results = time.monotonic() + LOOK_AT_RESULTS_S

    async def run(self, stop: asyncio.Event) -> bool:
        """Returns True once all steps are done, False when stopped before. Raises what it cannot recover from."""
        async with asyncio.TaskGroup() as group:
            background = [
                group.create_task(record_metrics(self._bus, self._folder / "metrics.jsonl")),
                group.create_task(self._weights.answer_requests()),
            ]
            try:
                done = await self._train_until(stop)
                if done:
                    await self._announcer.say("exporting the model")
                    await asyncio.to_thread(self._trainer.export, self._folder / "model")
                await asyncio.sleep(1.0)  # The last metrics come back from the bus to the recorder.
            finally:
                for task in (*background, self._release):
                    if task is not None:
                        task.cancel()
        return done

    async def _train_until(self, stop: asyncio.Event) -> bool:
        """`_train`, but for no longer than `STOP_S` after `stop`: what it is in then ends with the process, as by a kill."""
        training = asyncio.create_task(self._train(stop))
        try:
            if await done_or_stopped(training, stop, STOP_S):
                return training.result()
        except asyncio.CancelledError:
            training.cancel()
            await asyncio.gather(training, return_exceptions=True)
            raise
        log.warning("told to stop, and left in the middle", state=self._announcer.state)
        return False

    async def _train(self, stop: asyncio.Event) -> bool:
        # A learner in another run's folder, or without its checkpoint, must not end the writing of one that is right.
        if (found := run_of(self._folder / "metrics.jsonl")) not in (None, self._bus.address.run):
            raise CheckpointError(f"{self._folder} holds metrics of run {found}, this is {self._bus.address.run}")
        before = await self._results()
        _, state = self._newest_checkpoint()
        archived = last_archived(self._folder / "results", self._bus.address.run)
        # That one may go on meanwhile: what was purged before is on the disk now, what the disk counts is stored by then.
        self._require_results(before, await self._results(), state["ledger"]["position"] if state else 0, archived)
        # Ends the writing of an earlier learner that still lives; what it has written is read once it is gone.
        await self._weights.open()
        async with sole_learner(self._folder, self._config.learner.batch_timeout_s):
            return await self._train_alone(stop)

    async def _train_alone(self, stop: asyncio.Event) -> bool:
        self._archive = Archive(self._folder / "results")
        version = await asyncio.to_thread(self._resume)
        reader = await self._open_log()
        await self._announcer.say(f"publishing weights of step {version}")
        release = await self._begin(version)
        while version < self._config.learner.steps:
            started = time.monotonic()
            batch = await self._next_batch(reader, version, release, stop)
            if batch is None:
                return False
            waited = time.monotonic() - started
            await self._announcer.say(f"training step {version + 1} of {self._config.learner.steps}")
            of_batch = batch_metrics(batch, time.time())
            trained = await self._unless_stopped(partial(self._steps.train, batch), stop)
            if trained is None:
                return False
            await release
            version += 1
            release = await self._begin(version)
            seconds = time.monotonic() - started
            balance = {f"tickets_{name}": float(count) for name, count in self._ledger.balance().items()}
            values = of_batch | trained | self._weights.metrics() | balance
            values |= {"wait_seconds": waited, "step_seconds": seconds, "idle_ratio": waited / seconds}
            self._announcer.rates = {name: trained[name] for name in ("train_tokens_per_s",) if name in trained}
            await self._metrics.write(values, step=version)
            log.info("step done", step=version, **{name: round(value, 4) for name, value in values.items()})
            if version % self._config.learner.checkpoint.every == 0 or version == self._config.learner.steps:
                await release
                await self._checkpoint(version, values)
        await reader.close()
        return True

    async def _begin(self, version: int) -> asyncio.Task[None]:
        """Copies the weights of `version` and starts to publish them, and then to issue the tickets that they admit."""
        self._ledger.admit(version)
        await self._weights.stage()

        async def release() -> None:
            await self._weights.publish(version)
            self._announcer.version = self._weights.version
            await self._dispatcher.issue()

        self._release = asyncio.create_task(release(), name=f"release-{version}")
        return self._release

    def _newest_checkpoint(self) -> tuple[Path, dict[str, Any] | None]:
        """Raises CheckpointError where it cannot be read or is another run's."""
        found = self._checkpoints.newest_state()
        if found is None:
            return Path(), None
        newest, state = found
        if state["run"] != self._bus.address.run:
            raise CheckpointError(
                f"{newest} is of run {state['run']}, this is {self._bus.address.run}: use that run's own folder"
            )
        return newest, state

    def _resume(self) -> int:
        """Goes back to the newest checkpoint, if there is one; returns the number of steps done."""
        newest, state = self._newest_checkpoint()
        if state is None:
            return 0
        self._steps.restore(state)
        self._trainer.load(newest)
        log.info("resumed", checkpoint=str(newest), step=state["step"], position=self._ledger.position)
        return int(state["step"])

    async def _open_log(self) -> LogReader:
        """The result log from the checkpoint on: first what the archive holds of it and the bus no longer does."""
        state = await self._results()
        self._require_results(state, state, self._ledger.position, self._archive.last)
        self._archive.cut(state.first_seq)
        known = max(self._ledger.position, self._archive.last)
        self._unread.extend(raw_archive(self._folder / "results", after=self._ledger.position))
        return LogReader(self._bus, self._bus.names.stream("RESULTS"), self._bus.names.results, known + 1)

    async def _results(self) -> StreamState:
        return (await self._bus.js.stream_info(self._bus.names.stream("RESULTS"))).state

    def _require_results(self, before: StreamState, after: StreamState, position: int, archived: int) -> None:
        """Holds the result stream, as it was before and after the folder was read, against what the folder has.

        Raises CheckpointError where the bus lost results that the checkpoint, at `position`, counts, and where some have
        left it that the archive, which ends at `archived`, does not hold.
        """
        if after.last_seq < position:
            raise CheckpointError(
                f"the checkpoint is at result {position}, but the stream of results ends at {after.last_seq}: "
                "the bus lost its storage, so this run cannot go on; its archive can be trained from with `zerotir replay`"
            )
        known = max(position, archived)
        if before.first_seq > known + 1:
            raise CheckpointError(
                f"the results {known + 1} to {before.first_seq - 1} of run {self._bus.address.run} were used by another "
                f"learner and are not in {self._folder}: resume in the folder that holds its checkpoints, or put back what "
                "is missing of them"
            )

    async def _next_batch(
        self, reader: LogReader, version: int, release: asyncio.Task[None], stop: asyncio.Event
    ) -> Batch | None:
        """Reads results in log order until the batch of `version` is ready; None when told to stop.

        Raises what `release` raised: without it no results will come.
        """
        last_result = said = time.monotonic()
        while self._ledger.ready(version) is None:
            if stop.is_set():
                return None
            if release.done():
                release.result()
            self._bus.require_connection()
            if not self._unread:
                self._unread.extend(await reader.read(READ_AHEAD, timeout_s=0.5))
            await self._lost.look()
            await self._relieve(version, release)
            # One at a time: the batch must be formed at the first position of the log at which it is ready.
            if self._unread:
                self._accept(version, *self._unread.popleft())
                last_result = time.monotonic()
            if time.monotonic() - last_result > self._config.learner.batch_timeout_s:
                have, need = self._ledger.progress()
                raise BusError(
                    f"no result on {self._bus.names.results} in {self._config.learner.batch_timeout_s:.0f} s while waiting "
                    f"for the batch of step {version + 1} ({have} of {need} there). "
                    f"Actors: {await last_sign(self._bus, 'actor')}. Sandboxes: {await last_sign(self._bus, 'sandbox')}. "
                    "See `zerotir status`"
                )
            if time.monotonic() - said > 1.0:
                said = time.monotonic()
                have, need = self._ledger.progress()
                self._announcer.state = f"collecting batch {version + 1}: {have} of {need}"
        batch = self._ledger.take(version)
        # What `learner.tickets.audit` makes of the archive must be the same.
        log.info("batch taken", step=batch.step, position=self._ledger.position, digest=batch.digest)
        return batch

    def _accept(self, version: int, sequence: int, data: bytes) -> None:
        try:
            result = decode(data, Trajectory, Failure)
            require_usable(result, self._bus.address.run, self._config.rollout, self._trainer.vocabulary)
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
        asyncio.get_running_loop().create_task(
            self._bus.dead_letter(self._bus.names.stream("RESULTS"), sequence, data, reason)
        )

    async def _relieve(self, version: int, release: asyncio.Task[None]) -> None:
        """Writes a checkpoint before its time where the results that only it lets go take up half of their stream.

        Without it actors would wait for room, and this learner for them.
        """
        if time.monotonic() < self._look_at_results:
            return
        self._look_at_results = time.monotonic() + LOOK_AT_RESULTS_S
        try:
            info = await self._bus.js.stream_info(self._bus.names.stream("RESULTS"))
        except TRANSIENT_ERRORS as error:
            log.warning("result stream out of reach", error=str(error))
            return
        if 2 * info.state.bytes > (info.config.max_bytes or 0) and info.state.first_seq <= self._ledger.position:
            log.warning("the result stream fills up: a checkpoint before its time", bytes=info.state.bytes)
            await release
            await self._checkpoint(version, {})

    async def _checkpoint(self, version: int, metrics: dict[str, float]) -> None:
        await self._weights.require_head()
        await self._announcer.say(f"writing the checkpoint of step {version}")
        self._archive.sync()
        state = {"run": self._bus.address.run, **self._steps.state()}
        await asyncio.to_thread(self._checkpoints.write, version, self._trainer.save, state, metrics)
        try:
            # Only what a checkpoint covers leaves the bus; purging is up to, not including, the sequence.
            await self._bus.js.purge_stream(self._bus.names.stream("RESULTS"), seq=self._ledger.position + 1)
        except TRANSIENT_ERRORS as error:
            log.warning("results were not purged, the next checkpoint does it", error=str(error))

    async def _unless_stopped[T](self, work: Callable[[], T], stop: asyncio.Event) -> T | None:
        """Runs `work` in the training thread; None as soon as `stop` is set, although it goes on until the process ends."""
        working = asyncio.get_running_loop().run_in_executor(self._thread, work)
        return working.result() if await done_or_stopped(working, stop) else None

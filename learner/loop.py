"""The learner: the asyncio side of training, one step after another.

    issue tickets --> read results until the batch is ready --> train (in a thread) --> publish weights --> checkpoint
         ^                                                                                     |
         +-------------------------------------------------------------------------------------+

It waits for results (unblocked by actors; `learner.batch_timeout_s` without any new one is an error), for the bus (bounded
requests) and for its own training thread. It holds at most (max_staleness + 1) batches of trajectories. What it
does follows from its checkpoint and the result log alone: results are taken one at a time, in log order, and the batch is
formed at the first position at which it can be.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path

import structlog

from bus.codec import MessageError, decode
from bus.connection import Bus, BusError
from bus.log_reader import LogReader
from bus.logs import log_version
from bus.messages import Failure, Trajectory
from bus.metrics import MetricsWriter, record_metrics
from bus.presence import Announcer
from bus.weights import WeightWriter
from configs.schema import RunConfig
from learner.archive import Archive
from learner.checkpoints import Checkpoints
from learner.dispatcher import Dispatcher
from learner.ledger import Batch, Ledger
from learner.report import batch_metrics
from learner.trainer import Trainer
from learner.weights import WeightImage
from tasks.problems import ProblemOrder

log = structlog.get_logger()

READ_AHEAD = 64


class Learner:
    """Trains until `learner.steps` steps are done or it is told to stop."""

    def __init__(
        self,
        config: RunConfig,
        bus: Bus,
        trainer: Trainer,
        problems: ProblemOrder,
        folder: Path,
        announcer: Announcer,
    ) -> None:
        settings = config.learner
        self._config = config
        self._bus = bus
        self._trainer = trainer
        self._folder = folder
        self._announcer = announcer
        self._ledger = Ledger(
            settings.batch_groups,
            settings.samples_per_problem,
            settings.max_staleness,
            settings.steps,
            settings.algorithm.drop_no_signal,
        )
        self._dispatcher = Dispatcher(bus, config, problems, self._ledger)
        self._checkpoints = Checkpoints(folder / "checkpoints", settings.checkpoint.keep)
        self._archive = Archive(folder / "results")
        self._writer = WeightWriter(bus)
        self._image = WeightImage()
        self._metrics = MetricsWriter(bus, "learner", announcer.id)
        self._unread: deque[tuple[int, bytes]] = deque()

    async def run(self, stop: asyncio.Event) -> bool:
        """True when all steps are done, False when stopped before. Raises what the bus or the trainer cannot mend."""
        recording = asyncio.create_task(record_metrics(self._bus, self._folder / "metrics.jsonl"))
        try:
            done = await self._train(stop)
            if done:
                await self._announcer.say("exporting the model")
                await asyncio.to_thread(self._trainer.policy.export, self._folder / "model")
            await asyncio.sleep(1.0)  # The last metrics come back from the bus to the recorder.
            return done
        finally:
            recording.cancel()

    async def _train(self, stop: asyncio.Event) -> bool:
        version = await asyncio.to_thread(self._resume)
        await self._writer.open()
        # The whole log that this learner's own messages could lie behind is read from its checkpoint on.
        reader = LogReader(
            self._bus, self._bus.names.stream("RESULTS"), self._bus.names.results, self._ledger.position + 1
        )
        await self._announcer.say(f"publishing weights of step {version}")
        published = await self._publish_weights(version)
        # Tickets of groups that a checkpoint holds as issued may not have reached the stream.
        await self._dispatcher.issue(range(self._ledger.issued_groups))
        while version < self._config.learner.steps:
            started = time.monotonic()
            await self._dispatcher.issue(self._ledger.admit(version))
            batch = await self._next_batch(reader, version, stop)
            if batch is None:
                return False
            waited = time.monotonic() - started
            await self._announcer.say(f"training step {version + 1} of {self._config.learner.steps}")
            groups = [list(group) for group in batch.trained]
            trained = await _unless_stopped(partial(self._trainer.train, groups, version), stop)
            if trained is None:
                return False
            version += 1
            published = await self._publish_weights(version)
            seconds = time.monotonic() - started
            balance = {f"tickets_{name}": float(count) for name, count in self._ledger.balance().items()}
            values = batch_metrics(batch) | trained | published | balance
            values |= {"wait_seconds": waited, "step_seconds": seconds, "idle_ratio": waited / seconds}
            await self._metrics.write(values, step=version)
            log.info("step done", step=version, **{name: round(value, 4) for name, value in values.items()})
            if version % self._config.learner.checkpoint.every == 0 or version == self._config.learner.steps:
                await self._checkpoint(version)
        await reader.close()
        return True

    def _resume(self) -> int:
        """Goes back to the newest checkpoint, if there is one; returns the number of steps done."""
        newest = self._checkpoints.newest()
        if newest is None:
            return 0
        state = self._checkpoints.read(newest)
        self._ledger.restore(state["ledger"])
        self._trainer.policy.load(newest)
        log.info("resumed", checkpoint=str(newest), step=state["step"], position=self._ledger.position)
        return int(state["step"])

    async def _next_batch(self, reader: LogReader, step: int, stop: asyncio.Event) -> Batch | None:
        """Reads results in log order until the batch of `step` is ready; None when told to stop."""
        last_result = said = time.monotonic()
        while self._ledger.ready(step) is None:
            if stop.is_set():
                return None
            if self._bus.lost.is_set():
                raise BusError(
                    f"the bus at {self._bus.address.url} did not come back in {self._bus.config.reconnect_s:.0f} s"
                )
            if not self._unread:
                self._unread.extend(await reader.read(READ_AHEAD, timeout_s=0.5))
            # One at a time: the batch must be formed at the first position of the log at which it is ready.
            if self._unread:
                self._accept(step, *self._unread.popleft())
                last_result = time.monotonic()
            if time.monotonic() - last_result > self._config.learner.batch_timeout_s:
                have, need = self._ledger.progress()
                raise BusError(
                    f"no result in {self._config.learner.batch_timeout_s:.0f} s while waiting for the batch of step "
                    f"{step + 1} ({have} of {need} there): are actors and sandboxes running? See `zerotir status`"
                )
            if time.monotonic() - said > 1.0:
                said = time.monotonic()
                have, need = self._ledger.progress()
                self._announcer.state = f"collecting batch {step + 1}: {have} of {need}"
        return self._ledger.take(step)

    def _accept(self, step: int, sequence: int, data: bytes) -> None:
        try:
            result = decode(data, Trajectory, Failure)
        except MessageError as error:
            self._ledger.position = sequence
            self._ledger.ignored["unreadable"] += 1
            asyncio.get_running_loop().create_task(
                self._bus.bury(self._bus.names.stream("RESULTS"), sequence, data, str(error))
            )
            return
        ignored = self._ledger.accept(sequence, result)
        if ignored is None:
            self._archive.append(step, sequence, result)
        else:
            log.info("result ignored", ticket=result.ticket, reason=ignored)

    async def _publish_weights(self, version: int) -> dict[str, float]:
        started = time.monotonic()
        tensors, data = await asyncio.to_thread(self._image.fill, self._trainer.policy.named_weights())
        manifest = await self._writer.write(version, tensors, data)
        log_version(str(manifest.version))
        self._announcer.version = str(manifest.version)
        seconds = time.monotonic() - started
        log.info("weights published", seconds=round(seconds, 2), megabytes=manifest.nbytes // 2**20)
        return {"weight_sync_seconds": seconds, "weight_bytes": manifest.nbytes}

    async def _checkpoint(self, version: int) -> None:
        await self._announcer.say(f"writing the checkpoint of step {version}")
        self._archive.sync()
        state = {"ledger": self._ledger.state()}
        await asyncio.to_thread(self._checkpoints.write, version, self._trainer.policy.save, state)
        # Only what a checkpoint covers leaves the bus; purging is up to, not including, the sequence.
        await self._bus.js.purge_stream(self._bus.names.stream("RESULTS"), seq=self._ledger.position + 1)


async def _unless_stopped[T](work: Callable[[], T], stop: asyncio.Event) -> T | None:
    """Runs `work` in a thread; None as soon as `stop` is set, although the thread goes on until the process ends."""
    working = asyncio.create_task(asyncio.to_thread(work))
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait((working, stopping), return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    return working.result() if working.done() else None

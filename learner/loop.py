"""The learner: the asyncio side of training, one step after another.

    take results until the batch is ready --> train (in a thread) --> copy weights --> checkpoint --> take results ...
                                                                        |
             meanwhile, in a task of its own: publish the weights, issue the tickets that they admit, write a snapshot

The learner waits for results (unblocked by actors; `learner.batch_timeout_s` without any new one is an error), for the bus
(bounded requests), for its own training thread, and before it copies weights for the earlier version to be published. A
version's tickets are issued after its manifest, so a learner that was deposed issues none. At most (max_staleness + 1)
batches of trajectories are in memory. What the learner does follows from its checkpoint and the result log alone
(`learner.tickets.result_log`).
"""

import asyncio
import shutil
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from bus.connection import Bus, BusError
from bus.metrics import MetricsRecorder, MetricsWriter, run_of
from bus.presence import Announcer, last_sign
from bus.run_record import forget_end, record_end
from configs.schema import RunConfig
from learner.alarm_keeper import AlarmKeeper
from learner.bus_loss import BusLoss
from learner.checkpoints import CheckpointError, Checkpoints
from learner.folder_lock import sole_learner
from learner.step_metrics import batch_metrics
from learner.steps import Steps
from learner.tickets.archive import START, Mark
from learner.tickets.dispatcher import Dispatcher
from learner.tickets.ledger import Batch
from learner.tickets.lost import LostTickets
from learner.tickets.result_log import ResultLog
from learner.training.engine_gap import EngineGapError
from learner.weight_publisher import WeightPublisher
from runtime.waiting import done_or_stopped
from tasks.problems import ProblemOrder

if TYPE_CHECKING:
    from learner.training.trainer import Trainer

log = structlog.get_logger()

STOP_S = 20.0
"""Seconds for what cannot be broken off (a checkpoint, a request to a bus that is away) after the stop."""
LAST_METRICS_S = 1.0
"""Seconds for the last metrics to come back from the bus after the stop."""


class Learner:
    """Trains until `learner.steps` steps are done or it is told to stop."""

    def __init__(
        self,
        config: RunConfig,
        bus: Bus,
        weights_bus: Bus,
        trainer: "Trainer",
        template: str,
        problems: ProblemOrder,
        folder: Path,
        announcer: Announcer,
        record: Callable[[], Awaitable[None]],
    ) -> None:
        """`record` writes the run's record (`bus.run_record`) where it is missing."""
        self._config = config
        self._bus = bus
        self._trainer = trainer
        self._folder = folder
        self._announcer = announcer
        # Freed memory stays with the thread that had it: several in turn would hold several times as much.
        self._thread = ThreadPoolExecutor(1, "train")
        self._steps = Steps(config, trainer, folder, folder / "tokens")
        self._ledger = self._steps.ledger
        self._results = ResultLog(bus, self._ledger, folder / "results", config.rollout, trainer.vocabulary)
        self._dispatcher = Dispatcher(bus, config, template, problems, self._ledger)
        self._lost = LostTickets(bus, self._ledger, self._dispatcher, announcer.id)
        self._checkpoints = Checkpoints(folder / "checkpoints", config.learner.checkpoint)
        self._weights = WeightPublisher(weights_bus, config.weights, trainer)
        self._release: asyncio.Task[None] | None = None
        self._done = 0
        """Steps, once all are done."""
        self._reported: float | None = None
        """The time of the last step's metrics."""
        self._metrics = MetricsWriter(bus, "learner", announcer.id, emulated=config.emulated)
        self._alarms = AlarmKeeper(bus, config.alarms, announcer, folder)
        self._recorder = MetricsRecorder(bus, folder / "metrics.jsonl", self._alarms.see)
        self._bus_loss = BusLoss(
            bus, self._results, self._dispatcher, self._lost, self._weights, self._recorder, record
        )

    async def run(self, stop: asyncio.Event) -> bool:
        """Returns True once all steps are done, False when stopped before. Raises what it cannot recover from."""
        async with asyncio.TaskGroup() as group:
            alarms = group.create_task(self._alarms.run())
            background = [
                alarms,
                group.create_task(self._recorder.run()),
                group.create_task(self._weights.answer_requests()),
            ]
            try:
                done = await self._train_until(stop)
                if done:
                    alarms.cancel()
                    await self._announcer.say("exporting the model")
                    await asyncio.to_thread(self._trainer.export, self._folder / "model")
                if self._reported is not None:
                    await self._recorder.recorded(
                        self._reported, self._config.bus.timeout_s if done else LAST_METRICS_S
                    )
                if done:
                    # One that took the run over meanwhile has more to do.
                    await self._weights.require_head()
                    await self._alarms.look(done=True)
                    await record_end(self._bus, self._done)
            finally:
                for task in (*background, self._release):
                    if task is not None:
                        task.cancel()
        return done

    async def _train_until(self, stop: asyncio.Event) -> bool:
        """Trains, but for no longer than `STOP_S` after `stop`: what it is in then ends with the process, as by a kill."""
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
        """Takes the run over and trains all steps that are left; returns False where it was stopped before."""
        await self._take_over()
        async with sole_learner(self._folder, self._config.learner.batch_timeout_s):
            version, archived = await asyncio.to_thread(self._resume)
            await self._results.open(archived)
            if version < self._config.learner.steps:
                await forget_end(self._bus)
            await self._announcer.say(f"publishing weights of step {version}")
            release = await self._begin(version)
            await self._alarms.begin(version)
            while version < self._config.learner.steps:
                started = time.monotonic()
                batch = await self._next_batch(version, release, stop)
                if batch is None:
                    return False
                waited = time.monotonic() - started
                await self._announcer.say(f"training step {batch.step} of {self._config.learner.steps}")
                of_batch = batch_metrics(batch, self._bus.clock.now())
                trained = await self._train_batch(batch, stop)
                if trained is None:
                    return False
                await release
                version = batch.step
                release = await self._begin(version)
                seconds = time.monotonic() - started
                balance = {f"tickets_{name}": float(count) for name, count in self._ledger.balance().items()}
                values = of_batch | trained | self._weights.metrics() | balance
                values |= {"wait_seconds": waited, "step_seconds": seconds, "idle_ratio": waited / seconds}
                values["disk_free_gib"] = shutil.disk_usage(self._folder).free / 2**30
                await self._report(version, values)
                if version % self._config.learner.checkpoint.every == 0 or version == self._config.learner.steps:
                    await release
                    await self._checkpoint(version, values)
            # Of the last version, whose weights a learner that goes on publishes again.
            await release
            await self._results.close()
        self._done = version
        return True

    async def _take_over(self) -> None:
        """Checks that this learner may go on with the run, and ends the writing of an earlier one that still lives.

        A learner in another run's folder, or without its checkpoint, must not end the writing of one that is right. What the
        earlier learner has written is read once it is gone.
        """
        if (found := run_of(self._folder / "metrics.jsonl")) not in (None, self._bus.address.run):
            raise CheckpointError(f"{self._folder} holds metrics of run {found}, this is {self._bus.address.run}")
        before = await self._results.state()
        _, state = self._newest_checkpoint()
        self._results.require_whole(before, state["ledger"]["position"] if state else 0)
        await self._weights.open(self._folder / "epoch")

    async def _report(self, step: int, values: dict[str, float]) -> None:
        self._announcer.rates = {name: values[name] for name in ("train_tokens_per_s",) if name in values}
        self._reported = await self._metrics.write(values, step=step)
        log.info("step done", step=step, **{name: round(value, 4) for name, value in values.items()})

    async def _begin(self, version: int) -> asyncio.Task[None]:
        """Copies the weights of `version` and starts to publish them, to issue the tickets that they admit, and to write a
        snapshot where one is due.
        """
        self._ledger.admit(version)
        await self._weights.stage()

        async def release() -> None:
            await self._weights.publish(version)
            self._announcer.version = self._weights.version
            await self._dispatcher.issue()
            await self._weights.snapshot_if_due()

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
        if "archived" not in state:
            raise CheckpointError(
                f"{newest} was written by another version of this project, which has to go on with it"
            )
        return newest, state

    def _resume(self) -> tuple[int, Mark]:
        """Goes back to the newest checkpoint, if there is one; returns the steps that were done, and where the archive was.

        Raises CheckpointError as `_newest_checkpoint` does.
        """
        newest, state = self._newest_checkpoint()
        if state is None:
            return 0, START
        self._steps.restore(state)
        self._trainer.load(newest)
        log.info("resumed", checkpoint=str(newest), step=state["step"], position=self._ledger.position)
        return int(state["step"]), Mark(*state["archived"])

    async def _next_batch(self, version: int, release: asyncio.Task[None], stop: asyncio.Event) -> Batch | None:
        """Takes results in log order until the batch of `version` is ready; returns None when told to stop.

        Raises what `release` raised: without it no results will come.
        """
        last_result = said = time.monotonic()
        while self._ledger.ready(version) is None:
            if stop.is_set():
                return None
            if release.done():
                release.result()
            self._bus.require_connection()
            await self._bus_loss.look()
            await self._lost.look()
            if await self._results.fills_up():
                await release
                await self._checkpoint(version, {})
            if await self._results.take(version):
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

    async def _train_batch(self, batch: Batch, stop: asyncio.Event) -> dict[str, float] | None:
        """Trains on a batch; returns the trainer's metrics, None when told to stop. Raises what `Steps.train` raises."""
        try:
            same = self._weights.names_of(batch.version)
            return await self._unless_stopped(partial(self._steps.train, batch, same), stop)
        except EngineGapError as error:
            # What an engine loads has the published checksum. Has the learner still these weights?
            if await self._weights.still_staged():
                whose = f"the learner's weights are still those that it published as {self._weights.version}"
            else:
                whose = f"the learner's weights have changed since it published {self._weights.version}: it is at fault"
            raise EngineGapError(f"{error}; {whose}") from error

    async def _checkpoint(self, version: int, metrics: dict[str, float]) -> None:
        await self._weights.require_head()
        await self._announcer.say(f"writing the checkpoint of step {version}")
        archived = self._results.sync()
        state = {"run": self._bus.address.run, "archived": list(archived), **self._steps.state()}
        await asyncio.to_thread(self._checkpoints.write, version, self._trainer.save, state, metrics)
        await self._results.purge()

    async def _unless_stopped[T](self, work: Callable[[], T], stop: asyncio.Event) -> T | None:
        """Runs `work` in the training thread; None as soon as `stop` is set, although it goes on until the process ends."""
        working = asyncio.get_running_loop().run_in_executor(self._thread, work)
        return working.result() if await done_or_stopped(working, stop) else None

"""Publishes the policy's weights while the learner goes on training.

    learner:     ... train step n │ copy │ train step n + 1 ...          │ copy │
    this task:                           └─ compare, compress, publish ─┘

A step waits for the copy to host memory and, if the version before is still being written when the next is due, for that.
The host holds two images of the weights. The bus connection is its own, so that chunks delay no heartbeat.
"""

import asyncio
import time
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
import torch

from bus.connection import Bus
from bus.messages import WeightVersion
from configs.bus import WeightsConfig
from runtime.files import write_whole
from runtime.logs import log_version
from weights.codec import WeightState
from weights.writer import WeightWriter

SNAPSHOT_PAUSE_S = 30.0

if TYPE_CHECKING:
    from learner.training.trainer import Trainer

log = structlog.get_logger()


class WeightPublisher:
    """Stages and publishes one version after another; answers followers that need a snapshot."""

    def __init__(self, bus: Bus, config: WeightsConfig, trainer: "Trainer") -> None:
        self._bus = bus
        self._trainer = trainer
        self._writer = WeightWriter(bus, config)
        self._writing = asyncio.Lock()
        self._record = Path()
        self._staged: WeightState | None = None
        self._metrics: dict[str, float] = {}
        self._snapshot_wanted = asyncio.Event()
        self.version = ""
        """The newest version on the log."""
        self._same: frozenset[WeightVersion] = frozenset()

    async def open(self, record: Path) -> None:
        """Takes over the log; see `WeightWriter.open`. The file `record` holds the run's last epoch and its head's sequence.

        By them no two learners write under one epoch, and sequences never go back, even if the bus has lost the log.
        """
        self._record = record
        if record.exists():
            epoch, sequence = map(int, record.read_text().split())
            await self._writer.open(epoch, sequence)
        else:
            await self._writer.open()
        self._note()

        async def want(_: object) -> None:
            self._snapshot_wanted.set()

        await self._bus.client.subscribe(self._bus.names.snapshot_requests, cb=want)

    async def stage(self) -> None:
        """Copies the policy's weights to the host; `publish` must have returned for those before."""
        started = time.monotonic()
        async with self._writing:
            self._staged = await asyncio.to_thread(self._copy)
        self._metrics["weight_copy_seconds"] = time.monotonic() - started

    async def publish(self, n: int) -> None:
        """Makes the staged weights version `n`. Raises what `WeightWriter.publish` does."""
        assert self._staged is not None
        async with self._writing:
            published = await self._writer.publish(n, self._staged)
            await asyncio.to_thread(self._note)
        self.version = str(published.version)
        self._same = published.same
        log_version(self.version)
        log.info(
            "weights published",
            n=n,
            seconds=round(published.seconds, 2),
            bytes=published.wire_bytes,
            ratio=round(self._staged.layout.nbytes / max(published.wire_bytes, 1), 1),
        )
        self._metrics |= {"weight_sync_seconds": published.seconds, "weight_bytes": published.wire_bytes}

    async def snapshot_if_due(self) -> None:
        """Writes the snapshot that follows the newest version, if one is due: after what waits for the version itself."""
        started = time.monotonic()
        async with self._writing:
            written = await self._writer.snapshot_if_due()
            await asyncio.to_thread(self._note)
        if written:
            log.info("snapshot written", bytes=written, seconds=round(time.monotonic() - started, 2))
        self._metrics["weight_snapshot_bytes"] = written

    @property
    def publishing(self) -> bool:
        """Returns whether weights are being copied or written."""
        return self._writing.locked()

    def _note(self) -> None:
        write_whole(self._record, f"{self._writer.epoch} {self._writer.sequence}\n")

    def names_of(self, n: int) -> frozenset[WeightVersion]:
        """Returns under which names the log holds the weights of version `n`; none while they are not published."""
        return frozenset(version for version in self._same if version.n == n)

    async def still_staged(self) -> bool:
        """Returns whether the policy's weights are, bit for bit, those that were staged last."""
        async with self._writing:
            assert self._staged is not None
            now = WeightState(self._staged.layout)
            await asyncio.to_thread(self._trainer.copy_weights, torch.from_numpy(now.image))
            return bool((now.image == self._staged.image).all())

    async def require_head(self) -> bool:
        """Raises DeposedError where another learner has taken over; see `WeightWriter.require_head`."""
        async with self._writing:
            whole = await self._writer.require_head()
            self._note()
        return whole

    async def answer_requests(self) -> None:
        """Writes a snapshot when followers ask for one, not more often than every `SNAPSHOT_PAUSE_S`, until cancelled."""
        while True:
            await self._snapshot_wanted.wait()
            async with self._writing:
                log.warning("a follower asked for a snapshot", version=self.version)
                await self._writer.snapshot()
                self._note()
                # Those who asked meanwhile have it now.
                self._snapshot_wanted.clear()
            await asyncio.sleep(SNAPSHOT_PAUSE_S)

    def metrics(self) -> dict[str, float]:
        """Returns the metrics of the newest copy and of the newest version that was published."""
        return dict(self._metrics)

    def _copy(self) -> WeightState:
        state = self._writer.spare_state(self._trainer.weight_layout())
        self._trainer.copy_weights(torch.from_numpy(state.image))
        return state

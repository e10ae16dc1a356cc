"""The actor's follower of the weight log: newest version into host memory, then into the engine.

Deltas are applied to a copy in host memory while the engine generates. The engine pauses only to load that copy; versions
that came meanwhile are one load. The copy is an anonymous file in memory, which the engine's workers map through this
process's descriptor, all workers of a host the same one. It is gone with the process, however that ends. It is written
only while no load is under way. An actor never generates with weights that it did not get from the log.
"""

import asyncio
import mmap
import os

import structlog

from actors.engine import Engine
from bus.connection import Bus
from bus.messages import Manifest
from runtime.logs import log_version
from weights.follower import WeightFollower

log = structlog.get_logger()

LEAST_PATIENCE_S, MOST_PATIENCE_S = 30.0, 300.0


class WeightLoader:
    """Keeps an engine at the newest version and says when a version is reached."""

    def __init__(
        self, bus: Bus, engine: Engine, snapshot_location: str | None = None, *, recompute: bool = False
    ) -> None:
        """`snapshot_location` is the configuration's.

        `recompute`: running requests compute their keys and values anew after a load.
        """
        self._engine = engine
        self._recompute = recompute
        self._clock = bus.clock
        self._follower = WeightFollower(bus, snapshot_location, self._allocate)
        self._loaded: Manifest | None = None
        self._descriptor = -1
        self._changed = asyncio.Condition()
        self.sync_seconds = 0.0
        """Seconds of the last update, from the writing of its manifest to the last loaded tensor."""
        self.pause_seconds = 0.0

    @property
    def newest(self) -> int:
        """Returns `n` of the loaded version, -1 before the first."""
        return -1 if self._engine.version is None else self._engine.version.n

    @property
    def bytes_received(self) -> int:
        """Returns the bytes received from the bus since the start."""
        return self._follower.bytes_received

    @property
    def fallbacks(self) -> int:
        """Returns how many versions could not be followed since the start; see `WeightFollower`."""
        return self._follower.fallbacks

    @property
    def patience_s(self) -> float:
        """Returns how long a ticket may wait for its version before it is handed back and its slot is free for others.

        That is twice as long as the last version took to be loaded, within bounds: large models take minutes.
        """
        return min(max(LEAST_PATIENCE_S, 2 * self.sync_seconds), MOST_PATIENCE_S)

    async def reach(self, n: int, timeout_s: float) -> bool:
        """Waits until version `n` or a newer one is loaded; False after `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s), self._changed:
                await self._changed.wait_for(lambda: self.newest >= n)
        except TimeoutError:
            return False
        return True

    async def update(self, timeout_s: float) -> bool:
        """Loads the newest version if there is one that is not loaded; False when none came within `timeout_s`."""
        manifest = await self._follower.advance(timeout_s)
        if manifest is None:
            return False
        before, self._loaded = self._loaded, manifest
        if before is not None and (before.version.n, before.checksum) == (manifest.version.n, manifest.checksum):
            # A learner took over: the same weights under another epoch.
            return True
        assert self._follower.state is not None
        self.pause_seconds = await self._engine.load(
            manifest.version,
            self._follower.state.layout.tensors,
            f"/proc/{os.getpid()}/fd/{self._descriptor}",
            recompute=self._recompute,
        )
        self.sync_seconds = max(0.0, self._clock.now() - manifest.published_at)
        log_version(str(manifest.version))
        log.info(
            "weights loaded",
            seconds=round(self.sync_seconds, 2),
            pause=round(self.pause_seconds, 2),
            received_bytes=self.bytes_received,
        )
        async with self._changed:
            self._changed.notify_all()
        return True

    def _allocate(self, nbytes: int) -> memoryview:
        self.close()
        self._descriptor = os.memfd_create("zerotir-weights")
        os.ftruncate(self._descriptor, nbytes)
        return memoryview(mmap.mmap(self._descriptor, nbytes))

    def close(self) -> None:
        """Gives the memory back."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

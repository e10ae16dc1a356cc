"""The actor's follower of the weight log: newest version into host memory, then into the engine.

The host copy is an anonymous file in memory that the engine's workers map through this process's descriptor, so it is gone
with the process, however that ends; it is written only while no load is under way.
An actor never generates with weights that it did not get from the log.
"""

import asyncio
import mmap
import os
import time

import structlog

from actors.engine import Engine
from bus.connection import Bus
from bus.logs import log_version
from bus.weights import WeightFollower, WeightsError, fetch_weights

log = structlog.get_logger()


class WeightLoader:
    """Keeps an engine at the newest version and says when a version is reached."""

    def __init__(self, bus: Bus, engine: Engine) -> None:
        self._bus = bus
        self._engine = engine
        self._follower = WeightFollower(bus)
        self._descriptor = -1
        self._memory: mmap.mmap | None = None
        self._changed = asyncio.Condition()
        self.sync_seconds = 0.0
        """Of the last update, from its manifest to the last loaded tensor."""
        self.pause_seconds = 0.0
        self.bytes_received = 0

    @property
    def newest(self) -> int:
        """`n` of the loaded version, -1 before the first."""
        return -1 if self._engine.version is None else self._engine.version.n

    async def reach(self, n: int, timeout_s: float) -> bool:
        """Waits until version `n` or a newer one is loaded; False after `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s), self._changed:
                await self._changed.wait_for(lambda: self.newest >= n)
        except TimeoutError:
            return False
        return True

    async def update(self, timeout_s: float) -> bool:
        """Loads the newest version if there is one that is not loaded; False when none came within `timeout_s`.

        A version that was purged or damaged on the way is logged, and the newest one is tried again.
        """
        manifest = await self._follower.next_manifest(timeout_s)
        if manifest is None:
            return False
        started = time.monotonic()
        try:
            await fetch_weights(self._bus, manifest, self._room_for(manifest.nbytes), self._bus.config.timeout_s * 10)
        except WeightsError as error:
            log.warning("weights not usable, taking the newest again", error=str(error))
            self._follower.forget()
            return False
        self.pause_seconds = await self._engine.load(
            manifest.version, manifest.tensors, f"/proc/{os.getpid()}/fd/{self._descriptor}"
        )
        self.sync_seconds = time.monotonic() - started
        self.bytes_received += manifest.nbytes
        log_version(str(manifest.version))
        log.info(
            "weights loaded", seconds=round(self.sync_seconds, 2), pause=round(self.pause_seconds, 2),
            megabytes=manifest.nbytes // 2**20,
        )  # fmt: skip
        async with self._changed:
            self._changed.notify_all()
        return True

    def _room_for(self, nbytes: int) -> memoryview:
        if self._memory is None or len(self._memory) != nbytes:
            self.close()
            self._descriptor = os.memfd_create("zerotir-weights")
            os.ftruncate(self._descriptor, nbytes)
            self._memory = mmap.mmap(self._descriptor, nbytes)
        return memoryview(self._memory)

    def close(self) -> None:
        """Gives the memory back."""
        if self._memory is not None:
            self._memory = None
            os.close(self._descriptor)

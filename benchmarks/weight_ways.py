"""Ways to bring weights to followers, timed: the log's deltas, full snapshots over the same stream, files on a disk."""

import asyncio
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import numpy as np

from bus.address import BusAddress
from bus.connection import Bus, open_bus
from bus.streams import create_streams
from configs.bus import BusConfig, WeightsConfig
from weights.codec import Layout, WeightState
from weights.writer import WeightWriter


class SnapshotWriter(WeightWriter):
    """Every version a snapshot: what the deltas are compared with."""

    def _continues(self, n: int, state: WeightState) -> bool:
        return False


class Followers:
    """Processes that say when they hold a version."""

    def __init__(self, processes: list[asyncio.subprocess.Process]) -> None:
        self._processes = processes
        self.peak_mb = 0.0

    async def hold(self, n: int) -> float:
        """Waits until all hold version `n`; returns when the last one did."""

        async def one(process: asyncio.subprocess.Process) -> float:
            assert process.stdout is not None
            while True:
                said = json.loads(await asyncio.wait_for(process.stdout.readline(), 300))
                self.peak_mb = max(self.peak_mb, said["peak_mb"])
                if said["n"] >= n:
                    return float(said["at"])

        return max(await asyncio.gather(*(one(process) for process in self._processes)))


@contextlib.asynccontextmanager
async def followers(count: int, *arguments: str) -> AsyncIterator[Followers]:
    """Starts so many processes of `benchmarks.weight_follower`; yields them once they wait."""
    command = [sys.executable, "-m", "benchmarks.weight_follower", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = [
        await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, env=environment)
        for _ in range(count)
    ]
    try:
        readers = Followers(processes)
        await readers.hold(-1)
        yield readers
    finally:
        for process in processes:
            process.kill()
        await asyncio.gather(*(process.wait() for process in processes))


@contextlib.asynccontextmanager
async def fresh_run(server: BusAddress, name: str, folder: Path) -> AsyncIterator[tuple[Bus, Path]]:
    """Yields a run with streams of its own, and its address file."""
    address = server.model_copy(update={"run": name})
    path = folder / f"{name}.json"
    address.write(path)
    async with open_bus(address, BusConfig(timeout_s=60), "writer") as bus:
        await create_streams(bus.js, bus.names, BusConfig(max_results_bytes=2**20), lease_s=60)
        yield bus, path
        for kind in ("TICKETS", "RESULTS", "WEIGHTS", "METRICS", "DEADLETTERS"):
            await bus.js.delete_stream(bus.names.stream(kind))


async def over_the_log(
    server: BusAddress,
    folder: Path,
    kind: type[WeightWriter],
    count: int,
    layout: Layout,
    images: Sequence[Path],
    chunk_bytes: int = WeightsConfig().chunk_bytes,
) -> dict:
    """Returns the median seconds from the copy in host memory to the last follower, over all versions but the first."""
    name = f"{kind.__name__.lower()}-{count}-{time.time_ns()}"
    async with (
        fresh_run(server, name, folder) as (bus, address),
        followers(count, "log", str(address)) as readers,
    ):
        writer = kind(bus, WeightsConfig(snapshot_every=1000, chunk_bytes=chunk_bytes))
        await writer.open()
        seconds, wire = [], []
        for n, image in enumerate(images):
            state = writer.spare_state(layout)
            state.image[:] = np.fromfile(image, np.uint8)
            started = time.time()
            wire.append((await writer.publish(n, state)).wire_bytes)
            seconds.append(await readers.hold(n) - started)
        return {
            "seconds": statistics.median(seconds[1:]),
            "slowest_seconds": max(seconds[1:]),
            "wire_bytes": statistics.median(wire[1:]),
            "follower_peak_mb": readers.peak_mb,
        }


async def over_files(folder: Path, count: int, layout: Layout, images: Sequence[Path]) -> dict:
    """Measures the same by safetensors files, written by one process and read by all others, on a disk that they share."""
    import torch
    from safetensors.torch import save_file

    with tempfile.TemporaryDirectory(dir=folder) as place:
        async with followers(count, "files", place) as readers:
            seconds = []
            for n, image in enumerate(images):
                whole = torch.from_numpy(np.fromfile(image, np.uint8))
                tensors = {
                    t.name: whole[t.offset : t.offset + t.nbytes].view(getattr(torch, t.dtype)).reshape(t.shape)
                    for t in layout.tensors
                }
                started = time.time()
                save_file(tensors, Path(place, "draft"))
                Path(place, "draft").rename(Path(place, f"{n}.safetensors"))
                seconds.append(await readers.hold(n) - started)
                Path(place, f"{n}.safetensors").unlink()
            return {
                "seconds": statistics.median(seconds[1:]),
                "slowest_seconds": max(seconds[1:]),
                "wire_bytes": layout.nbytes,
                "follower_peak_mb": readers.peak_mb,
            }

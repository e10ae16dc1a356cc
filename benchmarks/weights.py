"""Weight synchronisation: the log's deltas against full snapshots over the same stream and against files on a disk.

    python -m benchmarks.weights [--followers 1 4 16] [--parts 1e-6 1e-5 1e-4 chunks lost billion]

SmolLM2-135M in the learner's own engine takes real optimiser steps at three learning rates; each version goes to 1, 4 and
16 followers, processes of their own on this machine. Also the size of messages that does best, the pause of a running
engine, what publishing costs the learner, and a synthetic state of a billion parameters. Prints a table and writes
`benchmarks/results/weights.json`.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.weight_phases import recorded
from benchmarks.weight_ways import SnapshotWriter, fresh_run, over_files, over_the_log
from bus.address import BusAddress
from bus.server import embedded_server
from configs.bus import BusConfig
from weights.writer import WeightWriter

CHUNK_SIZES = (64 * 2**10, 256 * 2**10, 2**20, 2 * 2**20, 4 * 2**20)
"""Sizes of a message that are tried, bytes; snapshots travel in segments of a MiB, so smaller ones change nothing there."""
CHUNK_RATE, CHUNK_FOLLOWERS = "1e-5", 4
RATES = ("1e-6", "1e-5", "1e-4")
PARTS = (*RATES, "chunks", "lost", "billion")
RESULTS = Path(__file__).parent / "results" / "weights.json"


async def phase(*arguments: str) -> dict:
    """Runs one phase in a process of its own, so that its memory is its own and gone afterwards."""
    command = [sys.executable, "-m", "benchmarks.weight_phases", *arguments]
    done = await asyncio.to_thread(subprocess.run, command, stdout=subprocess.PIPE, timeout=600, check=True)
    return json.loads(done.stdout.splitlines()[-1])


async def on_a_run(server: BusAddress, folder: Path, name: str, *arguments: str) -> dict:
    async with fresh_run(server, f"{name}-{time.time_ns()}", folder) as (_, address):
        return await phase(name, str(address), *arguments)


async def main(parts: list[str], counts: list[int]) -> None:
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"ways": []}
    results |= {"cores": os.cpu_count(), "date": time.strftime("%Y-%m-%d")}

    def keep(**part: object) -> None:
        results.update(part)
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")

    def keep_way(way: str, count: int, row: dict) -> None:
        ways = [each for each in results["ways"] if (each["way"], each["followers"]) != (way, count)]
        keep(ways=[*ways, {"way": way, "followers": count, "nbytes": layout.nbytes, **row}])

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        async with embedded_server(folder / "nats", BusConfig(), "none") as (server, _):
            for lr in RATES:
                if lr not in parts and not (lr == CHUNK_RATE and "chunks" in parts):
                    continue
                (folder / lr).mkdir()
                await phase("record", lr, str(folder / lr))
                layout, images = recorded(folder / lr)
                for count in counts if lr in parts else []:
                    row = await over_the_log(server, folder, WeightWriter, count, layout, images)
                    keep_way(f"deltas at {lr}", count, row)
                if lr == RATES[0]:
                    # Neither depends on what has changed.
                    for count in counts:
                        row = await over_the_log(server, folder, SnapshotWriter, count, layout, images)
                        keep_way("snapshots", count, row)
                        keep_way("files", count, await over_files(folder, count, layout, images))
                    keep(pause=await on_a_run(server, folder, "pause", str(folder / lr)))
                if lr == CHUNK_RATE and "chunks" in parts:
                    rows = [
                        {"way": way, "chunk_bytes": size, "followers": CHUNK_FOLLOWERS}
                        | await over_the_log(server, folder, kind, CHUNK_FOLLOWERS, layout, images, size)
                        for way, kind in (("deltas", WeightWriter), ("snapshots", SnapshotWriter))
                        for size in CHUNK_SIZES
                    ]
                    keep(chunks=rows)
                for image in images:
                    image.unlink()
            for part in ("lost", "billion"):
                if part in parts:
                    keep(**{part: await on_a_run(server, folder, part)})
    show(results)


def show(results: dict) -> None:
    """Prints the table and the other phases' numbers."""
    files = {row["followers"]: row["seconds"] for row in results["ways"] if row["way"] == "files"}
    print(
        f"{'way':<16} {'followers':>9} {'MiB':>8} {'of full':>8} {'seconds':>8} {'slowest':>8} {'x files':>8} "
        f"{'peak MiB':>9}"
    )
    for row in results["ways"]:
        print(
            f"{row['way']:<16} {row['followers']:9} {row['wire_bytes'] / 2**20:8.2f} "
            f"{'1/' + format(row['nbytes'] / row['wire_bytes'], '.0f'):>8} "
            f"{row['seconds']:8.2f} {row['slowest_seconds']:8.2f} "
            f"{row['seconds'] / files.get(row['followers'], float('nan')):8.2f} {row['follower_peak_mb']:9.0f}"
        )
    for row in results.get("chunks", []):
        print(f"{row['way']:<16} in messages of {row['chunk_bytes'] / 2**20:5.2f} MiB {row['seconds']:8.2f} s")
    print(json.dumps({name: results.get(name) for name in ("pause", "lost", "billion")}, indent=1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--followers", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="the others' numbers stay")
    arguments = parser.parse_args()
    asyncio.run(main(arguments.parts, arguments.followers))

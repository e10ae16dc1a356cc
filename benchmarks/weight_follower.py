"""A follower's process for `benchmarks.weights`: one JSON line a version, when it is held and how much memory that took.

python -m benchmarks.weight_follower log BUS_JSON | files FOLDER
"""

import asyncio
import json
import re
import sys
import time
from pathlib import Path

import structlog

from bus.address import BusAddress
from bus.connection import open_bus
from configs.bus import BusConfig
from weights.follower import WeightFollower


def peak_mb() -> float:
    """Returns the peak of this process's resident memory, MiB."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) / 1024 if found else 0.0


def say(n: int) -> None:
    print(json.dumps({"n": n, "at": time.time(), "peak_mb": peak_mb()}), flush=True)


async def follow_log(address: Path) -> None:
    # Standard output is for the lines that are read.
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    async with open_bus(BusAddress.read(address), BusConfig(timeout_s=60), "follower") as bus:
        follower = WeightFollower(bus)
        say(-1)
        while True:
            manifest = await follower.advance(600)
            assert manifest is not None
            say(manifest.version.n)


def follow_files(folder: Path) -> None:
    import torch
    from safetensors.torch import load_file

    say(-1)
    for n in range(10**6):
        path = folder / f"{n}.safetensors"
        while not path.exists():
            time.sleep(0.01)
        # Mapped until it is read: an engine would read it now.
        copies = {name: tensor.clone() for name, tensor in load_file(path).items()}
        assert all(tensor.dtype == torch.bfloat16 for tensor in copies.values())
        say(n)


if __name__ == "__main__":
    kind, place = sys.argv[1], Path(sys.argv[2])
    if kind == "log":
        asyncio.run(follow_log(place))
    else:
        follow_files(place)

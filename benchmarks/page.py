"""What the page costs a run: steps of the learner and requests to the bus, with the page and without it, in one run.

    python -m benchmarks.page [CONFIG] [--pairs 8] [--seconds 20]

Starts `zerotir up CONFIG` (tiny) with its page, and alternates: the page's process is stopped (SIGSTOP), or it is looked at
as three browsers look, every two seconds: at six curves, at the newest results and all responses to a problem, and at the
lives of the newest step's results. Windows with and without it follow one another, so that what else
changes on the machine changes both. Prints medians and their ratio as Markdown.
"""

import argparse
import asyncio
import contextlib
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx

from bus.address import BusAddress
from bus.connection import open_bus
from bus.metrics import steps_of
from configs.bus import BusConfig

CURVES = [
    f"learner/{name}"
    for name in ("accuracy", "code_ratio", "response_length", "staleness_mean", "behaviour_kl", "step_seconds")
]
START_S = 300.0
SETTLE_S = 20.0
REQUEST_EVERY_S = 0.1


async def look(address: str, run: str, stop: asyncio.Event) -> None:
    """Asks what browsers ask, one for each view, every two seconds."""
    async with httpx.AsyncClient(base_url=address, timeout=60) as client:
        while not stop.is_set():
            now = (await client.get("/api/now", params={"run": run})).json()
            await asyncio.gather(
                *(client.get("/api/curve", params={"run": run, "name": name, "most": 1500}) for name in CURVES)
            )
            found = (await client.get("/api/results", params={"run": run, "step": now["step"]})).json()
            await client.get("/api/lives", params={"run": run, "step": now["step"]})
            for row in found["rows"][:1]:
                group = (await client.get("/api/group", params={"run": run, "group": row["group"]})).json()
                await asyncio.gather(
                    *(client.get("/api/transcript", params={"run": run, "ticket": each["ticket"]}) for each in group)
                )
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(2.0):
                    await stop.wait()


async def window(folder: Path, address: str, page: int, seconds: float, *, looked_at: bool) -> dict[str, float]:
    """Returns seconds a step, and milliseconds of a request to the bus, in a window with the page or without it."""
    os.kill(page, signal.SIGCONT if looked_at else signal.SIGSTOP)
    stop = asyncio.Event()
    looking = asyncio.create_task(look(address, folder.name, stop)) if looked_at else None
    await asyncio.sleep(1.0)
    asked: list[float] = []
    begun = time.time()
    async with open_bus(BusAddress.read(folder / "bus.json").for_role("observer"), BusConfig(), "benchmark") as bus:
        while time.time() < begun + seconds:
            before = time.perf_counter()
            await bus.js.stream_info(bus.names.stream("RESULTS"))
            asked.append(1000 * (time.perf_counter() - before))
            await asyncio.sleep(REQUEST_EVERY_S)
    stop.set()
    if looking is not None:
        await looking
    steps = [record for record in steps_of(folder) if begun <= record["time"] <= begun + seconds]
    return {"step_s": seconds / max(1, len(steps)), "request_ms": statistics.median(asked), "steps": len(steps)}


async def measure(folder: Path, address: str, page: int, pairs: int, seconds: float) -> None:
    """Prints the table."""
    await asyncio.sleep(SETTLE_S)
    with_page: list[dict[str, float]] = []
    without: list[dict[str, float]] = []
    for number in range(pairs):
        # First the one, then the other: a trend of the machine's favours neither.
        for looked_at in (True, False) if number % 2 else (False, True):
            found = await window(folder, address, page, seconds, looked_at=looked_at)
            (with_page if looked_at else without).append(found)
    os.kill(page, signal.SIGCONT)
    print(f"| {'':22} | without | with | ratio of the medians | ratios of pairs, lowest to highest |")
    print("| --- | --- | --- | --- | --- |")
    for name, text in (("step_s", "seconds a step"), ("request_ms", "ms a request to the bus")):
        a, b = ([each[name] for each in windows] for windows in (without, with_page))
        ratios = sorted(y / x for x, y in zip(a, b, strict=True))
        x, y = statistics.median(a), statistics.median(b)
        print(f"| {text:22} | {x:.3f} | {y:.3f} | {y / x:.3f} | {ratios[0]:.3f} to {ratios[-1]:.3f} |")
    print(
        f"\n{sum(each['steps'] for each in (*with_page, *without)):.0f} steps in {2 * pairs} windows of {seconds:.0f} s"
    )


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", default="tiny")
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=20.0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        output = Path(home) / "up.txt"
        with output.open("w") as file:
            overrides = ["--set", "learner.steps=100000", "--set", f"launch.runs_dir={home}/runs"]
            up = subprocess.Popen(
                [sys.executable, "-m", "launch.cli", "up", arguments.config, *overrides], stdout=file, stderr=file
            )
        try:
            deadline = time.monotonic() + START_S
            while not ("  step " in output.read_text() and "page  " in output.read_text()):
                if up.poll() is not None or time.monotonic() > deadline:
                    sys.exit(output.read_text())
                time.sleep(0.5)
            [address] = re.findall(r"page +(http://\S+)", output.read_text())
            folder = (Path(home) / "runs" / "latest").resolve()
            [page] = [
                int(entry.name)
                for entry in Path("/proc").iterdir()
                if entry.name.isdigit() and f"launch.cli page {folder}" in _command(entry)
            ]
            asyncio.run(measure(folder, address, page, arguments.pairs, arguments.seconds))
        finally:
            up.terminate()
            up.wait()


def _command(entry: Path) -> str:
    try:
        return (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


if __name__ == "__main__":
    main()

"""A bus whose disk is full for a while, on a small disk of its own: it stores again once there is room, and all are told."""

import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from bus.address import BusAddress
from bus.connection import BusError, open_bus
from bus.messages import Trajectory
from configs.bus import BusConfig
from tests.factories import trajectory

CONFIG = BusConfig(timeout_s=2, reconnect_s=60)
SETTINGS = ("bus.max_results_bytes=20000000", "bus.max_metrics_bytes=10000000", "learner.batch_groups=1")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", folder], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@contextlib.asynccontextmanager
async def bus_role(run: Path) -> AsyncIterator[BusAddress]:
    overrides = [part for setting in SETTINGS for part in ("--set", setting)]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "launch.cli", "bus", "emulated", "--folder", str(run), *overrides)
    )
    try:
        async with asyncio.timeout(60):
            while not (run / "bus.json").exists():
                assert process.returncode is None
                await asyncio.sleep(0.05)
        yield BusAddress.read(run / "bus.json")
    finally:
        process.terminate()
        await asyncio.wait_for(process.wait(), 60)


def result(ticket: int) -> Trajectory:
    """One of more than 100 KB."""
    return trajectory(2, 8000, ticket=ticket)


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_what_was_refused_while_the_disk_was_full_is_stored_afterwards(disk: Path):
    async with bus_role(disk / "run") as address, open_bus(address.for_role("actor"), CONFIG, "actor") as bus:
        for ticket in range(1, 11):
            await bus.publish_until_stored(bus.names.results, result(ticket), patience_s=30)
        ballast = disk / "ballast"
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while file.write(b"0" * 65536):
                pass
        with pytest.raises(
            BusError, match=r"could not store .*: the bus's disk is full: 0 MiB are left for .*store; make room"
        ):
            await bus.publish_until_stored(bus.names.results, result(11), patience_s=8)
        ballast.unlink()
        await bus.publish_until_stored(bus.names.results, result(12), patience_s=60)
        async with open_bus(address.for_role("learner"), CONFIG, "learner") as learner:
            state = (await learner.js.stream_info(bus.names.stream("RESULTS"))).state
        # The tenth was stored before; the eleventh may have been, in the room that was left.
        assert (state.first_seq, state.messages in (11, 12)) == (1, True)
    records = [json.loads(line) for line in (disk / "run" / "logs" / "bus.jsonl").read_text().splitlines()]
    events = [record["event"] for record in records]
    assert any("could not store a message" in event and "started again" in event for event in events), events

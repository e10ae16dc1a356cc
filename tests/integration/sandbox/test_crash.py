"""A sandbox host that dies in the middle of an execution costs a retry, and what it left is cleared away."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sandbox.cgroups import PREFIX, SERVICE_LEAF, find_hierarchies
from sandbox.client import SandboxClient, statistics
from sandbox.jail import Jail
from tests.integration.sandbox import traces
from tests.integration.sandbox.conftest import CONFIG

SERVED = CONFIG.model_copy(update={"warm": 2, "warm_with_packages": 0, "packages": ()})
ROOT = Path(__file__).parents[3]


@contextlib.asynccontextmanager
async def serving(bus) -> AsyncIterator[asyncio.subprocess.Process]:
    """A service in a process of its own, with its jails waiting; killed at the end."""
    address = bus.address
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.integration.sandbox.serve"),
        *(address.model_dump_json(), SERVED.model_dump_json()),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        assert await asyncio.wait_for(process.stdout.readline(), 60) == b"ready\n"
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def in_flight(bus) -> int:
    return sum(service.in_flight for service in await statistics(bus.client, bus.names.execution))


async def running(bus) -> None:
    async with asyncio.timeout(30):
        while await in_flight(bus) == 0:
            await asyncio.sleep(0.01)


@pytest.mark.slow
async def test_an_execution_on_a_host_that_dies_runs_elsewhere(bus):
    config = SERVED.model_copy(update={"request_timeout_s": 100.0})
    client = SandboxClient(bus.client, bus.names.execution, config)
    async with serving(bus) as first:
        call = asyncio.create_task(client.execute("import time; time.sleep(2); print('done')", 2.5))
        await running(bus)
        first.kill()
        await first.wait()
        # Nothing of it outlives it: its jails end with it.
        await traces.until(lambda: traces.processes() == [])
        async with serving(bus):
            assert (await asyncio.wait_for(call, 100)).stdout == "done\n"


async def test_groups_that_a_killed_service_left_are_cleared_by_the_next(bus):
    before = service_groups()
    async with serving(bus) as service:
        left = service_groups() - before
        assert left
        os.kill(service.pid, signal.SIGKILL)
        await service.wait()
    await traces.until(lambda: traces.processes() == [])
    Jail(SERVED)
    assert not left & service_groups()


async def test_groups_of_a_service_that_lives_are_not_touched(bus):
    before = service_groups()
    async with serving(bus):
        its = service_groups() - before
        Jail(SERVED)
        assert its <= service_groups()
        client = SandboxClient(bus.client, bus.names.execution, SERVED)
        assert (await client.execute("print(1)", 20)).stdout == "1\n"


async def test_a_service_that_ends_takes_its_groups_along():
    before = service_groups()
    jail = Jail(SERVED)
    its = service_groups() - before
    del jail
    assert its
    assert not its & service_groups()


def service_groups() -> set[Path]:
    """The groups of all services here. Skips where there can be none."""
    if Jail(SERVED).cgroups is None:
        pytest.skip("this machine has no cgroups")
    found = find_hierarchies(Path("/proc/self/mountinfo").read_text(), Path("/proc/self/cgroup").read_text())
    bases = {hierarchy.folder for hierarchy in found.values()}
    bases = {base.parent if base.name == SERVICE_LEAF else base for base in bases}
    return {group for base in bases for group in base.glob(f"{PREFIX}*")}

"""Hostile programs through the service: each ends as it must, in time, leaves nothing, and the next execution is whole."""

import asyncio
import os
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from bus.address import BusAddress
from bus.connection import open_bus
from bus.messages import ExecutionResult, Outcome
from configs.bus import BusConfig
from sandbox.client import SandboxClient
from sandbox.jail import Jail
from sandbox.pool import Pool
from sandbox.service import SandboxService
from tests.integration.sandbox import traces
from tests.integration.sandbox.conftest import CONFIG
from tests.integration.sandbox.hostile_excess import EXCESS, MEMORY_TOGETHER, OUTPUT, Hostile
from tests.integration.sandbox.hostile_reach import REACH, SECRET
from tests.integration.sandbox.results import succeeded

SERVED = CONFIG.model_copy(
    update={"warm": 2, "warm_with_packages": 0, "concurrency": 16, "packages": (), "request_timeout_s": 400.0}
)
HONEST = "import builtins, os, math\nprint(os.listdir('/box'), len('abc'), int(6 * 7), math.floor(1.5))"
PROGRAMS = EXCESS | REACH


@dataclass(frozen=True)
class Served:
    """A service, what lies under it, and its client."""

    jail: Jail
    pool: Pool
    service: SandboxService
    client: SandboxClient

    async def honest(self) -> None:
        """An ordinary program gives what it always gives."""
        assert succeeded(await self.client.execute(HONEST, 20.0)) == "['main.py'] 3 42 1\n"

    async def nothing_left(self) -> None:
        """Only the jails that wait for the next program are there."""
        async with asyncio.timeout(60):
            await self.pool.filled()
        traces.assert_none(self.jail, waiting=self.pool.idle(loaded=False))


@pytest.fixture(scope="module")
async def served(server: BusAddress) -> AsyncIterator[Served]:
    os.environ["ZEROTIR_TEST_GOLD"] = SECRET
    jail = Jail(SERVED)
    address = server.model_copy(update={"run": "hostile"})
    async with open_bus(address, BusConfig(), "hostile") as bus, Pool(jail) as pool:
        subject = bus.names.execution
        service = SandboxService(bus.client, subject, pool, SERVED, "sandbox")
        await service.start()
        await pool.filled()
        yield Served(jail, pool, service, SandboxClient(bus.client, subject, SERVED))
        await service.drain(0.0)


def judge(program: Hostile, result: ExecutionResult) -> None:
    assert result.outcome in program.outcomes, result
    assert len(result.stdout) <= SERVED.max_output_bytes
    assert len(result.stderr) <= SERVED.max_output_bytes
    if program.stdout is not None and result.outcome == Outcome.EXITED:
        assert result.stdout == program.stdout


@pytest.mark.parametrize("name", PROGRAMS)
async def test_a_hostile_program_and_the_next(served, name):
    program = PROGRAMS[name]
    async with asyncio.timeout(program.timeout_s + traces.HUNG_S):
        result = await served.client.execute(program.code, program.timeout_s)
    judge(program, result)
    await served.honest()
    await served.nothing_left()
    assert served.service.failures == 0


@pytest.mark.parametrize("name", MEMORY_TOGETHER)
async def test_memory_of_children_together_is_bounded(served, name):
    """The most that was in use at once, by the group's own count."""
    if served.jail.cgroups is None:
        pytest.skip("only cgroups bound them, and this machine has none")
    program = MEMORY_TOGETHER[name]
    running = asyncio.create_task(served.client.execute(program.code, program.timeout_s))
    peak = 0
    while not running.done():
        for leaf in traces.groups(served.jail):
            for file in ("memory.usage_in_bytes", "memory.current"):
                try:
                    peak = max(peak, int((leaf / file).read_text()))
                except OSError:
                    continue
        await asyncio.sleep(0.01)
    judge(program, running.result())
    assert 100 << 20 < peak <= (SERVED.memory_mb + 32) << 20


@pytest.mark.slow
async def test_the_services_memory_is_bounded(served):
    """The most that floods of output hold in the service, beyond what it held before."""
    await asyncio.gather(*(served.client.execute(OUTPUT["both streams in turn"].code, 20.0) for _ in range(16)))
    Path("/proc/self/clear_refs").write_text("5")
    before = resident_mb("VmRSS")
    for program in list(OUTPUT.values())[:7]:
        await asyncio.gather(*(served.client.execute(program.code, 20.0) for _ in range(16)))
    assert resident_mb("VmHWM") - before < 48


def resident_mb(which: str) -> float:
    found = re.search(rf"^{which}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) / 1024


@pytest.mark.slow
async def test_two_hundred_hostile_programs_at_once_beside_honest_ones(served):
    names = list(PROGRAMS)
    chosen = [names[n * 7 % len(names)] for n in range(200)]
    hostile = [served.client.execute(PROGRAMS[name].code, PROGRAMS[name].timeout_s) for name in chosen]
    honest = [served.client.execute(f"print({n} * 2)", 60.0) for n in range(40)]
    results = await asyncio.gather(*hostile, *honest)
    for name, result in zip(chosen, results, strict=False):
        # So many share the cores that the wall may come before any other limit.
        assert result.outcome in (*PROGRAMS[name].outcomes, Outcome.TIMEOUT), (name, result)
    assert [succeeded(result) for result in results[200:]] == [f"{2 * n}\n" for n in range(40)]
    await served.honest()
    await served.nothing_left()
    assert served.service.failures == 0

"""Jails that tests share, and a look at what each execution leaves."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from bus.messages import ExecutionResult
from configs.schema import SandboxConfig
from sandbox.jail import Jail
from sandbox.program import refusal
from tests.integration.sandbox import traces

CONFIG = SandboxConfig(
    memory_mb=traces.MEMORY_MB,
    cpu_s=2,
    max_output_bytes=10_000,
    max_file_mb=4,
    max_code_bytes=128 * 1024,
    cgroups="prefer",
)

Run = Callable[..., Awaitable[ExecutionResult]]


@pytest.fixture(scope="session")
def jail() -> Jail:
    return Jail(CONFIG)


@pytest.fixture
async def run(jail: Jail) -> Run:
    """Runs a program; afterwards looks at what is left."""

    async def run(code: str, timeout_s: float = 20.0) -> ExecutionResult:
        refused = refusal(code, CONFIG)
        if refused is not None:
            return refused
        waiting = await jail.start(loaded=False)
        async with asyncio.timeout(timeout_s + traces.HUNG_S):
            result = await waiting.run(code, timeout_s)
        traces.assert_none(jail)
        return result

    return run

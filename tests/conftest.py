"""Servers and folders that tests share: real ones, started once."""

import itertools
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

from bus.address import BusAddress
from bus.connection import Bus, open_bus
from bus.server import embedded_server
from bus.streams import create_streams
from configs.bus import BusConfig
from tests import environment

# Before PyTorch is imported. Two workers share the cores: a thread that spins at a barrier takes them from the other one.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

_runs = itertools.count(1)

TOGETHER = {
    "tests/end_to_end": "machine",
    "tests/integration/sandbox": "machine",
    "tests/integration/test_engine": "engine",
    "tests/integration/test_evaluation.py": "engine",
}
"""Files that one worker of `pytest -n 2` takes, one after another: they share an engine, or load the whole machine."""


class ByFile(LoadScopeScheduling):
    """A file, or what is `TOGETHER`, goes to one worker; those with most tests first."""

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.partition("::")[0]
        return next((group for begin, group in TOGETHER.items() if path.startswith(begin)), path)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile:
    return ByFile(config, log)


ENVIRONMENT = pytest.StashKey[dict[str, tuple[int, int]]]()


def pytest_sessionstart(session: pytest.Session) -> None:
    if not hasattr(session.config, "workerinput"):
        session.stash[ENVIRONMENT] = environment.files()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> Iterator[None]:
    """Fails the session where a file of the Python environment is not as it was, whatever test did it."""
    result = yield
    if ENVIRONMENT in session.stash:
        before, after = session.stash[ENVIRONMENT], environment.files()
        print(
            f"\nPython environment: {len(after)} files, digest {environment.digest(before)} before, "
            f"{environment.digest(after)} after"
        )
        if lines := environment.changes(before, after):
            print(
                "FAILED: the Python environment has changed (byte code that was missing? `make setup` makes it):",
                *lines[:20],
                sep="\n  ",
            )
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
    return result


@pytest.fixture(scope="session")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[BusAddress]:
    """One nats-server for the whole session."""
    async with embedded_server(tmp_path_factory.mktemp("nats"), BusConfig(), "none") as (address, _):
        async with open_bus(address, BusConfig(), "tests") as bus:
            # When an account's last stream is deleted nats-server takes the account's folder away, a moment later and from
            # under a stream that is being made.
            await bus.js.add_stream(name="stays", subjects=["stays"])
        yield address


@pytest.fixture
async def own_run(tmp_path: Path) -> AsyncIterator[BusAddress]:
    """The master's address of a run on a server of its own, with its streams: here roles have credentials of their own."""
    config = BusConfig(timeout_s=5, max_results_bytes=64 * 1024**2)
    async with embedded_server(tmp_path / "nats", config, "own") as (address, _):
        async with open_bus(address, config, "bus") as bus:
            await create_streams(bus.js, bus.names, config, lease_s=60)
        yield address


@pytest.fixture
def bus_address(server: BusAddress) -> BusAddress:
    """Address of a run that no other test uses, on the shared server."""
    return server.model_copy(update={"run": f"test-{next(_runs)}"})


@pytest.fixture
async def bus(bus_address: BusAddress) -> AsyncIterator[Bus]:
    """A connected bus with the streams of a run of its own."""
    config = BusConfig(timeout_s=5, max_results_bytes=64 * 1024**2)
    async with open_bus(bus_address, config, "test") as bus:
        await create_streams(bus.js, bus.names, config, lease_s=60)
        yield bus
        # The server reserves a stream's bound: runs that stay would use up its room.
        for stream in await bus.js.streams_info():
            if bus.address.run in (stream.config.name or ""):
                await bus.js.delete_stream(stream.config.name or "")


@pytest.fixture
def connection(bus: Bus):
    """The bus's bare NATS client."""
    return bus.client


@pytest.fixture(scope="module")
def process_group() -> Iterator[None]:
    """One of this process alone, for all training engines of a module."""
    from learner.training.ranks import join_process_group, leave_process_group

    assert join_process_group()
    yield
    leave_process_group()

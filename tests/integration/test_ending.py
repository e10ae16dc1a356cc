"""The end of a run, for everybody: who was started for it leaves, and who comes later is told."""

import asyncio
import re
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bus.address import BusAddress
from bus.connection import Bus, open_bus
from bus.presence import Announcer
from bus.run_record import END, RunEnd, forget_end, record_config, record_end, recorded_end
from bus.server import embedded_server
from bus.streams import create_streams
from configs.bus import BusConfig
from configs.loading import dump_config, load_config
from launch import ending
from launch.ending import is_over, wait_for_end
from launch.view_commands import _status
from runtime.words import how_long
from tests.chaos.run import Run, playing
from tests.processes import ZEROTIR

CONFIG = load_config("emulated", ["learner.steps=6"])


@pytest.fixture
async def master(tmp_path: Path) -> AsyncIterator[BusAddress]:
    async with embedded_server(tmp_path / "nats", BusConfig(), "ended") as (address, _):
        async with open_bus(address, BusConfig(), "bus") as bus:
            await create_streams(bus.js, bus.names, BusConfig(), lease_s=60)
            await record_config(bus, CONFIG)
        address.write_all(tmp_path)
        yield address


@pytest.fixture
async def learner(master: BusAddress) -> AsyncIterator[Bus]:
    async with open_bus(master.for_role("learner"), BusConfig(), "learner") as bus:
        yield bus


async def test_the_end_is_there_until_the_run_goes_on(master: BusAddress, learner: Bus):
    async with open_bus(master.for_role("sandbox"), BusConfig(), "s") as sandbox:
        assert await recorded_end(sandbox) is None
        await forget_end(learner)
        before = learner.clock.now()
        await record_end(learner, 6)
        found = await recorded_end(sandbox)
        assert found is not None
        assert found.steps == 6
        assert before <= found.ended_at <= learner.clock.now()
        await record_end(learner, 8)
        assert await is_over(sandbox, "actor") is not None
        await forget_end(learner)
        assert await recorded_end(sandbox) is None


async def test_an_end_that_cannot_be_read_is_none(master: BusAddress, learner: Bus):
    async with open_bus(master, BusConfig(), "bus") as bus:
        await (await bus.js.key_value(bus.names.run_bucket)).put(END, b'{"steps": -1, "ended_at": "now"}')
    assert await recorded_end(learner) is None


async def test_a_sandbox_stays_while_an_evaluator_is_alive(master: BusAddress, learner: Bus):
    await record_end(learner, 6)
    async with (
        open_bus(master.for_role("sandbox"), BusConfig(), "s") as sandbox,
        open_bus(master.for_role("evaluator"), BusConfig(), "e") as evaluator,
    ):
        assert isinstance(await is_over(sandbox, "sandbox"), RunEnd)
        await Announcer(evaluator, "evaluator", "e").announce()
        assert await is_over(sandbox, "sandbox") is None
        assert await is_over(evaluator, "evaluator") is not None


async def test_who_waits_hears_of_it(learner: Bus, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ending, "LOOK_EVERY_S", 0.02)
    ended = asyncio.Event()
    waiting = asyncio.create_task(wait_for_end(learner, "actor", ended, None))
    await asyncio.sleep(0.1)
    assert not ended.is_set()
    await record_end(learner, 6)
    async with asyncio.timeout(60):
        await waiting
    assert ended.is_set()


async def test_who_is_for_a_run_that_goes_on_heeds_the_next_end(learner: Bus, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ending, "LOOK_EVERY_S", 0.02)
    await record_end(learner, 6)
    ended = asyncio.Event()
    waiting = asyncio.create_task(wait_for_end(learner, "actor", ended, await recorded_end(learner)))
    await asyncio.sleep(0.2)
    await forget_end(learner)
    await asyncio.sleep(0.2)
    assert not ended.is_set()
    # Also one of fewer steps than it is for.
    await record_end(learner, 7)
    async with asyncio.timeout(60):
        await waiting
    assert ended.is_set()


async def test_the_end_is_written_once_the_bus_has_its_bucket_again(master: BusAddress, learner: Bus):
    async with open_bus(master, BusConfig(), "bus") as bus:
        await bus.js.delete_stream(f"KV_{bus.names.run_bucket}")
        writing = asyncio.create_task(record_end(learner, 6))
        await asyncio.sleep(0.3)
        assert not writing.done()
        await create_streams(bus.js, bus.names, BusConfig(), lease_s=60)
        async with asyncio.timeout(60):
            await writing
    assert await recorded_end(learner) is not None


@pytest.mark.parametrize("role", ["actor", "sandbox"])
async def test_a_role_that_comes_later_is_told_and_leaves(learner: Bus, tmp_path: Path, role: str):
    await record_end(learner, 6)
    (tmp_path / "run.yaml").write_text(dump_config(CONFIG))
    command = [*ZEROTIR, role, "run.yaml", "--bus", "bus.json", "--id", "late"]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 0
    assert "the run is done, since" in done.stderr
    assert "learner.steps" in done.stderr


async def test_status_says_that_it_is_finished(master: BusAddress, learner: Bus):
    async with open_bus(master.for_role("observer"), BusConfig(timeout_s=10), "o") as observer:
        assert "none alive" in await _status(observer)
        await record_end(learner, 6)
        text = await _status(observer)
    assert re.search(r", finished \d.* ago after 6 steps", text)
    assert "none alive" not in text


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(-1, "0 s"), (0.4, "0 s"), (61, "1 min 1 s"), (3600, "1 h 0 min"), (90_061, "1 d 1 h"), (59.7, "1 min 0 s")],
)
def test_lengths_of_time(seconds: float, words: str):
    assert how_long(seconds) == words


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_everybody_leaves_a_run_that_is_done_and_it_goes_on_with_more_steps(tmp_path: Path):
    """Roles apart, as on a cluster: with 0, and without being told; a run with more steps takes new ones."""
    async with playing(Run(tmp_path, 6, 0), actors=2) as run:
        await run.finish()
        left = [run.sandbox, *run.actors]
        assert [await asyncio.wait_for(role.process.wait(), 60) for role in left] == [0, 0, 0]
        for role in left:
            assert run.logs("the run is done", role.id)
        run.check()
        longer = load_config(str(tmp_path / "chaos.yaml"), ["learner.steps=10"])
        (tmp_path / "chaos.yaml").write_text(dump_config(longer))
        run.config = longer
        # They may come before the learner that goes on.
        for role_name in ("sandbox", "actor", "learner"):
            await run.start(role_name)
        await run.finish()
        left = [run.sandbox, run.actors[-1]]
        assert [await asyncio.wait_for(role.process.wait(), 60) for role in left] == [0, 0]
        run.check()

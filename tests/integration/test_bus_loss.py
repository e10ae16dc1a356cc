"""A bus that loses what it had acknowledged, under a learner in this process: nothing is lost or trained twice."""

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Self

import pytest
from structlog.testing import capture_logs

from actors.leases import TicketSource
from bus.address import BusAddress
from bus.connection import TRANSIENT_ERRORS, Bus, open_bus
from bus.messages import Trajectory
from bus.metrics import steps_of
from bus.run_record import record_config, require_same_model
from bus.server import embedded_server
from bus.streams import create_streams
from configs.bus import BusConfig
from configs.loading import load_config
from learner import bus_loss
from learner.tickets import lost
from learner.tickets.archive import read_archive
from tests.integration.test_learner_state import ledger_of, make_learner, result
from weights.follower import WeightFollower

STEPS = 12
CONFIG = load_config(
    "emulated",
    [f"learner.steps={STEPS}", "learner.checkpoint.every=4", "learner.batch_groups=2", "learner.batch_timeout_s=60"],
)
BUS = BusConfig(timeout_s=5, reconnect_s=60, max_results_bytes=10**7, max_metrics_bytes=10**7)
A_STEP = 8
"""Tickets of one step."""


class Life:
    """A run: a server that can be stopped, its learner, and one who answers as many tickets as it is told to."""

    def __init__(self, home: Path) -> None:
        self.store = home / "nats" / "store"
        self.folder = home / "run"
        self.folder.mkdir()
        self._home = home
        self.address: BusAddress
        self._starts = 0
        self._server = contextlib.AsyncExitStack()
        self._stack = contextlib.AsyncExitStack()
        self.bus: Bus
        self.answered: list[int] = []
        self._may_answer = asyncio.Semaphore(0)
        self._answering: asyncio.Task[None] | None = None
        self.learning: asyncio.Task[bool] | None = None

    async def __aenter__(self) -> Self:
        await self.start_server()
        self.bus = await self._stack.enter_async_context(open_bus(self.address, BUS, "test"))
        self._answering = asyncio.create_task(self._answer())
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in (self._answering, self.learning):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        await self._stack.aclose()
        await self._server.aclose()

    async def start_server(self) -> None:
        known = self.address if self._starts else None
        embedded = embedded_server(self._home / "nats", BUS, "lossy", known, keep_port=True)
        self.address, _ = await self._server.enter_async_context(embedded)
        self._starts += 1
        # As the bus role does whenever its server starts.
        async with open_bus(self.address, BUS, "bus") as bus:
            await create_streams(bus.js, bus.names, BUS, lease_s=60)
            await record_config(bus, CONFIG)

    async def stop_server(self) -> None:
        await self._server.aclose()

    def learn(self) -> None:
        self.learning = asyncio.create_task(make_learner(self.bus, self.folder, CONFIG).run(asyncio.Event()))

    async def answer(self, tickets: int) -> None:
        """Has so many tickets more answered, and waits for it."""
        wanted = len(self.answered) + tickets
        for _ in range(tickets):
            self._may_answer.release()
        await self.until(lambda: len(self.answered) >= wanted)

    def answer_all(self) -> None:
        for _ in range(10_000):
            self._may_answer.release()

    async def _answer(self) -> None:
        ledger, source = ledger_of(CONFIG), TicketSource(self.bus)
        while True:
            await self._may_answer.acquire()
            while not (leased := await source.pull(1, 0.5)):
                pass
            number = leased[0].ticket.number
            await self.bus.publish_until_stored(self.bus.names.results, result(self.bus, ledger, number), patience_s=60)
            await leased[0].done()
            self.answered.append(number)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not condition():
                for task in (self.learning, self._answering):
                    if task is not None and task.done():
                        task.result()
                await asyncio.sleep(0.02)

    async def step(self, number: int) -> None:
        await self.until(lambda: bool(steps := steps_of(self.folder)) and steps[-1]["step"] >= number)


@pytest.fixture
async def life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Life]:
    monkeypatch.setattr(lost, "LOOK_EVERY_S", 0.5)
    async with Life(tmp_path) as life:
        yield life


async def held_by(follower: WeightFollower, n: int) -> None:
    async with asyncio.timeout(60):
        while follower.held is None or follower.held.version.n < n:
            with contextlib.suppress(*TRANSIENT_ERRORS):
                await follower.advance(0.5)


def require_whole(life: Life) -> None:
    """Every ticket was trained on once, and the archive says so in order."""
    assert [step["step"] for step in steps_of(life.folder)] == list(range(1, STEPS + 1))
    final = steps_of(life.folder)[-1]
    assert final["tickets_issued"] == STEPS * A_STEP
    assert final["tickets_trained"] + final["tickets_filtered"] == STEPS * A_STEP
    archived = [each.ticket for _, each in read_archive(life.folder / "results") if isinstance(each, Trajectory)]
    assert sorted(archived) == list(range(1, STEPS * A_STEP + 1))
    sequences = [sequence for sequence, _ in read_archive(life.folder / "results")]
    assert sequences == sorted(set(sequences))


@pytest.mark.parametrize("everything", [False, True], ids=["its last seconds", "everything"])
@pytest.mark.parametrize("restarted", [False, True], ids=["learner goes on", "learner starts again"])
async def test_the_run_goes_on_and_its_balance_closes(life: Life, tmp_path: Path, everything: bool, restarted: bool):
    life.learn()
    follower = WeightFollower(life.bus)
    # Step 3 is done and step 4 begun: what the bus held then.
    await life.answer(3 * A_STEP + 3)
    await life.step(3)
    await life.stop_server()
    shutil.copytree(life.store, tmp_path / "before")
    await life.start_server()
    # The checkpoint of step 4 counts results that the bus will not know of; more are in the archive, and some unread.
    await life.answer(3 * A_STEP + 2)
    await life.step(6)
    await held_by(follower, 6)
    if restarted:
        assert life.learning is not None
        life.learning.cancel()
        await asyncio.gather(life.learning, return_exceptions=True)
    await life.stop_server()
    shutil.rmtree(life.store)
    if not everything:
        shutil.copytree(tmp_path / "before", life.store)
    with capture_logs() as logs:
        await life.start_server()
        if restarted:
            life.learn()
        life.answer_all()
        assert life.learning is not None
        assert await asyncio.wait_for(life.learning, 120)
    if not restarted:
        said = [line["streams"] for line in logs if line["event"].startswith("the bus has lost messages")]
        assert {"TICKETS", "METRICS"} <= set(said[0])
    require_whole(life)
    # Whoever followed the weights goes on, and whoever looks the model up finds it.
    await held_by(follower, STEPS)
    assert await require_same_model(life.bus, {"config.json": "1"}, 0, asyncio.Event())


async def told(logs: list[Any], event: str, times: int = 1) -> None:
    async with asyncio.timeout(60):
        while sum(line["event"].startswith(event) for line in logs) < times:
            await asyncio.sleep(0.02)


async def test_a_learner_that_dies_after_it_has_recovered_is_not_taken_for_another_one(life: Life):
    """What was read last is in no archive, since it did not count, and nowhere else."""
    life.learn()
    with capture_logs() as logs:
        await life.answer(3 * A_STEP + 3)
        await life.step(3)
        for ticket in (1, 2):
            await life.bus.publish(life.bus.names.results, result(life.bus, ledger_of(CONFIG), ticket))
        await told(logs, "result ignored", 2)
        await life.stop_server()
        shutil.rmtree(life.store)
        await life.start_server()
        await told(logs, "the bus has lost messages")
    assert life.learning is not None
    life.learning.cancel()
    await asyncio.gather(life.learning, return_exceptions=True)
    life.learn()
    life.answer_all()
    assert await asyncio.wait_for(life.learning, 120)
    require_whole(life)


async def test_a_stream_that_is_lost_while_the_connection_stays_is_missed(life: Life, monkeypatch: pytest.MonkeyPatch):
    """Its server in a cluster was another one than the learner's; no ticket is blamed for it."""
    monkeypatch.setattr(bus_loss, "LOOK_EVERY_S", 1.0)
    life.learn()
    await life.answer(7 * A_STEP)
    await life.step(7)
    with capture_logs() as logs:
        await life.bus.js.delete_stream(life.bus.names.stream("RESULTS"))
        await create_streams(life.bus.js, life.bus.names, BUS, lease_s=60)
        life.answer_all()
        assert life.learning is not None
        assert await asyncio.wait_for(life.learning, 120)
        await told(logs, "the bus has lost messages")
    require_whole(life)

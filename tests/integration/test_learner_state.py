"""A learner in this process, around a trainer that computes nothing: whose state it takes, and what it lets go when."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest

from actors.leases import TicketSource
from bus.address import BusAddress
from bus.connection import Bus, open_bus
from bus.messages import Trajectory
from bus.presence import Announcer
from bus.run_record import record_model
from bus.streams import create_streams
from configs.bus import BusConfig
from configs.loading import load_config
from configs.schema import RunConfig
from learner.checkpoints import Checkpoints
from learner.loop import Learner
from learner.tickets import result_log
from learner.tickets.archive import Archive, CheckpointError
from learner.tickets.ledger import Ledger
from learner.training.emulated_trainer import EmulatedTrainer
from tasks.problems import ProblemOrder, load_problems
from tests.factories import answer
from weights.writer import DeposedError, WeightWriter

STEPS = 12
CONFIG = load_config(
    "emulated",
    [f"learner.steps={STEPS}", "learner.checkpoint.every=1000", "learner.batch_groups=2", "learner.batch_timeout_s=60"],
)


def make_learner(bus: Bus, folder: Path, config: RunConfig = CONFIG) -> Learner:
    model = folder.parent / "model"
    model.mkdir(exist_ok=True)
    (model / "config.json").write_text('{"vocab_size": 100}')
    problems = ProblemOrder(load_problems(config.tasks.problems, 0), 0)
    record = partial(record_model, bus, {"config.json": "1"}, "{problem}")
    announcer = Announcer(bus, "learner", "learner")
    return Learner(config, bus, bus, EmulatedTrainer(model), "{problem}", problems, folder, announcer, record)


def result(bus: Bus, ledger: Ledger, ticket: int) -> Trajectory:
    return answer(ledger, ticket, reward=float(ticket % 2)).model_copy(update={"run": bus.address.run})


@contextlib.asynccontextmanager
async def answering(bus: Bus, ledger: Ledger) -> AsyncIterator[None]:
    """An actor's part: every ticket is answered as soon as the stream has room."""

    async def answer() -> None:
        source = TicketSource(bus)
        while True:
            for leased in await source.pull(8, 0.5):
                number = leased.ticket.number
                await bus.publish_until_stored(bus.names.results, result(bus, ledger, number), patience_s=60)
                await leased.done()

    task = asyncio.create_task(answer())
    yield
    task.cancel()


def ledger_of(config: RunConfig) -> Ledger:
    settings = config.learner
    return Ledger(settings.batch_groups, settings.group_size, settings.max_staleness, settings.steps, None)  # type: ignore[arg-type]


async def manifests(bus: Bus) -> int:
    return (await bus.js.stream_info(bus.names.stream("WEIGHTS"))).state.messages


async def test_a_result_stream_that_fills_up_before_a_checkpoint_is_due_holds_nobody_for_good(
    bus_address: BusAddress, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(result_log, "LOOK_EVERY_S", 0.1)
    # Room for some twenty of the run's 96 results.
    small = BusConfig(timeout_s=10, max_results_bytes=12_000)
    async with open_bus(bus_address, small, "test") as bus, asyncio.timeout(120):
        await create_streams(bus.js, bus.names, small, lease_s=60)
        (folder := tmp_path / "run").mkdir()
        ledger = ledger_of(CONFIG)
        async with answering(bus, ledger):
            assert await make_learner(bus, folder).run(asyncio.Event())
        state = (await bus.js.stream_info(bus.names.stream("RESULTS"))).state
        assert state.last_seq == STEPS * 2 * 4
        newest = Checkpoints(folder / "checkpoints", CONFIG.learner.checkpoint).newest()
        assert newest is not None
        assert Checkpoints.read(newest)["ledger"]["position"] == state.last_seq
        await bus.js.delete_stream(bus.names.stream("METRICS"))


async def test_a_learner_that_was_deposed_while_it_waited_writes_no_checkpoint_and_purges_nothing(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(result_log, "LOOK_EVERY_S", 0.1)
    (folder := tmp_path / "run").mkdir()
    ledger = ledger_of(CONFIG)
    running = asyncio.create_task(make_learner(bus, folder).run(asyncio.Event()))
    async with asyncio.timeout(60):
        while not await manifests(bus):
            await asyncio.sleep(0.05)
    await WeightWriter(bus, CONFIG.weights).open()
    # More than half of the stream, and not enough for a batch.
    await create_streams(bus.js, bus.names, BusConfig(max_results_bytes=2000), lease_s=60)
    for ticket in (1, 2, 3):
        await bus.publish(bus.names.results, result(bus, ledger, ticket))
    with pytest.raises(ExceptionGroup) as caught:
        await asyncio.wait_for(running, 60)
    assert caught.group_contains(DeposedError)
    assert (await bus.js.stream_info(bus.names.stream("RESULTS"))).state.messages == 3
    assert list((folder / "checkpoints").iterdir()) == []


async def test_another_runs_checkpoint_is_refused_before_anything_is_published(bus: Bus, tmp_path: Path):
    (folder := tmp_path / "run").mkdir()
    state = {"run": "another", "ledger": {"position": 0}}
    Checkpoints(folder / "checkpoints", CONFIG.learner.checkpoint).write(3, lambda _: None, state, {})
    with pytest.raises(ExceptionGroup) as caught:
        await make_learner(bus, folder).run(asyncio.Event())
    assert caught.group_contains(CheckpointError, match=f"is of run another, this is {bus.address.run}")
    assert await manifests(bus) == 0


async def test_another_runs_archive_is_refused_before_anything_is_published(bus: Bus, tmp_path: Path):
    (folder := tmp_path / "run").mkdir()
    ledger = ledger_of(CONFIG)
    Archive(folder / "results").append(0, 1, answer(ledger, 1).model_copy(update={"run": "another"}))
    with pytest.raises(ExceptionGroup) as caught:
        await make_learner(bus, folder).run(asyncio.Event())
    assert caught.group_contains(CheckpointError, match="holds results of run another")
    assert await manifests(bus) == 0


async def test_a_learner_whose_checkpoint_is_gone_says_what_is_missing_and_deposes_nobody(bus: Bus, tmp_path: Path):
    (folder := tmp_path / "run").mkdir()
    ledger = ledger_of(CONFIG)
    async with answering(bus, ledger), asyncio.timeout(120):
        assert await make_learner(bus, folder).run(asyncio.Event())
    before = await manifests(bus)
    (elsewhere := tmp_path / "elsewhere").mkdir()
    with pytest.raises(ExceptionGroup) as caught:
        await make_learner(bus, elsewhere).run(asyncio.Event())
    assert caught.group_contains(CheckpointError, match=f"the results 1 to {STEPS * 8} of run .* are not in")
    assert await manifests(bus) == before
    # With its own folder it sees that everything is done.
    assert await make_learner(bus, folder).run(asyncio.Event())


async def test_tickets_of_a_version_do_not_wait_for_the_snapshot_after_it(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    written = asyncio.Event()

    async def slowly(_: WeightWriter) -> int:
        await written.wait()
        return 0

    monkeypatch.setattr(WeightWriter, "snapshot_if_due", slowly)
    (folder := tmp_path / "run").mkdir()
    running = asyncio.create_task(make_learner(bus, folder).run(asyncio.Event()))
    async with asyncio.timeout(60), answering(bus, ledger_of(CONFIG)):
        while not (await bus.js.stream_info(bus.names.stream("TICKETS"))).state.last_seq:
            await asyncio.sleep(0.05)
        written.set()
        assert await running

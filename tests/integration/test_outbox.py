"""Finished results against a real server: held back, kept, taken over, published in order."""

import asyncio
import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path

import msgpack
import pytest
from structlog.testing import capture_logs

from actors.outbox import TOO_LARGE, Outbox
from bus import server
from bus.address import BusAddress
from bus.codec import decode, encode
from bus.connection import Bus, open_bus
from bus.log_reader import LogReader
from bus.messages import DeadLetter, Failure, Trajectory
from bus.server import embedded_server
from bus.streams import create_streams
from configs.bus import BusConfig
from tests.factories import trajectory

CONFIG = BusConfig(timeout_s=2, reconnect_s=60)


def failure(ticket: int) -> Failure:
    return Failure(ticket=ticket, group=0, reason="test", attempts=1, actor="a", published_at=0.0)


async def stored(bus: Bus, count: int) -> list[int]:
    """Tickets of the first `count` results of the log."""
    reader = LogReader(bus, bus.names.stream("RESULTS"), bus.names.results)
    tickets: list[int] = []
    async with asyncio.timeout(60):
        while len(tickets) < count:
            tickets += [decode(data, Failure).ticket for _, data in await reader.read(count, 0.5)]
    return tickets


async def until(condition) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.02)


async def test_results_are_stored_in_order_and_leave_no_file(bus: Bus, tmp_path: Path):
    outbox = Outbox(bus, tmp_path / "outbox", "a")
    running = asyncio.create_task(outbox.run())
    await asyncio.gather(*(outbox.store(failure(ticket)) for ticket in range(1, 21)))
    assert await stored(bus, 20) == list(range(1, 21))
    assert not (tmp_path / "outbox").exists()
    running.cancel()


async def test_a_full_stream_holds_results_back_in_memory_and_in_a_file(bus_address: BusAddress, tmp_path: Path):
    config = CONFIG.model_copy(update={"max_results_bytes": 400})
    async with open_bus(bus_address, config, "test") as bus:
        await create_streams(bus.js, bus.names, config, lease_s=60)
        outbox = Outbox(bus, tmp_path, "a")
        running = asyncio.create_task(outbox.run())
        storing = [asyncio.create_task(outbox.store(failure(ticket))) for ticket in range(1, 11)]
        await until(lambda: any(tmp_path.iterdir()))
        assert 0 < len(outbox) < 10
        assert not storing[-1].done()
        # The learner reads and purges: room for the next ones.
        stream = bus.names.stream("RESULTS")
        reader = LogReader(bus, stream, bus.names.results)
        got: list[int] = []
        async with asyncio.timeout(60):
            while len(got) < 10:
                for sequence, data in await reader.read(10, 0.5):
                    got.append(decode(data, Failure).ticket)
                    await bus.js.purge_stream(stream, seq=sequence + 1)
        assert got == list(range(1, 11))
        await asyncio.wait_for(asyncio.gather(*storing), 60)
        await until(lambda: not any(tmp_path.iterdir()))
        running.cancel()


async def test_what_a_dead_actor_could_not_publish_the_next_one_does(tmp_path: Path):
    nats, folder = tmp_path / "nats", tmp_path / "outbox"
    async with embedded_server(nats, CONFIG, "r") as (address, server), open_bus(address, CONFIG, "first") as bus:
        await create_streams(bus.js, bus.names, CONFIG, lease_s=60)
        outbox = Outbox(bus, folder, "a")
        running = asyncio.create_task(outbox.run())
        await outbox.store(failure(1))
        server.kill()
        await server.wait()
        waiting = [asyncio.create_task(outbox.store(failure(ticket))) for ticket in (2, 3)]
        await until(lambda: folder.exists() and any(folder.iterdir()))
        waiting.append(asyncio.create_task(outbox.store(failure(4))))
        await until(lambda: len(outbox) == 3)
        # As long as it lives nobody takes its file over.
        other = Outbox(bus, folder, "b")
        other._adopt()
        assert len(other) == 0
        for task in (running, *waiting):
            task.cancel()
        await asyncio.gather(running, *waiting, return_exceptions=True)
    assert outbox._file is not None
    outbox._file.close()  # As the end of its process does.
    async with embedded_server(nats, CONFIG, "r", known=address), open_bus(address, CONFIG, "second") as bus:
        heir = Outbox(bus, folder, "a")
        running = asyncio.create_task(heir.run())
        assert await stored(bus, 4) == [1, 2, 3, 4]
        await until(lambda: heir.taken_over == {2, 3, 4} and not any(folder.iterdir()))
        running.cancel()


async def test_a_result_that_no_message_can_hold_ends_its_ticket_and_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """One of an actor that lives, and one that a dead actor left."""
    monkeypatch.setattr(server, "USUAL_MESSAGE_BYTES", 20_000)
    folder = tmp_path / "outbox"
    async with (
        embedded_server(tmp_path / "nats", CONFIG, "r", largest_message=20_000) as (address, _),
        open_bus(address, CONFIG, "actor") as bus,
    ):
        await create_streams(bus.js, bus.names, CONFIG, lease_s=60)
        dead = Outbox(bus, folder, "a")
        for each in (trajectory(response=5000, ticket=1), trajectory(ticket=2)):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(dead.store(each), 0.01)
        dead.keep()
        assert dead._file is not None
        dead._file.close()
        outbox = Outbox(bus, folder, "b")
        running = asyncio.create_task(outbox.run())
        large = trajectory(response=5000, ticket=3)
        result, other = await asyncio.gather(outbox.store(large), outbox.store(trajectory(ticket=4)))
        assert isinstance(result, Failure)
        assert (result.ticket, result.reason) == (3, TOO_LARGE)
        assert "the bus takes 20,000: raise max_payload" in result.detail
        assert other.ticket == 4
        reader = LogReader(bus, bus.names.stream("RESULTS"), bus.names.results)
        stored = [decode(data, Failure, Trajectory) async for _, _, data in reader.everything(4)]
        assert [(each.ticket, type(each)) for each in stored] == [
            (1, Failure),
            (2, Trajectory),
            (3, Failure),
            (4, Trajectory),
        ]
        kept = decode((folder / "ticket-3.too-large").read_bytes(), Trajectory)
        assert kept.tokens.tolist() == large.tokens.tolist()
        letters = LogReader(bus, bus.names.stream("DEADLETTERS"), bus.names.dead_letters)
        assert [decode(data, DeadLetter).reason.partition(":")[0] async for _, _, data in letters.everything(2)] == [
            "ticket 1",
            "ticket 3",
        ]
        running.cancel()


@contextlib.contextmanager
def files_of_at_most(nbytes: int) -> Iterator[None]:
    """Lets this process's files grow no further than that, as on a disk that fills up."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


async def test_a_full_disk_costs_no_result_that_was_kept_and_takes_the_rest_once_there_is_room(
    bus: Bus, tmp_path: Path
):
    outbox = Outbox(bus, tmp_path, "a")
    waiting = [asyncio.create_task(outbox.store(failure(ticket))) for ticket in (1, 2, 3)]
    await asyncio.sleep(0)
    size = len(msgpack.packb(encode(failure(1))))
    with capture_logs() as logs, files_of_at_most(size + size // 2):
        outbox.keep()
        outbox.keep()
    assert [line["log_level"] for line in logs] == ["warning", "error", "error"]
    [file] = tmp_path.iterdir()
    assert file.stat().st_size == size
    outbox.keep()
    assert file.stat().st_size == 3 * size
    for task in waiting:
        task.cancel()
    # Its process ends, and the next one takes the file over.
    assert outbox._file is not None
    outbox._file.close()
    heir = Outbox(bus, tmp_path, "b")
    running = asyncio.create_task(heir.run())
    assert await stored(bus, 3) == [1, 2, 3]
    await until(lambda: not any(tmp_path.iterdir()))
    running.cancel()

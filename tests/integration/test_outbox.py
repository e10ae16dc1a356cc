"""Finished results against a real server: held back, kept, taken over, published in order."""

import asyncio
from pathlib import Path

from actors.outbox import Outbox
from bus.address import BusAddress
from bus.codec import decode
from bus.connection import Bus, open_bus
from bus.log_reader import LogReader
from bus.messages import Failure
from bus.server import embedded_server
from bus.streams import create_streams
from configs.bus import BusConfig

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

"""The bus against a real nats-server."""

import asyncio
import os

import numpy as np
import pytest
import xxhash

from bus.address import AddressError, BusAddress
from bus.codec import decode
from bus.connection import Bus, BusError, open_bus
from bus.log_reader import LogReader
from bus.messages import Failure, Metrics, TensorEntry
from bus.metrics import MetricsWriter, follow_metrics, last_sequence, record_metrics
from bus.presence import Announcer, who_is_alive
from bus.server import embedded_server
from bus.streams import StreamError, create_streams
from bus.weights import DeposedError, WeightFollower, WeightsError, WeightWriter, fetch_weights, newest_manifest
from configs.schema import BusConfig


def failure(ticket: int) -> Failure:
    return Failure(ticket=ticket, group=0, reason="test", attempts=1, actor="a", published_at=0.0)


def random_weights(nbytes: int, seed: int) -> tuple[list[TensorEntry], memoryview]:
    data = np.random.default_rng(seed).integers(0, 256, nbytes, dtype=np.uint8)
    entry = TensorEntry(name="w", dtype="bfloat16", shape=(nbytes // 2,), offset=0, nbytes=nbytes)
    return [entry], memoryview(data)


async def test_a_log_is_read_once_in_order_from_any_position(bus: Bus):
    for number in range(1, 251):
        await bus.publish(bus.names.results, failure(number))
    reader = LogReader(bus, bus.names.stream("RESULTS"), bus.names.results, start=11)
    got: list[tuple[int, int]] = []
    while len(got) < 240:
        got += [(sequence, decode(data, Failure).ticket) for sequence, data in await reader.read(64, 1.0)]
    assert got == [(number, number) for number in range(11, 251)]
    assert await reader.read(10, 0.2) == []


async def test_a_reader_goes_on_after_its_consumer_is_gone(bus: Bus):
    stream = bus.names.stream("RESULTS")
    await bus.publish(bus.names.results, failure(1))
    reader = LogReader(bus, stream, bus.names.results)
    assert [sequence for sequence, _ in await reader.read(10, 1.0)] == [1]
    for consumer in await bus.js.consumers_info(stream):
        await bus.js.delete_consumer(stream, consumer.name)
    await bus.publish(bus.names.results, failure(2))
    got: list[int] = []
    for _ in range(20):
        got += [sequence for sequence, _ in await reader.read(10, 0.5)]
        if got:
            break
    assert got == [2]


async def test_a_full_result_stream_holds_the_writer_back_and_loses_nothing(bus_address: BusAddress):
    config = BusConfig(timeout_s=5, max_results_bytes=2000)
    async with open_bus(bus_address, config, "test") as bus:
        await create_streams(bus.js, bus.names, config)
        stored = 0

        async def fill() -> None:
            nonlocal stored
            for number in range(1, 100):
                await bus.publish_until_stored(bus.names.results, failure(number), patience_s=0.5)
                stored = number

        with pytest.raises(BusError, match="could not store"):
            await fill()
        assert 0 < stored < 99
        waiting = asyncio.create_task(bus.publish_until_stored(bus.names.results, failure(1000), patience_s=20))
        await asyncio.sleep(0.5)
        assert not waiting.done()
        await bus.js.purge_stream(bus.names.stream("RESULTS"))
        assert await waiting > stored


async def test_a_server_without_room_is_explained(bus_address: BusAddress):
    config = BusConfig(timeout_s=5, max_results_bytes=2**50)
    async with open_bus(bus_address, config, "greedy") as bus:
        with pytest.raises(StreamError, match=r"lower bus\.max_results_bytes"):
            await create_streams(bus.js, bus.names, config)


async def test_streams_survive_a_restart_of_the_server(tmp_path):
    config = BusConfig(timeout_s=5, reconnect_s=30)
    async with embedded_server(tmp_path, config, "again") as (address, _), open_bus(address, config, "first") as bus:
        await create_streams(bus.js, bus.names, config)
        await bus.publish(bus.names.results, failure(7))
    async with embedded_server(tmp_path, config, "again", known=address) as (second, _):
        assert second == address
        async with open_bus(address, config, "second") as bus:
            reader = LogReader(bus, bus.names.stream("RESULTS"), bus.names.results)
            [(sequence, data)] = await reader.read(10, 2.0)
            assert (sequence, decode(data, Failure).ticket) == (1, 7)


async def test_a_stranger_without_the_password_is_refused(bus_address: BusAddress):
    wrong = bus_address.model_copy(update={"password": "guess"})
    with pytest.raises(BusError, match="no bus at"):
        async with open_bus(wrong, BusConfig(timeout_s=3), "stranger"):
            pass


async def test_a_run_that_does_not_exist_is_named(bus_address: BusAddress):
    async with open_bus(bus_address, BusConfig(timeout_s=3), "early") as bus:
        with pytest.raises(BusError, match=bus_address.run):
            await bus.require_streams()


def test_the_address_file_is_private_and_its_absence_is_explained(tmp_path):
    address = BusAddress(run="r", url="nats://127.0.0.1:1", user="u", password="p")
    path = tmp_path / "bus.json"
    with pytest.raises(AddressError, match="zerotir up"):
        BusAddress.read(path)
    address.write(path)
    assert os.stat(path).st_mode & 0o777 == 0o600
    assert BusAddress.read(path) == address
    path.write_text("{}")
    with pytest.raises(AddressError, match=r"usable bus\.json"):
        BusAddress.read(path)


async def test_weights_travel_bit_exactly_and_old_versions_are_purged(bus: Bus):
    writer = WeightWriter(bus)
    assert await writer.open() == 0
    follower = WeightFollower(bus)
    for n in range(4):
        tensors, data = random_weights(5_000_001, seed=n)
        await writer.write(n, tensors, data)
        manifest = await follower.next_manifest(5)
        assert manifest is not None
        assert manifest.version.n == n
        into = bytearray(manifest.nbytes)
        await fetch_weights(bus, manifest, memoryview(into), timeout_s=20)
        assert bytes(into) == data.tobytes()
    assert await follower.next_manifest(0.3) is None
    state = (await bus.js.stream_info(bus.names.stream("WEIGHTS"))).state
    assert state.bytes < 3 * 5_000_001, "older versions should have been purged"


async def test_damaged_weights_are_refused(bus: Bus):
    writer = WeightWriter(bus)
    await writer.open()
    tensors, data = random_weights(100_000, seed=1)
    manifest = await writer.write(0, tensors, data)
    wrong = manifest.model_copy(update={"checksum": xxhash.xxh3_128_hexdigest(b"other")})
    with pytest.raises(WeightsError, match="checksum"):
        await fetch_weights(bus, wrong, memoryview(bytearray(manifest.nbytes)), timeout_s=10)
    await bus.js.purge_stream(bus.names.stream("WEIGHTS"), subject=bus.names.chunks(str(manifest.version)))
    with pytest.raises(WeightsError, match="0 of 1 chunks"):
        await fetch_weights(bus, manifest, memoryview(bytearray(manifest.nbytes)), timeout_s=1)


async def test_a_second_learner_deposes_the_first(bus: Bus):
    tensors, data = random_weights(1000, seed=1)
    first, second = WeightWriter(bus), WeightWriter(bus)
    await first.open()
    await first.write(0, tensors, data)
    assert await second.open() == 1
    await second.write(0, tensors, data)
    with pytest.raises(DeposedError, match=r"1\.0"):
        await first.write(1, tensors, data)
    head = await newest_manifest(bus)
    assert head is not None
    assert str(head[1].version) == "1.0"


async def test_metrics_reach_the_file_and_go_on_where_it_ends(bus: Bus, tmp_path):
    path = tmp_path / "metrics.jsonl"
    writer = MetricsWriter(bus, "learner", "l0")
    for step in range(3):
        await writer.write({"reward": step, "bad": float("nan")}, step=step)
    for expected in (3, 4):
        recording = asyncio.create_task(record_metrics(bus, path))
        while last_sequence(path) < expected:
            assert not recording.done()
            await asyncio.sleep(0.05)
        recording.cancel()
        await writer.write({"reward": 3.0}, step=3)
    lines = path.read_text().splitlines()
    assert len(lines) == 4
    assert '"reward": 0.0' in lines[0]
    assert "bad" not in lines[0]


async def test_an_unreadable_metric_is_buried_and_stops_nobody(bus: Bus):
    await bus.client.publish(f"{bus.names.metrics}.actor.x", b"\xc1garbage")
    await MetricsWriter(bus, "actor", "x").write({"tokens_per_s": 1.0})
    async for _, metrics in follow_metrics(bus):
        assert isinstance(metrics, Metrics)
        break
    async with asyncio.timeout(10):
        while (await bus.js.stream_info(bus.names.stream("DEADLETTERS"))).state.messages != 1:
            await asyncio.sleep(0.05)


async def test_presence_is_seen_and_withdrawn(bus: Bus):
    announcer = Announcer(bus, "actor", "a1")
    await announcer.say("ready")
    [presence] = await who_is_alive(bus)
    assert (presence.role, presence.id, presence.state, presence.pid) == ("actor", "a1", "ready", os.getpid())
    await announcer.leave()
    assert await who_is_alive(bus) == []

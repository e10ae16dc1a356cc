"""The bus against a real nats-server."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace

import nats.errors
import pytest
import structlog
from nats.aio.msg import Msg
from structlog.testing import capture_logs

from bus import connection, log_reader, server
from bus.address import BusAddress
from bus.codec import decode
from bus.connection import Bus, BusError, UnreadError, open_bus
from bus.log_reader import LogReader
from bus.messages import Failure, Metrics
from bus.metrics import MetricsRecorder, MetricsWriter, follow_metrics, last_sequence, run_of
from bus.presence import Announcer, last_sign, who_is_alive
from bus.server import USUAL_MESSAGE_BYTES, ServerError, embedded_server
from bus.streams import StreamError, create_streams
from configs.bus import BusConfig
from configs.loading import load_config
from tests.integration.servers import hang
from tests.processes import zerotir


def failure(ticket: int) -> Failure:
    return Failure(ticket=ticket, group=0, reason="test", attempts=1, actor="a", published_at=0.0)


async def test_a_log_is_read_once_in_order_from_any_position(bus: Bus):
    for number in range(1, 251):
        await bus.publish(bus.names.results, failure(number))
    reader = LogReader(bus, bus.names.stream("RESULTS"), bus.names.results, start=11)
    got: list[tuple[int, int]] = []
    while len(got) < 240:
        got += [(sequence, decode(data, Failure).ticket) for sequence, data in await reader.read(64, 1.0)]
    assert got == [(number, number) for number in range(11, 251)]
    assert await reader.read(10, 0.2) == []


async def test_no_more_lies_unread_than_the_last_read_asked_for(bus: Bus):
    for number in range(1, 41):
        await bus.publish(bus.names.results, failure(number))
    reader = LogReader(bus, bus.names.stream("RESULTS"), bus.names.results)
    got = await reader.read(7, 30.0)
    while len(got) < 40:
        await asyncio.sleep(0.05)
        assert len(reader._arrived) <= 7
        more = await reader.read(7, 30.0)
        assert 1 <= len(more) <= 7
        got += more
    assert [sequence for sequence, _ in got] == list(range(1, 41))


async def test_a_message_reaches_a_reader_that_waits(bus: Bus):
    reader = LogReader(bus, bus.names.stream("RESULTS"), bus.names.results)
    waiting = asyncio.create_task(reader.read(10, 60.0))
    await asyncio.sleep(1.0)
    await bus.publish(bus.names.results, failure(1))
    assert [sequence for sequence, _ in await waiting] == [1]
    # There is nothing at the server that could be lost, or that would have to be cleared away.
    assert await bus.js.consumers_info(bus.names.stream("RESULTS")) == []


@pytest.mark.parametrize("lost", [1, 2, 5, 6], ids=["first", "in the middle", "last", "end of the batch"])
async def test_messages_that_were_lost_on_the_way_are_read_again(bus: Bus, monkeypatch: pytest.MonkeyPatch, lost: int):
    monkeypatch.setattr(log_reader, "LOST_AFTER_S", 1.0)
    for number in range(1, 6):
        await bus.publish(bus.names.results, failure(number))
    reader = LogReader(bus, bus.names.stream("RESULTS"), bus.names.results)
    arrive, came = reader._arrive, 0

    async def lose_one(message: Msg) -> None:
        nonlocal came
        came += 1
        if came != lost:
            await arrive(message)

    monkeypatch.setattr(reader, "_arrive", lose_one)
    got: list[int] = []
    async with asyncio.timeout(60):
        while len(got) < 5:
            got += [sequence for sequence, _ in await reader.read(10, 0.25)]
    assert got == [1, 2, 3, 4, 5]


async def test_what_a_writer_puts_into_headers_does_not_mislead_a_reader(bus: Bus):
    headers = {"Nats-Sequence": "77", "Nats-Last-Sequence": "76", "Status": "204", "Description": "EOB"}
    for number, more in ((1, {}), (2, headers), (3, headers), (4, {})):
        await bus.publish(bus.names.results, failure(number), more)
    reader = LogReader(bus, bus.names.stream("RESULTS"), bus.names.results)
    assert [entry.sequence async for entry in reader.everything(4)] == [1, 2, 3, 4]
    assert await reader.exhausted()


async def test_what_ails_the_bus_is_heard_by_all_and_forgotten_once_it_is_said_no_more(
    bus_address: BusAddress, monkeypatch: pytest.MonkeyPatch
):
    config = BusConfig(timeout_s=5)
    async with open_bus(bus_address, config, "bus") as bus, open_bus(bus_address, config, "actor") as actor:
        assert actor.trouble == ""
        await actor.client.flush()
        with structlog.testing.capture_logs() as logs:
            for _ in range(2):
                await bus.tell_trouble("the bus's disk is full")
            async with asyncio.timeout(60):
                while not (actor.trouble and bus.trouble):
                    await asyncio.sleep(0.01)
            with pytest.raises(BusError, match=r"could not store .*: the bus.s disk is full"):
                await actor.publish_until_stored("nowhere", failure(1), patience_s=0.0)
        assert [line["event"] for line in logs if line["log_level"] == "error"] == ["the bus's disk is full"] * 2
        monkeypatch.setattr(connection, "TROUBLE_S", 0.0)
        assert actor.trouble == ""


async def test_everything_is_everything_or_an_error(tmp_path: Path):
    """The server hangs in the middle of the reading."""
    config = BusConfig(timeout_s=1, reconnect_s=60)
    async with (
        embedded_server(tmp_path, config, "hangs") as (address, process),
        open_bus(address, config, "test") as bus,
    ):
        await create_streams(bus.js, bus.names, config, lease_s=60)
        stream, subject = bus.names.stream("RESULTS"), bus.names.results
        assert [item async for item in LogReader(bus, stream, subject).everything(0)] == []
        for number in range(1, 31):
            await bus.publish(subject, failure(number))
        reader, got = LogReader(bus, stream, subject), []

        async def read() -> None:
            async for sequence, _, _ in reader.everything(29, batch=10):
                got.append(sequence)
                if sequence == 10:
                    hang(process)

        with pytest.raises(UnreadError, match="gave nothing from message 11 on for"):
            await read()
        process.send_signal(signal.SIGCONT)
        await read()
        assert got == list(range(1, 30))
        # Whatever a copy that lags behind says of its own end.
        with pytest.raises(UnreadError, match=r"from message 31 on .* and message 99 is there"):
            [item async for item in LogReader(bus, stream, subject, start=31).everything(99)]


async def test_a_lost_acknowledgement_costs_a_second_try_and_not_the_whole_time_out(
    bus_address: BusAddress, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(connection, "FIRST_ACKNOWLEDGEMENT_S", 0.5)
    config = BusConfig(timeout_s=100, max_results_bytes=64 * 1024**2)
    async with open_bus(bus_address, config, "test") as bus:
        await create_streams(bus.js, bus.names, config, lease_s=60)
        answered = bus._store._answered
        lost: list[Msg] = []

        async def lose_the_first(message: Msg) -> None:
            if lost:
                await answered(message)
            lost.append(message)

        monkeypatch.setattr(bus._store, "_answered", lose_the_first)
        async with asyncio.timeout(60):
            assert await bus.publish_until_stored(bus.names.results, failure(1), patience_s=200) == 2


async def ask(bus: Bus) -> None:
    await bus.js.account_info()


async def ask_twice(bus: Bus) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(bus.js.account_info())
        group.create_task(bus.publish(bus.names.results, failure(1)))


async def fail_and_ask(bus: Bus) -> None:
    raise ExceptionGroup("both", [ZeroDivisionError(), nats.errors.ConnectionClosedError()])


@pytest.mark.parametrize(
    ("work", "kind", "text"),
    [
        (ask, BusError, "did not come back in 1 s"),
        (ask_twice, BusError, "did not come back in 1 s"),
        # A fault of ours is not taken for a lost bus.
        (fail_and_ask, ExceptionGroup, "both"),
    ],
)
async def test_a_bus_that_is_gone_for_good_is_one_clear_error(
    tmp_path: Path, work: Callable[[Bus], Awaitable[None]], kind: type[Exception], text: str
):
    config = BusConfig(timeout_s=5, reconnect_s=1)

    async def lose_the_bus() -> None:
        async with (
            embedded_server(tmp_path, config, "gone") as (address, process),
            open_bus(address, config, "first") as bus,
        ):
            process.kill()
            async with asyncio.timeout(60):
                await bus.lost.wait()
            await work(bus)

    with pytest.raises(kind, match=text):
        await lose_the_bus()


async def test_a_full_result_stream_holds_the_writer_back_and_loses_nothing(bus_address: BusAddress):
    config = BusConfig(timeout_s=5, max_results_bytes=2000)
    async with open_bus(bus_address, config, "test") as bus:
        await create_streams(bus.js, bus.names, config, lease_s=60)
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


async def test_a_raised_limit_is_that_of_the_stream_that_is_there(bus: Bus):
    for limit in (2000, 4000):
        await create_streams(bus.js, bus.names, BusConfig(max_results_bytes=limit), lease_s=60)
        info = await bus.js.stream_info(bus.names.stream("RESULTS"))
        assert info.config.max_bytes == limit


async def test_a_server_without_room_is_explained(bus_address: BusAddress):
    config = BusConfig(timeout_s=5, max_results_bytes=2**50)
    async with open_bus(bus_address, config, "greedy") as bus:
        with pytest.raises(StreamError, match=r"\(bus\.max_results_bytes\)"):
            await create_streams(bus.js, bus.names, config, lease_s=60)


async def test_what_is_there_is_not_asked_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A server that is started again finds less room than its streams have reserved."""
    disk = SimpleNamespace(free=600 * 2**20)
    monkeypatch.setattr(server.shutil, "disk_usage", lambda _: disk)
    config = BusConfig(timeout_s=5, max_results_bytes=20 * 2**20)
    address = None
    for start in range(2):
        async with (
            embedded_server(tmp_path, config, "small", known=address) as (address, _),
            open_bus(address, config, "bus") as bus,
        ):
            await create_streams(bus.js, bus.names, config, lease_s=60)
            assert await bus.publish(bus.names.results, failure(7)) == start + 1
        disk.free = 40 * 2**20
    other = tmp_path / "other"
    async with embedded_server(other, config, "other") as (address, _), open_bus(address, config, "bus") as bus:
        with pytest.raises(
            StreamError, match=r"20 MiB .*bus\.max_results_bytes.* 512 MiB for metrics .bus\.max_metrics_bytes"
        ):
            await create_streams(bus.js, bus.names, config, lease_s=60)
        smaller = BusConfig(timeout_s=5, max_results_bytes=20 * 2**20, max_metrics_bytes=10 * 2**20)
        await create_streams(bus.js, bus.names, smaller, lease_s=60)


async def test_streams_survive_a_restart_of_the_server(tmp_path):
    config = BusConfig(timeout_s=5, reconnect_s=30)
    async with embedded_server(tmp_path, config, "again") as (address, _), open_bus(address, config, "first") as bus:
        await create_streams(bus.js, bus.names, config, lease_s=60)
        await bus.publish(bus.names.results, failure(7))
    async with embedded_server(tmp_path, config, "again", known=address) as (second, _):
        assert second == address
        async with open_bus(address, config, "second") as bus:
            reader = LogReader(bus, bus.names.stream("RESULTS"), bus.names.results)
            [(sequence, data)] = await reader.read(10, 2.0)
            assert (sequence, decode(data, Failure).ticket) == (1, 7)


async def test_a_run_whose_port_is_taken_gets_another_one_unless_roles_are_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(server, "PORT_PATIENCE_S", 0.3)
    config = BusConfig(timeout_s=5)
    async with embedded_server(tmp_path, config, "moved") as (address, _), open_bus(address, config, "first") as bus:
        await create_streams(bus.js, bus.names, config, lease_s=60)
        await bus.publish(bus.names.results, failure(7))
    with socket.create_server(("127.0.0.1", address.port)):
        with pytest.raises(ServerError, match=rf"port {address.port} .*already in use.*roles of the run that are up"):
            async with embedded_server(tmp_path, config, "moved", address, keep_port=True):
                pass
        named = BusConfig(timeout_s=5, port=address.port)
        with pytest.raises(ServerError, match=rf"port {address.port} .*bus\.port"):
            async with embedded_server(tmp_path, named, "moved", address):
                pass
        with capture_logs() as logs:
            async with (
                embedded_server(tmp_path, config, "moved", address) as (second, _),
                open_bus(second, config, "second") as bus,
            ):
                assert second.port != address.port
                assert second.seed == address.seed
                assert (await bus.js.stream_info(bus.names.stream("RESULTS"))).state.messages == 1
        [warning] = [line["event"] for line in logs if line["log_level"] == "warning"]
        assert f"port {address.port}, which the run's bus had, is taken by another program" in warning
    # What the user asks for comes before what the run had.
    named = BusConfig(timeout_s=5, port=second.port)
    async with embedded_server(tmp_path, named, "moved", address) as (third, _):
        assert third.port == second.port


async def test_servers_that_would_refuse_the_longest_result_are_refused_and_our_own_take_it(tmp_path: Path):
    settings = ["rollout.max_response_tokens=400000", "bus.max_results_bytes=10000000000"]
    needed = load_config("tiny", settings).largest_message_bytes
    assert needed > USUAL_MESSAGE_BYTES
    config = BusConfig(timeout_s=5)
    async with (
        embedded_server(tmp_path / "nats", config, "own", largest_message=needed) as (address, _),
        open_bus(address, config, "first") as bus,
    ):
        assert bus.client.max_payload == needed
    async with embedded_server(tmp_path / "nats", config, "others") as (address, _):
        folder = tmp_path / "others"
        folder.mkdir()
        address.write_all(folder)
        overrides = [word for each in (*settings, f"bus.url={address.url}") for word in ("--set", each)]
        ended = await asyncio.to_thread(zerotir, "bus", "tiny", "--folder", str(folder), *overrides)
        assert ended.returncode == 2
        assert f"set `max_payload: {needed}` in the servers' files" in ended.stdout + ended.stderr


async def test_a_store_has_one_server_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A second one reads the store while the first one writes, and takes away what it does not understand."""
    monkeypatch.setattr(server, "STORE_PATIENCE_S", 0.3)
    config = BusConfig(timeout_s=5, reconnect_s=30)
    async with embedded_server(tmp_path, config, "sole") as (address, _), open_bus(address, config, "first") as bus:
        await create_streams(bus.js, bus.names, config, lease_s=60)
        await bus.publish(bus.names.results, failure(7))
        log = (tmp_path / "server.log").read_text()
        for known in (None, address):
            with pytest.raises(
                ServerError, match=rf"nats-server is at work on .* started by process {os.getpid()} on "
            ):
                async with embedded_server(tmp_path, config, "sole", known=known):
                    pass
        # Not even begun: the port would have refused it only after it had read the store.
        assert (tmp_path / "server.log").read_text() == log
        assert (await bus.js.stream_info(bus.names.stream("RESULTS"))).state.messages == 1


async def test_a_server_that_outlives_its_bus_keeps_others_from_its_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(server, "STORE_PATIENCE_S", 0.3)
    code = (
        "import asyncio, os, sys, pathlib, bus.server as server\n"
        "from configs.bus import BusConfig\n"
        "server.TOLD_WHEN_PARENT_DIES = []\n"
        "async def main():\n"
        "    async with server.embedded_server(pathlib.Path(sys.argv[1]), BusConfig(), 'left') as (_, process):\n"
        "        print(process.pid, flush=True)\n"
        "        os._exit(0)\n"
        "asyncio.run(main())\n"
    )
    died = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    left = int(died.stdout.split()[-1])
    try:
        with pytest.raises(ServerError, match="at work on"):
            async with embedded_server(tmp_path, BusConfig(), "left"):
                pass
    finally:
        os.kill(left, signal.SIGKILL)
    monkeypatch.undo()
    # It waits for one that is just ending.
    async with embedded_server(tmp_path, BusConfig(), "left"):
        pass


async def test_a_stranger_without_the_key_is_refused(bus_address: BusAddress):
    wrong = BusAddress.new(bus_address.run, bus_address.url)
    with pytest.raises(BusError, match="no bus at"):
        async with open_bus(wrong, BusConfig(timeout_s=3), "stranger"):
            pass


async def test_a_run_that_does_not_exist_is_named(bus_address: BusAddress):
    async with open_bus(bus_address, BusConfig(timeout_s=3), "early") as bus:
        with pytest.raises(BusError, match=bus_address.run):
            await bus.require_streams()


async def test_metrics_reach_the_file_and_go_on_where_it_ends(bus: Bus, tmp_path):
    path = tmp_path / "metrics.jsonl"
    writer = MetricsWriter(bus, "learner", "l0")
    for step in range(3):
        last = await writer.write({"reward": step, "bad": float("nan")}, step=step)
    seen: list[Metrics] = []
    for expected in (3, 4):
        recorder = MetricsRecorder(bus, path, seen.append)
        recording = asyncio.create_task(recorder.run())
        await recorder.recorded(last, 60)
        recording.cancel()
        assert last_sequence(path) == expected
        last = await writer.write({"reward": 3.0}, step=3)
        # As a kill, or a full disk, leaves it.
        if expected == 3:
            with path.open("a") as file:
                file.write('{"run": "te')
    lines = path.read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 1, 2, 3]
    with structlog.testing.capture_logs() as logs:
        await recorder.recorded(last + 1, 0.01)
    assert [line["event"] for line in logs] == ["the last metrics are not in the file"]
    assert run_of(path) == bus.address.run
    assert [metrics.step for metrics in seen] == [0, 1, 2, 3]
    assert '"reward": 0.0' in lines[0]
    assert "bad" not in lines[0]


async def test_an_unreadable_metric_is_dead_lettered_and_stops_nobody(bus: Bus):
    await bus.client.publish(f"{bus.names.metrics}.actor.x", b"\xc1garbage")
    await MetricsWriter(bus, "actor", "x").write({"tokens_per_s": 1.0})
    async for _, metrics in follow_metrics(bus):
        assert isinstance(metrics, Metrics)
        break
    async with asyncio.timeout(60):
        while (await bus.js.stream_info(bus.names.stream("DEADLETTERS"))).state.messages != 1:
            await asyncio.sleep(0.05)


async def test_presence_is_seen_and_withdrawn(bus: Bus):
    announcer = Announcer(bus, "actor", "a1")
    await announcer.say("ready")
    for _ in range(3):
        [presence] = await who_is_alive(bus)
    # `zerotir up` looks twice a second: nothing may stay on the server.
    assert (await bus.js.stream_info(f"KV_{bus.names.alive_bucket}")).state.consumer_count == 0
    assert (presence.role, presence.id, presence.state, presence.pid) == ("actor", "a1", "ready", os.getpid())
    await announcer.leave()
    assert await who_is_alive(bus) == []


async def test_the_last_sign_of_life_names_who_was_there_and_what_it_did(bus: Bus):
    assert await last_sign(bus, "actor") == "no actor has given a sign of life"
    announcer = Announcer(bus, "actor", "a1")
    await announcer.say("ready")
    assert re.fullmatch(
        r"last sign of life: a1 on \S+ \(one of 1 alive\) was 'ready' \d+ s ago", await last_sign(bus, "actor")
    )
    await announcer.leave()
    await MetricsWriter(bus, "learner", "l1").write({"reward": 0.0})
    await MetricsWriter(bus, "actor", "a1").write({"in_flight": 0.0})
    await bus.client.flush()
    async with asyncio.timeout(60):
        while "is gone" not in (text := await last_sign(bus, "actor")):
            await asyncio.sleep(0.05)
    assert re.fullmatch(r"last sign of life: a1 measured something \d+ s ago and is gone", text)

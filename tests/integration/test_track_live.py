"""A tracker follows a run on a real bus: late, through restarts, to the run's end, and when the tracker itself hangs."""

import asyncio
import json
import socket
from pathlib import Path

import pytest
import structlog

from bus.address import BusAddress
from bus.connection import Bus, open_bus
from bus.metrics import MetricsWriter
from bus.metrics_history import MetricsHistory
from bus.presence import Announcer
from bus.run_record import record_config, record_end
from configs.bus import BusConfig
from configs.errors import UserError
from configs.loading import load_config
from launch import track
from tests import tracked
from tracking import worker
from tracking.tracker import TrackerError
from tracking.worker import POSITION, Position, Worker, where_to_look

CONFIG = load_config("tiny", ["learner.steps=2"])


async def read(history: MetricsHistory, most: int) -> list[tuple[int, int | None]]:
    """Returns the (sequence, step) of the next metrics, once there are so many."""
    found: list[tuple[int, int | None]] = []
    async with asyncio.timeout(60):
        while len(found) < most:
            found += [(sequence, metrics.step) for sequence, metrics in await history.read(1.0)]
    return found


async def measure(bus: Bus, *steps: int) -> None:
    writer = MetricsWriter(bus, "learner", "learner")
    stream = bus.names.stream("METRICS")
    known = (await bus.js.stream_info(stream)).state.last_seq
    for step in steps:
        await writer.write({"accuracy": step / 10}, step=step)
    async with asyncio.timeout(60):
        while (await bus.js.stream_info(stream)).state.last_seq < known + len(steps):
            await asyncio.sleep(0.01)


async def test_history_goes_on_on_the_bus_where_the_file_ends(bus: Bus, tmp_path: Path):
    await measure(bus, 1, 2, 3)
    file = tmp_path / "metrics.jsonl"
    lines = [
        {"run": "r", "seq": seq, "time": 1.0, "role": "learner", "id": "learner", "step": 100 + seq, "accuracy": 0.0}
        for seq in (1, 2)
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    history = MetricsHistory(file, bus, 0)
    # By their steps: the first two are the file's.
    assert await read(history, 3) == [(1, 101), (2, 102), (3, 3)]
    await bus.js.publish(f"{bus.names.metrics}.actor.x", b"\xc1garbage")
    await measure(bus, 4)
    assert await read(history, 1) == [(5, 4)]
    assert history.position == 5
    assert await read(MetricsHistory(file, bus, 4), 1) == [(5, 4)]


async def test_metrics_that_the_bus_no_longer_keeps_are_missed_aloud(bus: Bus, tmp_path: Path):
    await measure(bus, 1, 2, 3)
    await bus.js.purge_stream(bus.names.stream("METRICS"), seq=3)
    with structlog.testing.capture_logs() as logs:
        assert await read(MetricsHistory(tmp_path / "metrics.jsonl", bus, 0), 1) == [(3, 3)]
    assert [(line["first"], line["last"]) for line in logs if line["log_level"] == "warning"] == [(1, 2)]


async def test_a_follower_ends_with_the_run_and_not_before(bus: Bus):
    await record_config(bus, CONFIG)
    await measure(bus, 1)
    assert await track._last_of_a_run_that_is_done(bus) is None
    await record_end(bus, steps=1)
    # The run goes on: it is to have two steps.
    assert await track._last_of_a_run_that_is_done(bus) is None
    evaluator = Announcer(bus, "evaluator", "e")
    await evaluator.say("scoring")
    await record_end(bus, steps=2)
    assert await track._last_of_a_run_that_is_done(bus) is None
    await evaluator.leave()
    async with asyncio.timeout(60):
        while (last := await track._last_of_a_run_that_is_done(bus)) is None:
            await asyncio.sleep(0.1)
    assert last == 1


async def test_a_live_run_is_followed_by_an_observer_to_its_last_step(
    own_run: BusAddress, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """By the command's own function, with the observer's credentials alone, as on another host."""
    monkeypatch.setattr(track, "LOOK_EVERY_S", 0.1)
    elsewhere = tmp_path / "r" / "observer.json"
    elsewhere.parent.mkdir()
    own_run.for_role("observer").write(elsewhere)
    async with open_bus(own_run, BusConfig(timeout_s=5), "bus") as bus:
        await record_config(bus, CONFIG)
        await measure(bus, 1)
        following = asyncio.create_task(track._track("tensorboard", elsewhere, asyncio.Event()))
        position = tmp_path / "r" / "trackers" / "tensorboard" / POSITION
        async with asyncio.timeout(60):
            while not (position.exists() and Position.model_validate_json(position.read_bytes()).sequence == 1):
                await asyncio.sleep(0.05)
        await measure(bus, 2)
        await record_end(bus, steps=2)
        async with asyncio.timeout(60):
            await following
    assert tracked.tensorboard(tmp_path / "r").points == {"learner/accuracy": [(1, 0.1), (2, 0.2)]}


async def test_a_tracker_that_hangs_is_told_of_and_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The real client of MLflow, and a server that takes its request and never answers."""
    monkeypatch.setattr(worker, "SLOW_S", 0.2)
    monkeypatch.setattr(worker, "HANGS_S", 0.4)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        for name, value in tracked.environment(tmp_path).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        import mlflow  # noqa: F401 (its import takes longer than the bounds above)

        given = Worker("mlflow", tmp_path, "r")
        with structlog.testing.capture_logs() as logs, pytest.raises(TrackerError, match="mlflow has not answered for"):
            async with given.open({}):
                pass
    assert [line["event"] for line in logs] == ["the tracker does not answer; the run does not wait for it"]
    # It has nothing, and nobody is sent there.
    assert not (tmp_path / "trackers" / "mlflow" / POSITION).exists()
    assert where_to_look(tmp_path) == {}


async def test_a_run_goes_to_a_tracker_once_at_a_time_and_its_folder_to_one_run(tmp_path: Path):
    async with Worker("tensorboard", tmp_path, "r").open({}):
        with pytest.raises(UserError, match=r"tensorboard gets this run already from process \d+ on "):
            async with Worker("tensorboard", tmp_path, "r").open({}):
                pass
    with pytest.raises(UserError, match="is of run r, this is other: remove it to give tensorboard this one"):
        async with Worker("tensorboard", tmp_path, "other").open({}):
            pass

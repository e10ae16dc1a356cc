"""Alarms of a run on a real bus: in the learner's log once, in the run's bucket for every view, and over when they are."""

import asyncio
import contextlib
import json
from pathlib import Path

import pytest
import structlog

from bus.alarms import KEY, record_alarms, recorded_alarms
from bus.connection import Bus
from bus.messages import Metrics
from bus.metrics import MetricsRecorder, MetricsWriter, metrics_line
from bus.presence import Announcer
from configs.alarms import AlarmsConfig
from configs.loading import dump_config, load_config
from launch.past_run import status_of
from launch.view_commands import _status
from learner.alarm_keeper import AlarmKeeper

BOUNDS = AlarmsConfig(disk_free_gib=5.0)


@pytest.fixture
def keeper(bus: Bus) -> AlarmKeeper:
    return AlarmKeeper(bus, BOUNDS, Announcer(bus, "learner", "l0"))


def step(number: int, free: float) -> Metrics:
    values = {"trained_trajectories": 1.0, "disk_free_gib": free}
    return Metrics(role="learner", id="l0", time=1e9 + number, step=number, values=values)


async def test_an_alarm_is_logged_once_and_every_view_has_it_until_it_is_over(bus: Bus, keeper: AlarmKeeper):
    assert await recorded_alarms(bus) == []
    with structlog.testing.capture_logs() as logs:
        for number, free in ((1, 3.0), (2, 2.0)):
            keeper.see(step(number, free))
            await keeper.look()
        [alarm] = await recorded_alarms(bus)
        assert (alarm.name, alarm.who, alarm.text[:7]) == ("disk", "l0", "2.0 GiB")
        seen = await _status(bus)
        assert "\n  ALARM disk (l0, for 0 s): 2.0 GiB are free" in seen
        assert "nobody looks any more" in seen
        announcer = Announcer(bus, "learner", "l0")
        await announcer.announce()
        assert "nobody looks any more" not in await _status(bus)
        await announcer.leave()
        keeper.see(step(3, 50.0))
        await keeper.look()
    assert await recorded_alarms(bus) == []
    assert "ALARM" not in await _status(bus)
    assert [(line["log_level"], line["event"][:22]) for line in logs] == [
        ("warning", "ALARM disk (l0): 3.0 G"),
        ("info", "alarm is over"),
    ]


async def test_a_learner_that_takes_over_removes_what_the_one_before_had_raised(bus: Bus, keeper: AlarmKeeper):
    keeper.see(step(1, 1.0))
    await keeper.look()
    assert await recorded_alarms(bus)
    await AlarmKeeper(bus, BOUNDS, Announcer(bus, "learner", "l1")).look()
    assert await recorded_alarms(bus) == []


async def test_what_a_run_had_measured_before_counts_when_it_goes_on(bus: Bus, keeper: AlarmKeeper, tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(metrics_line(step(1, 1.0), 1, bus.address.run) + "\n")
    keeper.recall(path)
    await keeper.look()
    assert [alarm.name for alarm in await recorded_alarms(bus)] == ["disk"]


async def test_a_step_on_the_metrics_log_raises_its_alarm(bus: Bus, keeper: AlarmKeeper, tmp_path: Path):
    recorder = MetricsRecorder(bus, tmp_path / "metrics.jsonl", keeper.see)
    tasks = [asyncio.create_task(work) for work in (recorder.run(), keeper.run())]
    try:
        await MetricsWriter(bus, "learner", "l0").write({"disk_free_gib": 1.0}, step=1)
        async with asyncio.timeout(60):
            while not await recorded_alarms(bus):
                await asyncio.sleep(0.02)
    finally:
        for task in tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def test_a_bus_that_is_away_is_told_later(bus: Bus, keeper: AlarmKeeper, monkeypatch: pytest.MonkeyPatch):
    async def away(*_: object) -> None:
        raise TimeoutError

    keeper.see(step(1, 1.0))
    with monkeypatch.context() as patch:
        patch.setattr("learner.alarm_keeper.record_alarms", away)
        with structlog.testing.capture_logs() as logs:
            await keeper.look()
    assert [line["event"][:10] for line in logs] == ["ALARM disk", "alarms can"]
    await keeper.look()
    assert [alarm.name for alarm in await recorded_alarms(bus)] == ["disk"]


@pytest.mark.parametrize("damaged", [b"", b"\xff", b"[1]", b'[{"name": "x"}]'])
async def test_a_list_that_cannot_be_read_is_none(bus: Bus, damaged: bytes):
    await record_alarms(bus, [])
    await (await bus.js.key_value(bus.names.run_bucket)).put(KEY, damaged)
    assert await recorded_alarms(bus) == []


def test_the_folder_of_a_run_says_what_its_last_metrics_raise(tmp_path: Path):
    (tmp_path / "config.yaml").write_text(dump_config(load_config("tiny", ["alarms.disk_free_gib=4"])))
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(metrics_line(step(n, free), n, "r") + "\n" for n, free in ((1, 1.0), (2, 4.5))))
    assert json.loads(path.read_text().splitlines()[0])["disk_free_gib"] == 1.0
    assert "ALARM" not in status_of(tmp_path)
    (tmp_path / "config.yaml").write_text(dump_config(load_config("tiny", ["alarms.disk_free_gib=4.6"])))
    assert "\nALARM disk (learner): 4.5 GiB are free" in status_of(tmp_path)

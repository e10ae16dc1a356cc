"""Alarms of a run on a real bus: in the learner's log once, in the run's bucket for every view, and over when they are."""

import asyncio
import contextlib
import json
from pathlib import Path
from typing import Any

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

BOUNDS = AlarmsConfig(untrained_steps=1, disk_free_gib=None)


def keeper_of(bus: Bus, folder: Path, id: str = "l0", bounds: AlarmsConfig = BOUNDS) -> AlarmKeeper:
    return AlarmKeeper(bus, bounds, Announcer(bus, "learner", id), folder)


@pytest.fixture
async def keeper(bus: Bus, tmp_path: Path) -> AlarmKeeper:
    made = keeper_of(bus, tmp_path)
    await made.begin(0)
    return made


def step(number: int, trained: float = 0.0, **values: float) -> Metrics:
    values |= {"trained_trajectories": trained}
    return Metrics(role="learner", id="l0", time=1e9 + number, step=number, values=values)


async def test_an_alarm_is_logged_once_and_every_view_has_it_until_it_is_over(bus: Bus, keeper: AlarmKeeper):
    assert await recorded_alarms(bus) == []
    with structlog.testing.capture_logs() as logs:
        for number in (1, 2):
            keeper.see(step(number))
            await keeper.look()
        [alarm] = await recorded_alarms(bus)
        assert (alarm.name, alarm.who, alarm.text) == ("untrained", "l0", "the last 2 steps had nothing to train on")
        seen = await _status(bus)
        assert "\n  ALARM untrained (l0, for 0 s): the last 2 steps had nothing" in seen
        assert "nobody looks any more" in seen
        announcer = Announcer(bus, "learner", "l0")
        await announcer.announce()
        assert "nobody looks any more" not in await _status(bus)
        await announcer.leave()
        keeper.see(step(3, trained=16.0))
        await keeper.look()
    assert await recorded_alarms(bus) == []
    assert "ALARM" not in await _status(bus)
    assert [(line["log_level"], line["event"][:22]) for line in logs] == [
        ("warning", "ALARM untrained (l0): "),
        ("info", "alarm is over"),
    ]


async def test_only_a_learner_that_trains_touches_the_list_of_the_one_before(
    bus: Bus, keeper: AlarmKeeper, tmp_path: Path
):
    keeper.see(step(1))
    await keeper.look()
    refused = keeper_of(bus, tmp_path, "l1")
    looking = asyncio.create_task(refused.run())
    refused.see(step(1, trained=16.0))
    await refused.look()
    assert [alarm.who for alarm in await recorded_alarms(bus)] == ["l0"]
    await refused.begin(0)
    async with asyncio.timeout(60):
        while await recorded_alarms(bus):
            await asyncio.sleep(0.02)
    looking.cancel()


async def test_what_was_measured_up_to_the_checkpoint_counts_when_a_run_goes_on(bus: Bus, tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    steps = (step(1, trained=16.0), step(2), step(3, trained=16.0))
    path.write_text("".join(metrics_line(each, n, bus.address.run) + "\n" for n, each in enumerate(steps, start=1)))
    for done, raised in ((1, []), (2, ["untrained"]), (3, [])):
        keeper = keeper_of(bus, tmp_path)
        await keeper.begin(done)
        await keeper.look()
        assert [alarm.name for alarm in await recorded_alarms(bus)] == raised


async def test_a_step_on_the_metrics_log_raises_its_alarm(bus: Bus, keeper: AlarmKeeper, tmp_path: Path):
    recorder = MetricsRecorder(bus, tmp_path / "metrics.jsonl", keeper.see)
    tasks = [asyncio.create_task(work) for work in (recorder.run(), keeper.run())]
    try:
        await MetricsWriter(bus, "learner", "l0").write({"trained_trajectories": 0.0}, step=1)
        async with asyncio.timeout(60):
            while not await recorded_alarms(bus):
                await asyncio.sleep(0.02)
    finally:
        for task in tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def test_the_disk_is_looked_at_while_no_step_comes(bus: Bus, tmp_path: Path):
    keeper = keeper_of(bus, tmp_path, bounds=AlarmsConfig(disk_free_gib=1e9))
    await keeper.begin(0)
    await keeper.look()
    assert [alarm.name for alarm in await recorded_alarms(bus)] == ["disk"]


async def test_a_bus_that_is_away_is_told_later_and_one_that_lost_the_list_again(
    bus: Bus, keeper: AlarmKeeper, monkeypatch: pytest.MonkeyPatch
):
    async def away(*_: object) -> None:
        raise TimeoutError

    keeper.see(step(1))
    with monkeypatch.context() as patch:
        patch.setattr("learner.alarm_keeper.record_alarms", away)
        with structlog.testing.capture_logs() as logs:
            await keeper.look()
    assert [line["event"][:15] for line in logs] == ["ALARM untrained", "alarms cannot b"]
    await keeper.look()
    assert [alarm.name for alarm in await recorded_alarms(bus)] == ["untrained"]
    await record_alarms(bus, [])
    await keeper.look()
    assert await recorded_alarms(bus) == []
    keeper._record_at = 0.0
    await keeper.look()
    assert [alarm.name for alarm in await recorded_alarms(bus)] == ["untrained"]


@pytest.mark.parametrize("damaged", [b"", b"\xff", b"[1]", b'[{"name": "x"}]'])
async def test_a_list_that_cannot_be_read_is_none(bus: Bus, damaged: bytes):
    await record_alarms(bus, [])
    await (await bus.js.key_value(bus.names.run_bucket)).put(KEY, damaged)
    assert await recorded_alarms(bus) == []


def test_the_folder_of_a_run_says_what_its_last_metrics_raise(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    lines = [metrics_line(step(n, 16.0, disk_free_gib=free), n, "r") for n, free in ((1, 1.0), (2, 4.5))]
    path.write_text("\n".join(lines) + "\n")
    (tmp_path / "config.yaml").write_text(dump_config(load_config("tiny", ["alarms.disk_free_gib=4"])))
    assert "ALARM" not in status_of(tmp_path)
    (tmp_path / "config.yaml").write_text(dump_config(load_config("tiny", ["alarms.disk_free_gib=4.6"])))
    assert "\nALARM disk (learner): 4.5 GiB are free" in status_of(tmp_path)


@pytest.mark.parametrize(
    "damaged",
    [
        {"finished": 10**400},
        {"time": 10**400},
        {"time": -1.0},
        {"time": 2e11},
        {"time": "1"},
        {"finished": float("inf")},
    ],
)
def test_a_line_that_no_role_wrote_is_left_out(tmp_path: Path, damaged: dict[str, Any]):
    good = metrics_line(step(1, 16.0, disk_free_gib=1.0), 1, "r")
    bad = {"run": "r", "seq": 2, "role": "actor", "id": "a", "step": None, "time": 1e9, "finished": 1.0, "failed": 1.0}
    (tmp_path / "metrics.jsonl").write_text(f"{good}\n{json.dumps(bad | damaged)}\n")
    assert "ALARM disk" in status_of(tmp_path)

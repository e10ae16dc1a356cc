"""Alarms, judged from metrics: each is raised beyond its bound, not before, and is over once things are well again."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from bus.alarms import Alarm
from configs.alarms import AlarmsConfig
from learner.alarms import LEAST_STALL_S, LEAST_TICKETS, MOST_ALARMS, MOST_PROCESSES, PIECES, Watch

RUNS = Path(__file__).parents[3] / "shared" / "data" / "runs"
GOOD = {
    "trained_trajectories": 16.0,
    "trajectories": 16.0,
    "failures": 0.0,
    "step_seconds": 10.0,
    "disk_free_gib": 50.0,
}
BOUNDS = AlarmsConfig(steps=4)


def step(number: int, **values: float) -> dict[str, Any]:
    return {"role": "learner", "id": "l0", "step": number, "time": 10.0 * number, **GOOD, **values}


def watch(*steps: dict[str, Any], bounds: AlarmsConfig = BOUNDS) -> Watch:
    made = Watch(bounds, "l0", 0.0)
    for each in steps:
        made.see(each)
    return made


def raised(made: Watch, now: float = 50.0, state: str | None = None) -> dict[str, Alarm]:
    return {alarm.name: alarm for alarm in made.alarms(now, state)}


BAD = {
    "behaviour_kl": ({"behaviour_kl": 0.051}, {"behaviour_kl": 0.049}, "0.051 over the last 4 steps"),
    "clip_fraction": ({"clip_fraction": 0.31}, {"clip_fraction": 0.29}, "31% of the tokens"),
    "no_signal": (
        {"filtered_by_no_signal": 16.0, "failures": 3.0},
        {"filtered_by_no_signal": 15.0},
        "100% of the trajectories",
    ),
    "failed": (
        {"trajectories": 12.0, "failures": 4.0, "failed_by_deadline_passed": 4.0},
        {"trajectories": 16.0, "failures": 4.0},
        r"25% of the tickets of the last 4 steps ended as failures \(deadline passed 16\)",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_mean_over_the_newest_steps_raises_an_alarm_beyond_its_bound(name: str):
    bad, bearable, text = BAD[name]
    made = watch(*(step(n, **bad) for n in (1, 2, 3)))
    assert raised(made) == {}, "too few steps to judge by"
    made.see(step(4, **bad))
    assert list(raised(made)) == [name]
    assert re.search(text, raised(made)[name].text)
    assert raised(watch(*(step(n, **bearable) for n in range(1, 9)))) == {}
    for number in (5, 6, 7, 8):
        made.see(step(number))
    assert raised(made) == {}
    null = AlarmsConfig.model_validate({"steps": 4, name: None})
    assert raised(watch(*(step(n, **bad) for n in range(1, 9)), bounds=null)) == {}


def test_truncation_raises_an_alarm_where_it_has_risen_not_where_it_is_high():
    high = watch(*(step(n, truncated_ratio=0.9) for n in range(1, 9)))
    assert raised(high) == {}
    for number, truncated in enumerate((0.1, 0.1, 0.1, 0.1, 0.35, 0.35, 0.35, 0.35), start=9):
        high.see(step(number, truncated_ratio=truncated))
    assert (
        "35% of the responses of the last 4 steps hit their token budget, and 10% did before"
        in raised(high)["truncated"].text
    )


def test_steps_without_anything_to_train_on_raise_an_alarm_with_the_reasons():
    nothing = {"trained_trajectories": 0.0, "filtered_by_no_signal": 12.0, "failed_by_deadline_passed": 4.0}
    made = watch(step(1, **nothing), step(2, **nothing))
    assert raised(made) == {}
    made.see(step(3, **nothing))
    alarm = raised(made)["untrained"]
    assert alarm.text == "the last 3 steps had nothing to train on"
    assert "no signal 75%, deadline passed 25%" in alarm.advice
    # The learner goes back to its checkpoint, and does them again.
    made.see(step(2, **nothing))
    assert raised(made) == {}
    made.see(step(3, **nothing))
    assert raised(made)["untrained"].text == "the last 3 steps had nothing to train on"
    made.see(step(4))
    assert raised(made) == {}


def test_a_step_that_takes_far_longer_than_usual_raises_an_alarm_while_the_learner_is_at_work():
    made = watch(step(1, step_seconds=20.0), step(2, step_seconds=30.0), step(3, step_seconds=40.0))
    late = 30.0 + 5 * 30.0
    assert raised(made, late, "collecting batch 4: 1 of 4") == {}
    assert raised(made, late + 1) == {}, "nobody is at work"
    assert raised(made, late + 1, "collecting batch 4: 1 of 4")["stalled"].text == (
        "no step for 2 min 31 s, and one takes 30 s; the learner is collecting batch 4: 1 of 4"
    )
    quick = watch(step(1, step_seconds=0.1))
    assert raised(quick, 10.0 + LEAST_STALL_S, "x") == {}
    assert "stalled" in raised(quick, 11.0 + LEAST_STALL_S, "x")


def test_a_run_that_goes_on_is_not_late_before_its_first_step():
    """Its actors may have to load their engines first, which takes far longer than a step."""
    made = Watch(BOUNDS, "l0", begun=100_000.0)
    made.see(step(1))
    assert raised(made, 101_000.0, "collecting") == {}
    made.see({**step(2), "time": 101_000.0})
    assert raised(made, 101_060.0, "collecting") == {}
    assert "stalled" in raised(made, 101_061.0, "collecting")


def test_a_disk_that_fills_up_raises_an_alarm_also_between_steps():
    made = watch(step(1, disk_free_gib=5.0))
    assert raised(made) == {}
    assert made.alarms(50.0, disk_free_gib=4.9)[0].text == "4.9 GiB are free on the disk of the run's folder"
    assert raised(watch(step(1, disk_free_gib=4.9)))["disk"].text[:7] == "4.9 GiB"
    assert watch(step(1, disk_free_gib=4.9)).alarms(50.0, disk_free_gib=6.0) == []


def test_a_bound_of_0_raises_no_alarm_where_nothing_is_wrong():
    strict = AlarmsConfig(steps=4, clip_fraction=0, no_signal=0, failed=0, actor_failed=0, sandbox_failed=0)
    good = watch(*(step(n, clip_fraction=0.0) for n in range(1, 9)), bounds=strict)
    for time in (0.0, 10.0):
        good.see(counts("actor", "a", time, 10 * time, 0))
        good.see(counts("sandbox", "s", time, 10 * time, 0))
    assert raised(good) == {}


def test_what_few_steps_measured_is_no_mean_of_all():
    made = watch(step(1, behaviour_kl=9.0), step(2), step(3), step(4))
    assert raised(made) == {}
    made.see(step(5, behaviour_kl=9.0))
    made.see(step(6, behaviour_kl=9.0))
    assert "behaviour_kl" in raised(made)


def counts(role: str, id: str, time: float, ended: float, failed: float) -> dict[str, Any]:
    values = (
        {"finished": ended - failed, "failed": failed} if role == "actor" else {"executions": ended, "failures": failed}
    )
    return {"role": role, "id": id, "step": None, "time": time, **values}


@pytest.mark.parametrize(("role", "share"), [("actor", 0.5), ("sandbox", 0.1)])
def test_one_process_that_fails_at_what_it_is_given_raises_an_alarm_and_others_do_not(role: str, share: float):
    made = watch(counts(role, "bad", 0.0, 1000, 0), counts(role, "good", 0.0, 0, 0))
    for time in range(5, 305, 5):
        made.see(counts(role, "bad", time, 1000 + time, 1.1 * share * time))
        made.see(counts(role, "good", time, time, 0.9 * share * time))
    found = raised(made, 300.0)
    assert [(alarm.name, alarm.who) for alarm in found.values()] == [(f"{role}_failed", "bad")]
    assert f"fails at {1.1 * 300 * share:.0f} of 300" in found[f"{role}_failed"].text, "by the newest minutes alone"
    assert raised(made, 300.0 + 60 * BOUNDS.minutes) == {}, "it is gone"


def test_a_process_that_was_started_again_is_judged_anew():
    made = watch(counts("actor", "a", 0.0, 0, 0), counts("actor", "a", 5.0, 100, 100), counts("actor", "a", 10.0, 0, 0))
    assert raised(made, 10.0) == {}
    made.see(counts("actor", "a", 12.0, 10, 0))
    # More have failed than it had finished: only what it has finished falls.
    made.see(counts("actor", "a", 13.0, 30, 30))
    assert raised(made, 13.0) == {}
    made.see(counts("actor", "a", 14.0, 0, 0))
    made.see(counts("actor", "a", 15.0, LEAST_TICKETS - 1, LEAST_TICKETS - 1))
    assert raised(made, 15.0) == {}
    made.see(counts("actor", "a", 20.0, LEAST_TICKETS, LEAST_TICKETS))
    assert "actor_failed" in raised(made, 20.0)


def test_steps_that_are_trained_again_count_once():
    made = watch(*(step(n, clip_fraction=1.0) for n in (1, 2, 3)), step(2, clip_fraction=0.0))
    made.see(step(3, clip_fraction=0.0))
    assert raised(made) == {}
    made.see(step(4, clip_fraction=1.0))
    assert raised(made)["clip_fraction"].text.startswith("50% of the tokens of the last 4 steps")


def test_an_alarm_knows_since_when_it_is_raised():
    made = watch(step(1, disk_free_gib=1.0))
    assert raised(made, 20.0)["disk"].since == 20.0
    made.see(step(2, disk_free_gib=2.0))
    alarm = raised(made, 80.0)["disk"]
    assert (alarm.since, alarm.text[:7]) == (20.0, "2.0 GiB")
    assert alarm.line(80.0).startswith("ALARM disk (l0, for 1 min 0 s): 2.0 GiB")
    made.see(step(3))
    made.alarms(90.0)
    made.see(step(4, disk_free_gib=1.0))
    assert raised(made, 100.0)["disk"].since == 100.0


def test_whatever_a_state_or_a_reason_holds_an_alarm_fits_and_hurts_no_terminal():
    reasons = {f"failed_by_{'x' * 39}{n}": 1.0 for n in range(90)}
    made = watch(*(step(n, trained_trajectories=0.0, **reasons) for n in (1, 2, 3)))
    found = raised(made, 10_000.0, "\x1b[2J" + "y" * 5000)
    assert {"untrained", "stalled"} <= found.keys()
    assert "\x1b" not in found["stalled"].line()


def test_a_sandbox_that_fails_at_everything_raises_an_alarm():
    made = watch(counts("sandbox", "s", 0.0, 0, 0), counts("sandbox", "s", 5.0, 50, 50))
    assert "fails at 50 of 50 executions" in raised(made, 5.0)["sandbox_failed"].text


def test_what_one_process_makes_up_neither_grows_nor_stays():
    made = watch()
    for number in range(MOST_PROCESSES + 50):
        for failed in (0, 10):
            made.see(counts("actor", f"e{number}", 1e11, failed, failed))
            made.see(counts("sandbox", "s", 1e9 + failed, failed, failed))
    for _ in range(1000):
        made.see(counts("actor", "e1", 1e11, 20, 20))
    assert len(made._counts) == MOST_PROCESSES
    assert max(map(len, made._counts.values())) <= 2 * PIECES + 3
    assert [alarm.name for alarm in made.alarms(1e9 + 10)] == ["sandbox_failed"], "those of the future are none"
    for number in range(100):
        for failed in (0, 10):
            made.see(counts("actor", f"f{number}", 1e9, failed, failed))
    assert len(made.alarms(1e9 + 10)) == MOST_ALARMS + 1


def test_every_piece_of_the_newest_minutes_is_held():
    made = watch()
    for time in range(3000):
        made.see(counts("actor", "a", float(time), time, 0))
    [held] = made._counts.values()
    assert 2999 - held[0].time == pytest.approx(60 * BOUNDS.minutes, rel=0.05)
    assert len(held) <= 2 * PIECES + 3


def test_measured_runs_that_went_well_raise_none():
    paths = sorted(RUNS.glob("quickstart-seed*/metrics.jsonl"))
    if not paths:
        pytest.skip("no measured runs here")
    for path in paths:
        made = Watch(AlarmsConfig(), "learner", 0.0)
        for line in path.read_text().splitlines():
            made.see(json.loads(line))
            assert made.alarms(json.loads(line)["time"], "training") == [], path


def test_every_alarm_is_documented():
    root = Path(__file__).parents[2]
    raised = re.findall(r'_Found\(\s*f?"([a-z_{}]+)"', (root / "learner" / "alarms.py").read_text())
    assert len(raised) == 9
    names = {name.format(role=role) for name in raised for role in ("actor", "sandbox")}
    section = (root / "docs" / "troubleshooting.md").read_text().partition("## Alarms")[2]
    assert set(re.findall(r"^\| `([a-z_]+)` \|", section, re.MULTILINE)) == names

"""Trackers get everything that a run measured, once, by `zerotir track`; read back with their own packages."""

import json
import os
import subprocess
from pathlib import Path
from typing import get_args

import pytest

from configs.loading import dump_config, load_config
from configs.schema import TrackerName
from launch.cli import TRACKERS
from tests import tracked
from tests.processes import ZEROTIR
from tests.tracked import READERS, read
from tracking.tracker import KINDS

BEGAN = 1_700_000_000.0


def line(seq: int, role: str, id: str, step: int | None, **values: float) -> str:
    about = {"run": "r", "seq": seq, "time": BEGAN + seq, "role": role, "id": id, "step": step}
    return json.dumps(about | values) + "\n"


FIRST = [
    line(1, "sandbox", "sandbox", None, idle_ratio=1.0),
    line(2, "learner", "learner", 1, accuracy=0.25, tickets_open=4.0),
    line(3, "actor", "actor-0", None, tokens_per_s=100.0),
    line(4, "actor", "actor-1", None, tokens_per_s=50.0),
    line(5, "learner", "learner", 2, accuracy=0.5),
    "damaged\n",
    line(6, "evaluator", "eval-1/aime24/4", 2, **{"pass@4": 0.75}),
]
LATER = [
    line(7, "learner", "learner", 3, accuracy=0.625),
    line(9, "actor", "actor-0", None, tokens_per_s=75.0),
]
AFTER_FIRST = {
    "learner/accuracy": [(1, 0.25), (2, 0.5)],
    "learner/tickets_open": [(1, 4.0)],
    "evaluator/aime24/4/pass_at_4": [(2, 0.75)],
    "sandbox/sandbox/idle_ratio": [(0, 1.0)],
    "actor/actor-0/tokens_per_s": [(2, 100.0)],
    "actor/actor-1/tokens_per_s": [(3, 50.0)],
}
AFTER_ALL = AFTER_FIRST | {
    "learner/accuracy": [(1, 0.25), (2, 0.5), (3, 0.625)],
    "actor/actor-0/tokens_per_s": [(2, 100.0), (8, 75.0)],
}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run's folder; trackers keep what they have beside it, for these processes and for this one."""
    folder = tmp_path / "r"
    folder.mkdir()
    (folder / "config.yaml").write_text(dump_config(load_config("tiny", ["learner.steps=7"])))
    (folder / "metrics.jsonl").write_text("".join(FIRST))
    for name, value in tracked.environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    return folder


def track(run: Path, name: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*ZEROTIR, "track", str(run), "--to", name],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=os.environ | environment,
        cwd=run.parent,
    )


@pytest.mark.parametrize("name", READERS)
def test_a_tracker_gets_everything_once_and_goes_on_in_the_same_run(run: Path, name: str):
    done = track(run, name)
    assert done.returncode == 0, done.stderr
    first = read(run, name)
    assert first.points == AFTER_FIRST
    assert first.steps == 7
    if first.times:
        assert first.times["learner/accuracy"] == pytest.approx([BEGAN + 2, BEGAN + 5])
    with (run / "metrics.jsonl").open("a") as file:
        file.writelines(LATER)
    (run / "config.yaml").write_text(dump_config(load_config("tiny", ["learner.steps=9"])))
    done = track(run, name)
    assert done.returncode == 0, done.stderr
    again = read(run, name)
    assert again.points == AFTER_ALL
    assert again.steps == 9


def test_a_tracker_that_has_everything_gets_nothing(run: Path):
    for _ in range(2):
        done = track(run, "trackio")
        assert done.returncode == 0, done.stderr
    assert "measurements=0" in done.stderr
    assert read(run, "trackio").points == AFTER_FIRST


def test_a_step_that_is_trained_again_replaces_what_was_there_from_it_on_in_tensorboard(run: Path):
    again = [line(7, "learner", "learner", 3, accuracy=0.1), line(8, "learner", "learner", 2, accuracy=0.9)]
    with (run / "metrics.jsonl").open("a") as file:
        file.writelines(again)
    assert track(run, "tensorboard").returncode == 0
    assert read(run, "tensorboard").points["learner/accuracy"] == [(1, 0.25), (2, 0.9)]


def test_what_is_wrong_with_a_tracker_is_said(run: Path):
    missing = track(run, "mlflow", MLFLOW_TRACKING_URI="http://127.0.0.1:9", MLFLOW_HTTP_REQUEST_MAX_RETRIES="0")
    assert missing.returncode == 1
    assert "MLflow: " in missing.stderr
    assert "127.0.0.1" in missing.stderr
    nobody = track(run, "wandb", WANDB_MODE="online", WANDB_API_KEY="")
    assert nobody.returncode == 2, nobody.stderr
    assert "Or set WANDB_MODE=offline" in nobody.stderr
    (run / "trackers" / "wandb" / "position.json").write_text("{")
    damaged = track(run, "wandb")
    assert damaged.returncode == 2
    assert "position.json cannot be read: remove its folder to give wandb everything anew" in damaged.stderr
    other = track(run.parent / "nowhere", "wandb")
    assert other.returncode == 2
    assert "no run found" in other.stderr


def test_every_tracker_can_be_asked_for():
    assert TRACKERS == get_args(TrackerName) == tuple(KINDS) == tuple(READERS)

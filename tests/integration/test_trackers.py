"""Trackers get everything that a run measured, once, by `zerotir track`; read back with their own packages."""

import json
import os
import subprocess
from pathlib import Path
from typing import get_args

import pytest

from configs.loading import dump_config, load_config
from configs.schema import TrackerName
from launch.options import TRACKERS
from tests import tracked
from tests.processes import ZEROTIR
from tests.tracked import READERS, read
from tracking.tracker import KINDS

BEGAN = 1_700_000_000.0


def line(seq: int, role: str, id: str, step: int | None, time: float | None = None, **values: float) -> str:
    about = {
        "run": "r",
        "seq": seq,
        "time": BEGAN + seq if time is None else time,
        "role": role,
        "id": id,
        "step": step,
    }
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


def append(run: Path, *lines: str) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        file.writelines(lines)


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
    append(run, *LATER)
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


@pytest.mark.parametrize("at_once", [True, False])
def test_a_step_that_is_trained_again_replaces_what_was_there_from_it_on_in_tensorboard(run: Path, at_once: bool):
    if not at_once:
        assert track(run, "tensorboard").returncode == 0
    again = [line(7, "learner", "learner", 3, accuracy=0.1)] * at_once + [
        line(8, "learner", "learner", 2, accuracy=0.9)
    ]
    append(run, *again)
    assert track(run, "tensorboard").returncode == 0
    found = read(run, "tensorboard").points
    assert found["learner/accuracy"] == [(1, 0.25), (2, 0.9)]
    # What is no step's is not taken away.
    assert found["actor/actor-0/tokens_per_s"] == [(2, 100.0)]


def test_data_sets_of_one_version_stand_beside_each_other(run: Path):
    sets = [("aime24/4", 2, 0.1), ("math/4", 2, 0.2), ("aime24/4", 4, 0.3), ("math/4", 4, 0.4)]
    rows = [
        line(10 + at, "evaluator", f"e/{data}", version, accuracy=value)
        for at, (data, version, value) in enumerate(sets)
    ]
    append(run, *rows)
    assert track(run, "tensorboard").returncode == 0
    found = read(run, "tensorboard").points
    assert found["evaluator/aime24/4/accuracy"] == [(2, 0.1), (4, 0.3)]
    assert found["evaluator/math/4/accuracy"] == [(2, 0.2), (4, 0.4)]


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio", pytest.param("mlflow", marks=pytest.mark.slow)])
def test_what_an_actor_makes_up_spoils_nothing(run: Path, name: str):
    """Any actor may write metrics of any actor: names, steps and times as it likes."""
    odd = {"../../x": 1.0, "x/": 2.0, "a" * 128: 3.0, "//": 4.0}
    hostile = [
        line(1, "actor", "actor-0", None, time=9e10, tokens_per_s=1.0),
        *(line(2 + at, "actor", "a//" + "b" * 190, 90 - at, **odd) for at in range(20)),
    ]
    shifted = [
        json.dumps(json.loads(each) | {"seq": json.loads(each)["seq"] + 30}) for each in FIRST if each != "damaged\n"
    ]
    (run / "metrics.jsonl").write_text("".join(hostile) + "\n".join(shifted) + "\n")
    done = track(run, name)
    assert done.returncode == 0, done.stderr
    found = read(run, name).points
    assert found["learner/accuracy"] == [(1, 0.25), (2, 0.5)]
    assert found["sandbox/sandbox/idle_ratio"] == [(0, 1.0)]
    assert (2, 100.0) in found["actor/actor-0/tokens_per_s"]
    assert len(list((run / "trackers").rglob("*tfevents*"))) <= 4


@pytest.mark.slow
def test_another_place_gets_everything(run: Path):
    assert track(run, "mlflow").returncode == 0
    other = {"MLFLOW_TRACKING_URI": f"sqlite:///{run.parent}/other.db"}
    done = track(run, "mlflow", **other)
    assert done.returncode == 0, done.stderr
    assert "the tracker has this run at another place than before" in done.stderr
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", other["MLFLOW_TRACKING_URI"])
        assert read(run, "mlflow").points == AFTER_FIRST


def test_what_a_store_does_not_take_is_an_error_and_given_again(run: Path):
    (run.parent / "file").write_text("")
    lost = track(run, "trackio", TRACKIO_DIR=str(run.parent / "file" / "trackio"))
    assert lost.returncode == 1, lost.stderr
    assert "Trackio: " in lost.stderr
    done = track(run, "trackio")
    assert done.returncode == 0, done.stderr
    assert read(run, "trackio").points == AFTER_FIRST


NOBODY = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}


@pytest.mark.parametrize(
    ("name", "environment", "code", "words"),
    [
        ("mlflow", NOBODY, 1, "zerotir: MLflow: "),
        ("wandb", {"WANDB_MODE": "online", "WANDB_API_KEY": ""}, 2, "Or set WANDB_MODE=offline"),
        ("wandb", {"WANDB_MODE": "disabled"}, 2, "W&B is switched off (WANDB_MODE=disabled)"),
        ("wandb", {"WANDB_MODE": "nonsense"}, 2, "W&B does not take its settings: "),
    ],
)
def test_what_a_tracker_lacks_is_said_in_a_line(
    run: Path, name: str, environment: dict[str, str], code: int, words: str
):
    done = track(run, name, **environment)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_that_cannot_be_used_is_said(run: Path):
    folder = run / "trackers" / "wandb"
    folder.mkdir(parents=True)
    (folder / "position.json").write_text("{")
    damaged = track(run, "wandb")
    assert damaged.returncode == 2
    assert "position.json cannot be read: remove its folder to give wandb everything anew" in damaged.stderr
    (folder / "position.json").write_text('{"run": "other"}')
    other = track(run, "wandb")
    assert other.returncode == 2
    assert "is of run other, this is r: remove it to give wandb this one" in other.stderr
    (run / "trackers" / "mlflow").write_text("a file")
    assert "mlflow cannot be written (File exists)" in track(run, "mlflow").stderr
    nowhere = track(run.parent / "nowhere", "wandb")
    assert nowhere.returncode == 2
    assert "no run found" in nowhere.stderr


def test_every_tracker_can_be_asked_for():
    assert TRACKERS == get_args(TrackerName) == tuple(KINDS) == tuple(READERS)

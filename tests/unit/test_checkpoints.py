"""Checkpoints: which are kept, and what a crash in the middle of one leaves."""

from collections.abc import Callable
from pathlib import Path

import pytest

from configs.training import CheckpointConfig
from learner.checkpoints import STATE, CheckpointError, Checkpoints


def save_as(text: str) -> Callable[[Path], None]:
    def save(folder: Path) -> None:
        (folder / "policy").mkdir()
        (folder / "policy" / "weights").write_text(text)

    return save


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write(checkpoints: Checkpoints, step: int, accuracy: float | None = None) -> Path:
    metrics = {"loss": 0.0} if accuracy is None else {"accuracy": accuracy}
    return checkpoints.write(step, save_as(str(step)), {"position": 10 * step}, metrics)


def test_the_newest_ones_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, CheckpointConfig(keep=2))
    assert checkpoints.newest() is None
    for step in (3, 9, 12):
        path = write(checkpoints, step)
        assert checkpoints.newest() == path
        assert Checkpoints.read(path) == {"step": step, "position": 10 * step}
    assert names(tmp_path) == ["step-000009", "step-000012"]
    assert (tmp_path / "step-000009" / "policy" / "weights").read_text() == "9"
    assert checkpoints.best() is None


def test_the_best_one_is_kept_as_well(tmp_path):
    checkpoints = Checkpoints(tmp_path, CheckpointConfig(keep=1, best="accuracy"))
    for step, accuracy in ((1, 0.2), (2, 0.7), (3, 0.7), (4, None), (5, float("nan")), (6, 0.1)):
        write(checkpoints, step, accuracy)
    assert names(tmp_path) == ["step-000002", "step-000006"]
    assert checkpoints.best() == tmp_path / "step-000002"
    write(checkpoints, 7, 0.8)
    assert names(tmp_path) == ["step-000007"]


def test_a_crash_while_one_is_written_leaves_the_one_before(tmp_path):
    checkpoints = Checkpoints(tmp_path, CheckpointConfig(keep=1))
    good = write(checkpoints, 1)

    def crash(folder: Path) -> None:
        save_as("half")(folder)
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        checkpoints.write(2, crash, {}, {})
    assert checkpoints.newest() == good
    assert Checkpoints.read(good)["step"] == 1
    # What is left of it does not stand in the way of the next attempt.
    assert write(checkpoints, 2) == checkpoints.newest()
    assert names(tmp_path) == ["step-000002"]


def test_a_second_one_after_the_same_step_never_replaces_the_first(tmp_path):
    checkpoints = Checkpoints(tmp_path, CheckpointConfig(keep=2))
    for number in range(1, 15):
        path = checkpoints.write(7, save_as(str(number)), {"position": number}, {})
        assert checkpoints.newest() == path
        assert Checkpoints.read(path)["position"] == number
    assert len(names(tmp_path)) == 2
    assert write(checkpoints, 8) == checkpoints.newest()


@pytest.mark.parametrize("content", [None, b"", b"\xc1", b"\x81\xa4step"])
def test_one_that_cannot_be_read_is_named(tmp_path, content):
    path = write(Checkpoints(tmp_path, CheckpointConfig()), 4)
    (path / STATE).unlink()
    if content is not None:
        (path / STATE).write_bytes(content)
    with pytest.raises(CheckpointError, match="step-000004"):
        Checkpoints.read(path)


def test_nobody_else_may_write_where_pickles_are_read(tmp_path):
    path = write(Checkpoints(tmp_path / "checkpoints", CheckpointConfig()), 1)
    assert (tmp_path / "checkpoints").stat().st_mode & 0o077 == 0
    assert path.stat().st_mode & 0o077 == 0

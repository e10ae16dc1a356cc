"""Steps without anything to train on: a run ends that cannot learn, and goes on while it may yet."""

from pathlib import Path
from typing import Any

import msgpack
import pytest
import structlog

from bus.messages import Failure, FinishReason
from configs.loading import load_config
from learner.steps import Steps, UntrainedError
from learner.tickets.filters import UNTRAINED_STEPS
from learner.tickets.token_values import read_values, write_values
from learner.training.emulated_trainer import EmulatedTrainer
from tests.archived import values_of
from tests.factories import answer, failure, trajectory


@pytest.fixture
def steps(tmp_path: Path) -> Steps:
    return make(tmp_path)


def make(folder: Path, *overrides: str) -> Steps:
    settings = ["learner.steps=20", "learner.batch_groups=2", "learner.group_size=2"]
    settings += ["learner.filters.overlong=true", "learner.filters.no_signal=true"]
    (folder / "config.json").write_text('{"vocab_size": 100}')
    return Steps(load_config("emulated", [*settings, *overrides]), EmulatedTrainer(folder), folder, folder / "tokens")


def step(steps: Steps, version: int, kind: str) -> dict[str, float]:
    """Answers all tickets of a version's batch in one way, and trains on it."""
    ledger = steps.ledger
    ledger.admit(version)
    while (chosen := ledger.ready(version)) is None:
        group = min(group for group, results in ledger._open.items() if len(results) < ledger.group_size)
        for sample, ticket in enumerate(ledger.tickets(group)):
            result: Any = answer(ledger, ticket, reward=float(sample) if kind == "good" else 0.0, version=version)
            if kind == "long":
                result = result.model_copy(update={"finish_reason": FinishReason.LENGTH})
            if kind == "failed":
                result = failure(ledger, ticket, reason="prompt too long")
                assert isinstance(result, Failure)
            assert ledger.accept(ledger.position + 1, result) is None
    assert chosen is not None
    return steps.train(ledger.take(version))


@pytest.mark.parametrize(("kind", "reason"), [("failed", "prompt too long 100%"), ("long", "overlong 100%")])
def test_steps_that_cannot_train_end_the_run_with_the_reason(steps: Steps, kind: str, reason: str):
    step(steps, 0, "good")
    for version in range(1, UNTRAINED_STEPS):
        step(steps, version, kind)
    with pytest.raises(UntrainedError, match=rf"the last 3 steps up to step 4 had nothing to train on: .*{reason}"):
        step(steps, UNTRAINED_STEPS, kind)


def test_a_step_that_trains_begins_the_count_anew(steps: Steps):
    for version in range(12):
        step(steps, version, "good" if version % 3 == 2 else "failed")


def test_values_of_an_earlier_training_are_gone_where_a_step_has_nothing_to_train_on(tmp_path: Path):
    steps = make(tmp_path)
    write_values(tmp_path / "tokens", 1, [values_of(trajectory())])
    step(steps, 0, "failed")
    assert read_values(tmp_path / "tokens", 1) == {}


def test_values_that_cannot_be_written_end_no_run(tmp_path: Path):
    steps = make(tmp_path)
    (tmp_path / "tokens").write_text("no folder")
    with structlog.testing.capture_logs() as logs:
        step(steps, 0, "failed")
    assert [line["event"] for line in logs if "tokens" in line["event"]] == [
        "what the step made of its tokens is not kept"
    ]


def test_a_whole_run_that_trained_nothing_has_not_succeeded(tmp_path: Path):
    steps = make(tmp_path, "learner.steps=2")
    step(steps, 0, "failed")
    with pytest.raises(UntrainedError, match="the last 2 steps up to step 2"):
        step(steps, 1, "failed")


@pytest.mark.parametrize(
    "overrides",
    [[], ["learner.filters.no_signal=false", "learner.filters.accuracy_band=[0.1, 0.9]"]],
    ids=["no signal", "accuracy band"],
)
def test_groups_without_a_signal_are_told_and_end_nothing(tmp_path: Path, overrides: list[str]):
    steps = make(tmp_path, *overrides)
    with structlog.testing.capture_logs() as logs:
        for version in range(5):
            step(steps, version, "same")
    told = [line for line in logs if "all right or all wrong" in line["event"]]
    assert [line["step"] for line in told] == [1, 2, 3, 4, 5]
    assert all("learner.group_size" in line["event"] for line in told)


def test_steps_without_a_signal_are_not_counted_with_those_that_cannot_train(steps: Steps):
    for version in range(6):
        step(steps, version, "same" if version % 3 == 2 else "failed")
    for version in range(6, 8):
        step(steps, version, "failed")
    with pytest.raises(UntrainedError, match=r"the last 3 steps up to step 9 .*prompt too long 100%"):
        step(steps, 8, "failed")


def test_the_count_goes_on_from_a_checkpoint(tmp_path: Path):
    steps = make(tmp_path)
    for version in range(2):
        step(steps, version, "failed")
    resumed = make(tmp_path)
    resumed.restore(steps.state())
    with pytest.raises(UntrainedError, match="the last 3 steps up to step 3"):
        step(resumed, 2, "failed")
    assert msgpack.unpackb(msgpack.packb(steps.state()), strict_map_key=False) == steps.state()

"""Replay on the tiny model: the archive alone decides, batch by batch, and the weights come out the same to the bit."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from bus.messages import Trajectory
from bus.metrics import steps_of
from configs.loading import ConfigError, load_config
from configs.schema import RunConfig
from launch.replay_command import start
from learner.tickets.archive import read_archive
from learner.training.rank_trainer import RankTrainer
from runtime.models import model_folder
from tests.integration.recorded import BATCHES, ORDER, replay, write_run


@pytest.fixture
def record(tmp_path: Path) -> Callable[..., Path]:
    """Writes the folder that a run leaves, see `write_run`."""

    def write(*settings: str, **made_up: Any) -> Path:
        run = tmp_path / "run"
        write_run(run, *settings, **made_up)
        return run

    return write


def trajectories(archive: Path) -> list[Trajectory]:
    return [item for _, item in read_archive(archive) if isinstance(item, Trajectory)]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(AutoModelForCausalLM.from_pretrained(folder).named_parameters())


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(weight, other[name]) for name, weight in one.items())


@pytest.fixture
def by_hand() -> Callable[[Path], dict[str, torch.Tensor]]:
    def train(run: Path) -> dict[str, torch.Tensor]:
        config: RunConfig = load_config(str(run / "config.yaml"))
        groups: dict[int, list[Trajectory]] = {}
        for item in trajectories(run / "results"):
            groups.setdefault(item.group, []).append(item)
        trainer = RankTrainer(config, model_folder("random-tiny"))
        for version, numbers in enumerate(BATCHES):
            # Group 4 lost a sample to a failure: one is no group.
            trainer.train([groups[number] for number in numbers if number != 4], version)
        result = dict(trainer.policy.named_weights())
        trainer.close()
        return result

    return train


def test_replay_trains_the_batches_that_the_log_gives(record, by_hand, capsys):
    run = record()
    out = replay(run)
    assert equal(weights(out / "model"), by_hand(run))
    assert "the run has exported no model" in capsys.readouterr().out
    steps = steps_of(out)
    assert [step["step"] for step in steps] == [1, 2, 3]
    assert [step["trained_trajectories"] for step in steps] == [4, 4, 2]
    assert steps[-1]["tickets_failed"] == 1

    # Beside the model that a run has exported it says whether it came to the same.
    (out / "model").rename(run / "model")
    replay(run, out="again")
    assert "bit for bit" in capsys.readouterr().out
    replay(run, "learner.algorithm.loss=ppo", "learner.algorithm.clip_high=0.01", out="other")
    assert "differ" in (said := capsys.readouterr().out)
    assert "the configuration differs" in said


def test_an_archive_that_ends_early_is_trained_as_far_as_it_goes(record, capsys):
    out = replay(record(groups=ORDER[:4]))
    assert [step["step"] for step in steps_of(out)] == [1, 2]
    assert "ends after step 2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("override", "message"),
    [("learner.batch_groups=3", "batch_groups"), ("learner.steps=2", "steps"), ("learner.nonsense=1", "nonsense")],
)
def test_what_decides_the_results_may_not_be_changed(record, override, message):
    run = record()
    arguments = argparse.Namespace(run=run, set=[override], ranks=None, out=run / "out", verbose=False)
    with pytest.raises(ConfigError, match=message):
        start(arguments)
    assert not (run / "out").exists()


# The critic, which here learns before the policy does, has weights beyond all bounds once it has learned.
OF_CRITIC = (
    *("learner.algorithm.advantage=gae", "learner.critic.minibatches=1", "learner.critic.frozen_policy_steps=2"),
    "learner.critic.optimizer.lr=1e30",
)


@pytest.mark.parametrize(
    ("temperature", "settings", "step", "batch"),
    # Logits over a temperature near the smallest float are infinite.
    [(1e-44, ("learner.algorithm.minibatches=1",), 2, [3, 4, 7, 8]), (0.7, OF_CRITIC, 3, [9, 11, 12])],
    ids=["policy", "critic"],
)
def test_a_run_without_finite_gradients_stops_and_keeps_the_batch(
    record, capsys, temperature: float, settings: tuple[str, ...], step: int, batch: list[int]
):
    run = record("learner.max_skipped_updates=2", *settings, temperature=temperature)
    arguments = argparse.Namespace(run=run, set=[], ranks=None, out=run / "out", verbose=False)
    assert start(arguments) == 1
    said = capsys.readouterr().err
    assert f"2 updates up to step {step} were not finite" in said
    kept = trajectories(run / "out" / "not-finite")
    assert str(run / "out" / "not-finite") in said
    assert [item.ticket for item in kept] == batch
    originals = {item.ticket: item for item in trajectories(run / "results")}
    assert all(np.array_equal(item.tokens, originals[item.ticket].tokens) for item in kept)

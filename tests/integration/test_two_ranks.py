"""Two ranks and one make the same updates, by a command that a user starts in a folder of their own."""

import os
import subprocess
from pathlib import Path

import pytest

from bus.metrics import steps_of
from learner.replay import difference
from runtime.models import model_folder
from tests.integration.recorded import replay, write_run
from tests.user_folder import ZEROTIR, write_user_folder

# What a rank must take from the whole minibatch, and could take from its own share of it: GRPO's lengths, the ratios of
# whole trajectories, the number of tokens. Micro-batches of few trajectories leave one rank more of them than the other.
SETTINGS = (
    "learner.algorithm.advantage=grpo",
    "learner.algorithm.sequence_band=[0.72, 1.4]",
    "learner.algorithm.kl_coefficient=0.1",
    "learner.deepspeed.micro_batch_tokens=60",
    "learner.deepspeed.zero_stage=2",
)
OF_TIME = {"train_seconds", "train_tokens_per_s", "time"}


def test_two_ranks_come_to_the_weights_and_metrics_of_one(tmp_path: Path):
    run, two = tmp_path / "run", tmp_path / "two"
    write_run(run, *SETTINGS)
    done = subprocess.run(
        [ZEROTIR, "replay", run, "--ranks", "2", "--out", two],
        cwd=write_user_folder(tmp_path / "mine"),
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    one = replay(run, out="one")
    steps = list(zip(steps_of(two), steps_of(one), strict=True))
    assert len(steps) == 3
    for theirs, ours in steps:
        assert set(theirs) == set(ours)
        for name in {name for name, value in ours.items() if isinstance(value, float)} - OF_TIME:
            assert theirs[name] == pytest.approx(ours[name], rel=2e-3, abs=1e-6), name
    # Not a comparison of what was masked, or never moved.
    assert any(0.0 < ours["sequence_masked"] < 1.0 for _, ours in steps)
    assert all(ours["grad_norm"] > 0.1 for _, ours in steps)
    moved = difference(model_folder("random-tiny"), one / "model")
    assert moved.largest > 1e-3
    assert difference(two / "model", one / "model").largest < 0.02 * moved.largest

"""A run of a model with bfloat16 weights, computed in float32 and in bfloat16: what a run on a real model does."""

import os
import subprocess
from pathlib import Path

import pytest

from bus.metrics import steps_of
from tests.processes import ZEROTIR, processes_of

# Mean k3 a token between engine and learner on the same weights: passes in float32 agree to rounding; bfloat16 rounds in
# other places in each.
AGREEMENT = {"float32": 1e-7, "bfloat16": 3e-3}


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("compute", AGREEMENT)
def test_engine_and_learner_agree_and_a_replay_comes_to_the_same_state(tmp_path: Path, compute: str):
    settings = (
        f"launch.runs_dir={tmp_path}/runs",
        "model.dtype=bfloat16",
        f"model.compute_dtype={compute}",
        "learner.steps=3",
        # So that the policy that trains is the one that sampled.
        "learner.max_staleness=0",
        "learner.optimizer.lr=1e-3",
    )
    overrides = [part for setting in settings for part in ("--set", setting)]
    environment = {**os.environ, "ZEROTIR_TEST_RUN": str(tmp_path)}
    done = subprocess.run(
        [*ZEROTIR, "up", "tiny", *overrides], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    [run] = (tmp_path / "runs").glob("tiny-*")
    steps = steps_of(run)
    assert len(steps) == 3
    for step in steps:
        assert step["staleness_max"] == 0
        assert 0.0 <= step["behaviour_kl"] < AGREEMENT[compute]
        assert step["trained_tokens"] > 100
    replay = [*ZEROTIR, "replay", str(run), "--out", str(tmp_path / "again")]
    said = subprocess.run(replay, env=environment, capture_output=True, text=True, timeout=120, check=True).stdout
    assert "optimiser state: the same as in step-000003, bit for bit" in said
    assert "as the run's, bit for bit" in said
    assert processes_of(tmp_path) == []

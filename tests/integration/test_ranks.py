"""Two ranks and one: the same gradient, whatever the micro-batches and the ZeRO stage; and a learner of two ranks."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from bus.metrics import steps_of
from configs.schema import RunConfig
from learner.replay import difference
from learner.training import policy
from learner.training.rank_group import RankGroup
from learner.training.rank_trainer import RankTrainer
from runtime.models import model_folder
from tests.factories import random_batch
from tests.integration.plain import TRAIN, plain_gradient
from tests.integration.ranks_program import (
    BUDGETS,
    CRITICS,
    MAX_LOGITS,
    OF_BFLOAT16,
    STAGES,
    STEEP,
    TIED,
    VARIANTS,
    config,
    variant,
)
from tests.processes import Roles, processes_of
from tests.user_folder import ZEROTIR, write_user_folder

TIMEOUT_S = 240


def launch(ranks: int, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Runs `python -m ARGUMENTS` on ranks of this machine, one thread each."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "-m"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, *arguments], env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the folder in which the ranks work, with a model whose output embeddings are its input's."""
    folder, untied = tmp_path_factory.mktemp("ranks"), model_folder("random-tiny")
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(untied, tie_word_embeddings=True))
    model.save_pretrained(folder / TIED)
    return folder


@pytest.fixture(scope="module")
def two_ranks(folder: Path) -> dict[Any, Any]:
    done = launch(2, "tests.integration.ranks_program", str(folder))
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(folder / "results.pt", weights_only=True)


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Returns each model's gradient, under the name of its folder."""
    models = (model_folder("random-tiny"), folder / TIED)
    return {model.name: plain_gradient(model, random_batch(), cap=2.0) for model in models}


@pytest.fixture
def one_rank() -> Iterator[Callable[..., RankGroup]]:
    """Makes a group of this process alone and closes it after the test."""
    made: list[RankGroup] = []

    def make(settings: RunConfig) -> RankGroup:
        made.append(RankGroup(RankTrainer(settings, model_folder("random-tiny"))))
        return made[-1]

    yield make
    for group in made:
        group.close()


def assert_same_metrics(
    theirs: dict[str, float], ours: dict[str, float], rel: float = 2e-3, at_the_bound: int = 0
) -> None:
    """`at_the_bound`: tokens that may count as clipped for one and not for the other, since rounding decides about them."""
    assert set(theirs) == set(ours)
    tokens = at_the_bound / ours["trained_tokens"]
    for name in set(ours) - {"train_seconds", "train_tokens_per_s"}:
        bound = max(1e-6, tokens) if name.endswith("clip_fraction") else 1e-6
        assert theirs[name] == pytest.approx(ours[name], rel=rel, abs=bound), name


@pytest.mark.slow
@pytest.mark.parametrize(("model", "budget"), [*(("random-tiny", budget) for budget in BUDGETS), (TIED, 100)])
@pytest.mark.parametrize("stage", STAGES)
def test_two_ranks_give_the_gradient_of_plain_transformers(two_ranks, expected, stage, model, budget):
    result, expected = two_ranks[model, stage, budget], expected[model]
    assert result["gradient"].keys() == expected.keys()
    for name, gradient in result["gradient"].items():
        assert gradient.abs().max() > 1e-5
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=2e-6)
    norm = torch.stack([gradient.norm() for gradient in expected.values()]).norm()
    assert result["metrics"]["grad_norm"] == pytest.approx(float(norm), rel=1e-3)
    # One rank's infinity is left out by both.
    assert result["skipped"] == 1
    assert result["unchanged"]
    assert result["restored"]
    assert result["repeated"]


@pytest.mark.slow
def test_two_ranks_report_the_metrics_of_one(two_ranks, one_rank):
    group = one_rank(config(2, 300, TRAIN, 2))
    for seed, theirs in enumerate(two_ranks["metrics"]):
        assert_same_metrics(theirs, group.train(random_batch(seed), seed + 1))


@pytest.mark.slow
def test_two_ranks_find_engines_that_had_other_weights_and_go_on(two_ranks):
    assert "engine and learner disagree on version 0.0" in two_ranks["gap"]
    assert two_ranks["unchanged by the gap"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, "float32") for name in VARIANTS), *((name, "bfloat16") for name in OF_BFLOAT16)]
)
def test_two_ranks_train_by_every_algorithm_as_one_does(two_ranks, one_rank, name, dtype, monkeypatch):
    if dtype == "bfloat16":
        # Chunks of another size round otherwise, which bfloat16's tokens at the clip's bounds do not forgive.
        monkeypatch.setattr(policy, "MAX_LOGITS", MAX_LOGITS)
    group = one_rank(variant(name, dtype))
    steps = [group.train(random_batch(seed), seed + 1) for seed in range(2)]
    for theirs, ours in zip(two_ranks[name, dtype], steps, strict=True):
        # Sums in another order round otherwise, and in the second step passes are of other weights.
        if dtype == "float32":
            assert_same_metrics(theirs, ours)
        else:
            assert_same_metrics(theirs, ours, rel=2e-2, at_the_bound=2)
    assert all(step["grad_norm"] > 0.01 and step["clip_fraction"] > 0.01 for step in steps)
    if "band" in name:
        assert all(0.0 < step["sequence_masked"] < 1.0 for step in steps)


@pytest.mark.slow
@pytest.mark.parametrize(("advantage", "stage", "budget"), CRITICS)
def test_two_ranks_train_a_critic_and_the_policy_as_one_does(two_ranks, one_rank, advantage, stage, budget):
    group = one_rank(config(2, 300, STEEP, 2, advantage=advantage, kl_coefficient=0.1))
    steps = [group.train(random_batch(seed), seed + 1) for seed in range(3)]
    two = two_ranks[advantage, stage, budget]
    for theirs, ours in zip(two["steps"], steps, strict=True):
        assert_same_metrics(theirs, ours)
    # Not a comparison of zeros.
    for name in ("critic_grad_norm", "value_mean", "value_clip_fraction", "grad_norm", "clip_fraction", "reference_kl"):
        assert max(abs(step[name]) for step in steps) > 1e-4, name
    # Both engines went back to the checkpoint.
    once, again = two["steps"][-1], two["again"]
    assert {name: again[name] for name in again if "train_" not in name} == {
        name: once[name] for name in once if "train_" not in name
    }


@pytest.mark.slow
@pytest.mark.timeout(2 * TIMEOUT_S)
def test_a_learner_of_two_ranks_trains_live_stops_resumes_and_replays_bit_for_bit(tmp_path: Path):
    folder = tmp_path / "run"
    settings = ("learner.steps=4", "learner.checkpoint.every=1", "learner.deepspeed.zero_stage=3")
    roles = Roles(folder, *settings, "learner.deepspeed.micro_batch_tokens=300")
    deadline = time.monotonic() + TIMEOUT_S
    try:
        roles.start_all_but_the_learner(deadline)
        learner = roles.start("learner", "--ranks", "2")
        while not steps_of(folder):
            assert learner.poll() is None, roles.output("learner")
            assert time.monotonic() < deadline, roles.output("learner")
            time.sleep(0.05)
        learner.terminate()
        assert learner.wait(timeout=60) == 130, roles.output("learner")
        assert not [line for line in processes_of(folder) if "launch.cli learner" in line]
        assert roles.start("learner", "--ranks", "2").wait(timeout=TIMEOUT_S) == 0, roles.output("learner")
    finally:
        roles.stop()
    assert [step["step"] for step in steps_of(folder)] == [1, 2, 3, 4]
    out = tmp_path / "replay"
    replay = [sys.executable, "-m", "launch.cli", "replay", str(folder), "--out", str(out), "--ranks", "2"]
    environment = {**os.environ, "ZEROTIR_TEST_RUN": str(folder)}
    said = subprocess.run(replay, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=True).stdout
    assert "optimiser state: the same as in step-000004, bit for bit" in said
    assert difference(folder / "model", out / "model").different == 0
    assert processes_of(folder) == []


@pytest.mark.slow
def test_zerotir_up_starts_as_many_ranks_as_it_is_told(tmp_path: Path):
    folder = write_user_folder(tmp_path / "mine")
    settings = ["launch.learner_ranks=2", "learner.steps=2", "learner.deepspeed.zero_stage=3", "launch.page=false"]
    command = [str(ZEROTIR), "up", "tiny", *(part for setting in settings for part in ("--set", setting))]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    run = (folder / "runs" / "latest").resolve()
    assert [step["step"] for step in steps_of(run)] == [1, 2]
    # Each rank writes its own part of the optimiser.
    assert len(list((run / "checkpoints" / "step-000002" / "policy").glob("*optim_states.pt"))) == 2

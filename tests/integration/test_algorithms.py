"""Every algorithm through the trainer on a tiny random model: passes, clips, critic, reference, checkpoints."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from bus.messages import Trajectory
from configs.schema import AlgorithmConfig, LearnerConfig, ModelConfig, RunConfig
from configs.tasks import ProblemsConfig, TasksConfig
from configs.training import OptimizerConfig
from learner.training.batches import MicroBatch, micro_batches
from learner.training.rank_trainer import CRITIC_METRICS, POLICY_METRICS, RankTrainer
from learner.training.trainer import TokenOutcome
from runtime.models import model_folder
from tests.factories import random_batch
from tests.integration.plain import (
    GRADIENT,
    TRAIN,
    Weights,
    behave_like,
    difference,
    plain_logprobs,
    weights,
)

pytestmark = pytest.mark.usefixtures("process_group")

ESTIMATORS = ["reinforce++-baseline", "reinforce++", "grpo", "gae", "vtrace"]


@pytest.fixture(scope="module")
def folder() -> Path:
    return model_folder("random-tiny")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """More threads only get in each other's way on a model this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def new_trainer(folder: Path) -> Iterator[Callable[..., RankTrainer]]:
    """Makes trainers and closes them after the test."""
    made: list[RankTrainer] = []

    def make(
        optimizer: OptimizerConfig = TRAIN,
        budget: int = 4096,
        critic: dict[str, object] | None = None,
        **algorithm: object,
    ) -> RankTrainer:
        learner = {
            "steps": 10,
            "algorithm": {"minibatches": 1} | algorithm,
            "critic": {"minibatches": 2, "optimizer": {"lr": 1e-3}} | (critic or {}),
            "optimizer": optimizer.model_dump(),
            "deepspeed": {"micro_batch_tokens": budget},
        }
        config = RunConfig(
            name="test",
            seed=3,
            model=ModelConfig(path="random-tiny", dtype="float32"),
            tasks=TasksConfig(problems=ProblemsConfig(recipe="products")),
            learner=LearnerConfig.model_validate(learner),
        )
        made.append(RankTrainer(config, folder))
        return made[-1]

    yield make
    for trainer in made:
        trainer.close()


def flat(groups: list[list[Trajectory]]) -> list[Trajectory]:
    return [item for group in groups for item in group]


def on_policy(trainer: RankTrainer, seed: int = 0) -> list[list[Trajectory]]:
    """A batch that the trainer's policy could have sampled."""
    return [behave_like(trainer.policy, group) for group in random_batch(seed)]


def values_of(trainer: RankTrainer, items: list[Trajectory]) -> torch.Tensor:
    return torch.cat(trainer._passes.evaluate(trainer._critic.values, items))  # type: ignore[union-attr]


def count_passes(trainer: RankTrainer, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Notes of each pass of the policy from now on whether it had a gradient."""
    passes: list[bool] = []
    forward = trainer.policy.token_logprobs

    def counted(micro: MicroBatch) -> torch.Tensor:
        passes.append(torch.is_grad_enabled())
        return forward(micro)

    monkeypatch.setattr(trainer.policy, "token_logprobs", counted)
    return passes


def test_a_restored_critic_has_the_settings_that_it_was_made_with(new_trainer, tmp_path):
    written = new_trainer(advantage="gae")
    written.train(random_batch(1), 1)
    written.save(tmp_path)
    other = new_trainer(advantage="gae", critic={"optimizer": {"lr": 5e-4, "schedule": "linear"}})
    other.load(tmp_path)
    # Two of the critic's twenty updates are done; the metric is that of the fourth.
    assert other.train(random_batch(2), 2)["critic_learning_rate"] == pytest.approx(5e-4 * (1 - 3 / 20), rel=1e-12)


@pytest.mark.parametrize("advantage", ESTIMATORS)
def test_one_minibatch_clips_nothing_and_a_second_one_can(new_trainer, monkeypatch, advantage):
    trainer = new_trainer(OptimizerConfig(lr=1e-2), budget=64, advantage=advantage)
    groups = on_policy(trainer)
    micros = len(micro_batches(flat(groups), torch.zeros(12), 64))
    passes = count_passes(trainer, monkeypatch)
    one = trainer.train(groups, 1)
    # V-trace alone has to know the proximal policy before it knows the advantages.
    assert passes == [False] * micros * (advantage == "vtrace") + [True] * micros
    assert one["clip_fraction"] == 0.0
    assert one["skipped_updates"] == 0.0
    # The proximal policy is the one that sampled the batch, at a temperature of 0.7.
    assert one["importance_weight_mean"] == pytest.approx(1.0, abs=1e-5)
    assert one["sequence_ratio_min"] == pytest.approx(1.0, abs=1e-5)
    assert one["sequence_ratio_max"] == pytest.approx(1.0, abs=1e-5)
    # Without a reference there is no divergence from it, and the batch is stale: nothing to hold its engines against.
    critics = CRITIC_METRICS if advantage in ("gae", "vtrace") else ()
    assert set(one) == {*POLICY_METRICS, *critics} - {"reference_kl", "engine_gap"}

    two = new_trainer(OptimizerConfig(lr=1e-2), budget=64, advantage=advantage, minibatches=2)
    passes = count_passes(two, monkeypatch)
    metrics = two.train(groups, 1)
    assert metrics["clip_fraction"] > 0.0
    # The proximal pass of the second minibatch (V-trace has made it) comes before any update.
    assert False in passes
    assert passes == sorted(passes)
    assert passes.count(False) < passes.count(True) or advantage == "vtrace"


@pytest.mark.parametrize("advantage", ESTIMATORS)
def test_packing_changes_no_gradient(new_trainer, advantage):
    changes = []
    for budget, groups in ((40, random_batch()), (4096, [group[::-1] for group in random_batch()[::-1]])):
        # The critic's values differ from 0 only once its head does.
        trainer = new_trainer(
            GRADIENT, budget, {"optimizer": GRADIENT.model_dump(), "minibatches": 1}, advantage=advantage
        )
        if trainer._critic is not None:
            torch.nn.init.normal_(
                trainer._critic._engine.module.head.weight, generator=torch.Generator().manual_seed(0)
            )
        before = weights(trainer)
        trainer.train(groups, 1)
        change = difference(weights(trainer), before)
        if trainer._critic is not None:
            head = trainer._critic._engine.module.head.weight.detach().clone()
            change["critic"] = head / 1e3
        changes.append(change)
    for name, gradient in changes[0].items():
        assert gradient.abs().max() > 1e-6, name
        torch.testing.assert_close(gradient, changes[1][name], rtol=1e-3, atol=2e-6)


def plain_gradient(folder: Path, items: list[Trajectory], factors: list[float]) -> Weights:
    """Of -sum_i factor_i sum_t log pi, a trajectory at a time."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for item, factor in zip(items, factors, strict=True):
        (-factor * plain_logprobs(model, item).sum()).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def test_grpo_averages_over_trajectories_first_and_a_band_masks_whole_ones(folder, new_trainer):
    trainer = new_trainer(GRADIENT, 100, advantage="grpo", sequence_band=(0.5, 2.0))
    groups = on_policy(trainer)
    # The tokens of one trajectory were e times as probable for the behaviour policy.
    outlier = groups[1][2]
    groups[1][2] = outlier.model_copy(
        update={"logprobs": np.where(outlier.loss_mask, outlier.logprobs - 1.0, 0).astype(np.float32)}
    )
    before = weights(trainer)
    metrics = trainer.train(groups, 1)
    assert metrics["sequence_masked"] == pytest.approx(1 / 12)
    assert metrics["sequence_ratio_max"] == pytest.approx(np.e, rel=1e-4)
    items = flat(groups)
    rewards = np.array([item.reward for item in items]).reshape(3, 4)
    advantages = ((rewards - rewards.mean(1, keepdims=True)) / rewards.std(1, keepdims=True)).ravel()
    factors = [a / item.loss_mask.sum() / 12 for a, item in zip(advantages, items, strict=True)]
    factors[6] = 0.0
    expected = plain_gradient(folder, items, factors)
    for name, gradient in difference(weights(trainer), before).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=2e-6)


@pytest.mark.parametrize("advantage", ["reinforce++-baseline", "grpo", "reinforce++", "gae", "vtrace"])
@pytest.mark.parametrize("frozen", [0, 5])
def test_a_watcher_is_told_what_the_step_made_of_each_token(new_trainer, advantage, frozen):
    trainer = new_trainer(advantage=advantage, minibatches=2, critic={"frozen_policy_steps": frozen})
    groups = random_batch()
    items = flat(groups)
    proximal = trainer._passes.evaluate(trainer.policy.token_logprobs, items)
    told: list[TokenOutcome] = []
    metrics = trainer.train(groups, 1, watcher=told.extend)
    for item, now, outcome in zip(items, proximal, told, strict=True):
        np.testing.assert_allclose(outcome.log_ratios, now.numpy() - item.logprobs[item.loss_mask == 1], atol=1e-4)
    advantages = np.concatenate([np.broadcast_to(each.advantages, each.log_ratios.shape) for each in told])
    assert advantages.mean() == pytest.approx(metrics["advantage_mean"], abs=1e-5)
    assert advantages.std() == pytest.approx(metrics["advantage_std"], rel=1e-4)
    told.clear()
    trainer.train([], 2, watcher=told.extend)
    assert told == []


def test_ratios_are_measured_whether_or_not_the_loss_uses_them(new_trainer):
    # Metrics of the policies' distance, of a batch that the policy did not sample.
    names = [name for name in POLICY_METRICS if name.startswith(("importance_", "sequence_", "behaviour_"))]
    assert len(names) == 8
    measured = []
    variants: tuple[dict[str, object], ...] = (
        {},
        {"token_weights": False},
        {"loss": "ppo"},
        {"sequence_band": (0.9, 1.1)},
        {"dual_clip": 2.0},
    )
    for algorithm in variants:
        metrics = new_trainer(**algorithm).train(random_batch(), 1)
        measured.append({name: metrics[name] for name in names})
    for other in measured[1:]:
        masked = other.pop("sequence_masked")
        assert other == pytest.approx({name: measured[0][name] for name in other})
        assert masked == (0.0 if other is not measured[3] else pytest.approx(masked))
    assert measured[0]["importance_weight_capped"] > 0.0
    assert measured[0]["sequence_ratio_min"] < 0.9


def test_weights_that_are_off_leave_plain_ppo(folder, new_trainer):
    trainer, groups = new_trainer(GRADIENT, token_weights=False), random_batch()
    before = weights(trainer)
    trainer.train(groups, 1)
    items = flat(groups)
    centred = np.array([item.reward - np.mean([o.reward for o in groups[item.group]]) for item in items])
    tokens = sum(item.loss_mask.sum() for item in items)
    expected = plain_gradient(folder, items, [a / centred.std() / tokens for a in centred])
    for name, gradient in difference(weights(trainer), before).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=2e-6)


def test_the_reference_is_the_first_policy_and_pulls_back_to_it(new_trainer):
    free, held = new_trainer(OptimizerConfig(lr=1e-2)), new_trainer(OptimizerConfig(lr=1e-2), kl_coefficient=10.0)
    distances = []
    for trainer in (free, held):
        metrics = [trainer.train(on_policy(trainer), version) for version in (1, 2, 3)]
        reference = new_trainer(kl_coefficient=1.0)._reference
        assert reference is not None
        [micro] = micro_batches(flat(random_batch()), torch.zeros(12), 4096)
        with torch.no_grad():
            gap = reference.token_logprobs(micro) - trainer.policy.token_logprobs(micro)
        distances.append(float((gap.exp() - 1 - gap).mean()))
    assert metrics[0]["reference_kl"] == pytest.approx(0.0, abs=1e-6)
    assert metrics[2]["reference_kl"] > 1e-4
    assert distances[1] < 0.5 * distances[0]


def test_the_critic_learns_the_return_while_the_policy_is_frozen(new_trainer):
    trainer = new_trainer(critic={"frozen_policy_steps": 3, "minibatches": 4, "value_clip": None}, advantage="gae")
    groups, start = on_policy(trainer), weights(trainer)
    items = flat(groups)
    assert not values_of(trainer, items).any()
    losses = []
    for version in range(3):
        metrics = trainer.train(groups, version)
        losses.append(metrics["critic_loss"])
        # A policy that is not updated has no loss, not a loss of 0.
        assert not {"loss", "grad_norm", "learning_rate", "clip_fraction"} & set(metrics)
        assert metrics["importance_weight_mean"] == pytest.approx(1.0, abs=1e-5)
        assert all(torch.equal(weight, start[name]) for name, weight in weights(trainer).items())
    assert trainer._critic is not None
    assert trainer._critic._engine._engine.global_steps == 12
    assert losses[2] < losses[1] < losses[0]
    # A third of the trajectories is rewarded.
    assert values_of(trainer, items).mean() == pytest.approx(1 / 3, abs=0.25)
    metrics = trainer.train(groups, 3)
    assert metrics["grad_norm"] > 0.0
    assert not all(torch.equal(weight, start[name]) for name, weight in weights(trainer).items())


def test_values_are_of_the_state_before_the_token_and_clipped(new_trainer):
    trainer = new_trainer(advantage="gae", critic={"value_clip": 1e-3})
    torch.nn.init.normal_(trainer._critic._engine.module.head.weight, generator=torch.Generator().manual_seed(0))
    items = flat(random_batch())
    before = values_of(trainer, items[:1])
    # Another last token changes no value: nothing comes after it.
    tokens = items[0].tokens.copy()
    last = items[0].prompt_length + np.flatnonzero(items[0].loss_mask)[-1]
    tokens[last] = (tokens[last] + 7) % 80 + 4
    assert torch.equal(values_of(trainer, [items[0].model_copy(update={"tokens": tokens})]), before)
    # Another prompt token changes all.
    tokens = items[0].tokens.copy()
    tokens[1] = (tokens[1] + 7) % 80 + 4
    assert (values_of(trainer, [items[0].model_copy(update={"tokens": tokens})]) != before).all()
    # Its first update starts from the old values and is clipped nowhere; the second one is, where the first has helped.
    assert 0.0 < trainer.train(random_batch(), 1)["value_clip_fraction"] < 0.6


def test_a_restored_critic_continues_bit_for_bit(new_trainer, tmp_path):
    trainer = new_trainer(advantage="vtrace", minibatches=2)
    trainer.train(random_batch(1), 1)
    trainer.save(tmp_path)
    expected = trainer.train(random_batch(2), 2)
    restored = new_trainer(advantage="vtrace", minibatches=2)
    restored.load(tmp_path)
    metrics = restored.train(random_batch(2), 2)
    assert {k: v for k, v in metrics.items() if "train_" not in k} == {
        k: v for k, v in expected.items() if "train_" not in k
    }
    items = flat(random_batch(3))
    assert torch.equal(values_of(restored, items), values_of(trainer, items))
    assert all(torch.equal(weight, weights(trainer)[name]) for name, weight in weights(restored).items())


def test_a_checkpoint_without_the_critic_is_an_error(new_trainer, tmp_path):
    new_trainer().save(tmp_path)
    with pytest.raises(FileNotFoundError, match="no checkpoint of the critic"):
        new_trainer(advantage="gae").load(tmp_path)


def test_a_critics_update_that_is_not_finite_is_left_out(new_trainer):
    trainer = new_trainer(advantage="gae")
    groups = on_policy(trainer)
    groups[0][0] = groups[0][0].model_copy(update={"reward": float("inf")})
    before = values_of(trainer, flat(random_batch()))
    assert trainer.train(groups, 1)["critic_skipped_updates"] >= 1
    assert values_of(trainer, flat(random_batch())).isfinite().all()
    assert before.isfinite().all()


def test_algorithms_that_cannot_work_are_refused():
    for fields, message in (
        ({"dual_clip": 1.2}, "above 1 \\+ clip_high"),
        ({"sequence_band": (1.1, 2.0)}, "sequence_band"),
        ({"sequence_band": (0.5, 0.9)}, "sequence_band"),
    ):
        with pytest.raises(ValueError, match=message):
            AlgorithmConfig.model_validate(fields)

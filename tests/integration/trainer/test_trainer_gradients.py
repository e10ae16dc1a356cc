"""The trainer's updates: their gradients are those of plain transformers, and the losses do what they are for."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from configs.training import OptimizerConfig
from learner.training.batches import micro_batches
from learner.training.policy import TokenLogprobs
from runtime.models import model_folder
from tests.factories import random_batch
from tests.integration.plain import (
    GRADIENT,
    behave_like,
    difference,
    plain_gradient,
    weights,
)

pytestmark = pytest.mark.usefixtures("process_group")


@pytest.mark.parametrize("budget", [1, 64, 4096])
def test_gradient_is_that_of_plain_transformers(folder, new_trainer, budget):
    trainer, groups = new_trainer(GRADIENT, budget), random_batch()
    before = weights(trainer)
    trainer.train(groups, 1)
    expected = plain_gradient(folder, groups, cap=2.0)
    for name, gradient in difference(weights(trainer), before).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=2e-6)


@pytest.mark.parametrize(("compute", "tolerance"), [("float32", 0.004), ("bfloat16", 0.03)])
def test_gradient_of_bfloat16_weights_is_that_of_plain_transformers(folder, new_trainer, compute, tolerance):
    """Bounds the norm of the error over that of the gradient. The weights that show the gradient are rounded to 1 in 256."""
    # So large a step that the weights are next to nothing beside what it adds to them.
    large = OptimizerConfig(lr=1e10, eps=1e4, max_grad_norm=1e9)
    trainer, groups = new_trainer(large, 64, "bfloat16", compute), random_batch()
    before = weights(trainer)
    trainer.train(groups, 1)
    expected = plain_gradient(folder, groups, cap=2.0, dtype=torch.bfloat16)
    for name, change in difference(weights(trainer), before).items():
        error = change.float() / 1e6 - expected[name]
        assert error.norm() < tolerance * expected[name].norm(), name


def test_order_of_trajectories_changes_no_gradient(new_trainer):
    groups = random_batch()
    changes = []
    for order in (groups, [group[::-1] for group in groups[::-1]]):
        trainer = new_trainer(GRADIENT, budget=100)
        before = weights(trainer)
        trainer.train(order, 1)
        changes.append(difference(weights(trainer), before))
    for name, change in changes[0].items():
        assert change.abs().max() > 1e-5
        torch.testing.assert_close(change, changes[1][name], rtol=1e-3, atol=2e-6)


def test_logits_in_chunks_change_neither_logprobs_nor_gradient(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    micro = micro_batches([item for group in random_batch() for item in group], torch.zeros(12), 4096)[0]
    results = []
    for rows in (1000, 7):
        module = TokenLogprobs(model, max_logits=rows * model.config.vocab_size)
        model.zero_grad()
        logprobs = module(micro.input_ids, micro.index, micro.targets, micro.temperatures)
        logprobs.square().sum().backward()
        results.append((logprobs, model.lm_head.weight.grad.clone(), model.model.embed_tokens.weight.grad.clone()))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("minibatches", [1, 3])
def test_on_policy_ratios_are_exactly_one_at_a_temperature(new_trainer, minibatches):
    """In float32: where passes round more, ratios are one as far as other micro-batches round alike."""
    trainer = new_trainer(OptimizerConfig(lr=1e-12), budget=4096, minibatches=minibatches)
    groups = [behave_like(trainer.policy, group) for group in random_batch(temperature=0.7)]
    metrics = trainer.train(groups, 1)
    assert metrics["clip_fraction"] == 0.0
    assert metrics["importance_weight_mean"] == pytest.approx(1.0, abs=1e-5)
    assert metrics["importance_weight_ess"] == pytest.approx(1.0, abs=1e-6)
    assert metrics["behaviour_kl"] == pytest.approx(0.0, abs=1e-6)
    # All weights 1: the loss is minus the mean advantage over tokens.
    everything = [item for group in groups for item in group]
    centred = np.array([item.reward - np.mean([o.reward for o in groups[item.group]]) for item in everything])
    tokens = np.array([item.loss_mask.sum() for item in everything])
    if minibatches == 1:
        assert metrics["loss"] == pytest.approx(-(centred / centred.std() * tokens).sum() / tokens.sum(), abs=1e-5)
    assert metrics["trained_tokens"] == tokens.sum()
    assert metrics["trained_sequence_tokens"] == sum(len(item.tokens) for item in everything)
    assert metrics["parameters"] == AutoModelForCausalLM.from_pretrained(model_folder("random-tiny")).num_parameters()


def test_temperature_acts_on_the_ratio(new_trainer):
    trainer = new_trainer()
    at_one = [behave_like(trainer.policy, group) for group in random_batch(temperature=1.0)]
    # The same tokens and probabilities, said to have been sampled at 0.7: the policies differ.
    groups = [[item.model_copy(update={"temperature": 0.7}) for item in group] for group in at_one]
    assert trainer.train(groups, 1)["behaviour_kl"] > 1e-3


def test_later_minibatches_are_clipped_against_the_policy_that_the_batch_met(new_trainer):
    trainer = new_trainer(OptimizerConfig(lr=1e-2), minibatches=2)
    groups = [behave_like(trainer.policy, group) for group in random_batch()]
    metrics = trainer.train(groups, 1)
    # The first update moves the policy far enough to clip in the second minibatch, while the proximal policy is still
    # the behaviour policy.
    assert 0.0 < metrics["clip_fraction"] < 0.6
    assert metrics["behaviour_kl"] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("loss", ["decoupled_ppo", "ppo"])
def test_training_raises_the_probability_of_rewarded_tokens(new_trainer, loss):
    trainer = new_trainer(OptimizerConfig(lr=1e-3), loss=loss)
    groups = [behave_like(trainer.policy, group) for group in random_batch()]
    trainer.train(groups, 1)
    for item in (item for group in groups for item in group):
        with torch.no_grad():
            now = trainer.policy.token_logprobs(micro_batches([item], torch.zeros(1), 4096)[0]).sum()
        assert (now > float(item.logprobs.sum())) == (item.reward == 1.0)


def test_ppo_clips_against_the_behaviour_policy(new_trainer):
    trainer = new_trainer(loss="ppo")
    rng = np.random.default_rng(0)
    groups = random_batch()
    for group in groups:
        group[:] = [
            item.model_copy(update={"logprobs": (item.logprobs - rng.normal(0, 0.5)).clip(max=0).astype(np.float32)})
            for item in behave_like(trainer.policy, group)
        ]
    assert trainer.train(groups, 1)["clip_fraction"] > 0.1


def test_nothing_to_train_on_changes_nothing(new_trainer):
    trainer = new_trainer()
    before = weights(trainer)
    # What there was nothing to measure on is left out: no zero stands for it.
    assert trainer.train([], 1) == {
        "trained_tokens": 0.0,
        "trained_sequence_tokens": 0.0,
        "skipped_updates": 0.0,
        "parameters": trainer.policy.parameters,
    }
    assert all(torch.equal(weight, before[name]) for name, weight in weights(trainer).items())


def test_an_update_that_is_not_finite_is_left_out(new_trainer, arithmetic):
    trainer = new_trainer(**arithmetic)
    before = weights(trainer)
    # Logits over a temperature near the smallest float are infinite.
    metrics = trainer.train(random_batch(temperature=1e-44), 1)
    assert metrics["skipped_updates"] == 1
    assert not {"loss", "grad_norm"} & set(metrics)
    assert all(torch.equal(weight, before[name]) for name, weight in weights(trainer).items())
    # And the next one is applied as if it had not been.
    metrics = trainer.train(random_batch(), 2)
    other = new_trainer(**arithmetic)
    other.train(random_batch(), 2)
    assert metrics["skipped_updates"] == 0
    assert all(torch.equal(weight, weights(other)[name]) for name, weight in weights(trainer).items())


def test_minibatches_depend_on_seed_and_version_alone(new_trainer):
    results: list[torch.Tensor] = []
    for version in (1, 1, 2):
        trainer = new_trainer(minibatches=3)
        torch.manual_seed(len(results))
        trainer.train(random_batch(), version)
        results.append(weights(trainer)["lm_head.weight"])
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
def test_steps_below_the_rounding_of_the_weights_add_up(new_trainer, compute):
    trainer = new_trainer(OptimizerConfig(lr=2e-5), dtype="bfloat16", compute=compute)
    start = weights(trainer)
    for version in range(1, 11):
        trainer.train(random_batch(), version)
    changed = sum(int((weight != start[name]).sum()) for name, weight in weights(trainer).items())
    once = new_trainer(OptimizerConfig(lr=2e-5), dtype="bfloat16", compute=compute)
    once.train(random_batch(), 1)
    changed_once = sum(int((weight != start[name]).sum()) for name, weight in weights(once).items())
    # Without master weights a step too small for a weight would be lost each time, and ten would change what one does.
    assert changed > 2 * changed_once > 0

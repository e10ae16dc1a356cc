"""Losses against numbers worked out by hand and slow transcriptions of their formulas, on both sides of every clip."""

import math

import pytest
import torch

from learner.losses import decoupled_ppo_loss, ppo_loss

LOW, HIGH = 0.2, 0.28


def slow_decoupled(logprobs, proximal, weights, advantages) -> float:
    """-sum_i w_i min(r_i A_i, clip(r_i, 1 - low, 1 + high) A_i), token by token."""
    total = 0.0
    for logprob, reference, weight, advantage in zip(logprobs, proximal, weights, advantages, strict=True):
        ratio = math.exp(logprob - reference)
        clipped = min(max(ratio, 1 - LOW), 1 + HIGH)
        total -= weight * min(ratio * advantage, clipped * advantage)
    return total


def random_tokens(n: int = 400) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    reference = -torch.rand(n, generator=generator, dtype=torch.float64) * 4
    logprobs = reference + 0.4 * torch.randn(n, generator=generator, dtype=torch.float64)
    advantages = torch.randn(n, generator=generator, dtype=torch.float64)
    weights = 2 * torch.rand(n, generator=generator, dtype=torch.float64)
    ratio = (logprobs - reference).exp()
    for positive in (True, False):
        side = (advantages > 0) == positive
        assert (side & (ratio > 1 + HIGH)).any()
        assert (side & (ratio < 1 - LOW)).any()
        assert (side & (ratio > 1 - LOW) & (ratio < 1 + HIGH)).any()
    return logprobs, reference, weights, advantages


def test_decoupled_ppo_by_hand():
    ratios = torch.tensor([1.5, 1.5, 0.5, 0.5, 1.1], dtype=torch.float64)
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0, 2.0], dtype=torch.float64)
    weights = torch.tensor([1.0, 1.0, 2.0, 1.0, 0.5], dtype=torch.float64)
    loss, metrics = decoupled_ppo_loss(ratios.log(), torch.zeros(5), weights, advantages, LOW, HIGH)
    # min(1.5, 1.28) + min(-1.5, -1.28) + 2 min(0.5, 0.8) + min(-0.5, -0.8) + 0.5 * 2 * 1.1
    # = 1.28 - 1.5 + 1 - 0.8 + 1.1 = 1.08; the clip stops the first and the fourth.
    assert loss.item() == pytest.approx(-1.08)
    assert metrics["clip_fraction"] == pytest.approx(2 / 5)


def test_decoupled_ppo_against_a_slow_transcription():
    logprobs, reference, weights, advantages = random_tokens()
    loss, _ = decoupled_ppo_loss(logprobs, reference, weights, advantages, LOW, HIGH)
    expected = slow_decoupled(logprobs.tolist(), reference.tolist(), weights.tolist(), advantages.tolist())
    assert loss.item() == pytest.approx(expected, rel=1e-12)


def test_ppo_against_a_slow_transcription():
    logprobs, reference, _, advantages = random_tokens()
    loss, metrics = ppo_loss(logprobs, reference, advantages, LOW, HIGH)
    expected = slow_decoupled(logprobs.tolist(), reference.tolist(), [1.0] * 400, advantages.tolist())
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    assert 0.1 < metrics["clip_fraction"] < 0.9


def test_gradient_is_the_weighted_ratio_and_stops_at_the_clip():
    ratios = torch.tensor([1.5, 1.5, 0.5, 0.5, 1.1], dtype=torch.float64)
    logprobs = ratios.log().requires_grad_()
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0, 2.0], dtype=torch.float64)
    weights = torch.tensor([1.0, 1.0, 2.0, 1.0, 0.5], dtype=torch.float64)
    loss, _ = decoupled_ppo_loss(logprobs, torch.zeros(5), weights, advantages, LOW, HIGH)
    loss.backward()
    # d(-w r A) / d log pi = -w r A where the clip does not act: the first and the fourth have none.
    expected = torch.tensor([0.0, 1.5, -1.0, 0.0, -1.1], dtype=torch.float64)
    torch.testing.assert_close(logprobs.grad, expected)


def test_without_an_update_the_ratio_is_one_and_the_gradient_that_of_the_policy_gradient():
    logprobs = torch.tensor([-0.123, -4.56], requires_grad=True)
    weights, advantages = torch.tensor([1.5, 0.5]), torch.tensor([2.0, -1.0])
    loss, metrics = decoupled_ppo_loss(logprobs, logprobs, weights, advantages, LOW, HIGH)
    loss.backward()
    # -(1.5 * 2 - 0.5 * 1), and -w A as gradient: the proximal side of the ratio carries none.
    assert loss.item() == -2.5
    assert metrics["clip_fraction"] == 0.0
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == [-3.0, 0.5]


def test_extreme_ratios_stay_finite():
    logprobs = torch.tensor([-0.1, -500.0], requires_grad=True)
    loss, _ = ppo_loss(logprobs, torch.tensor([-500.0, -0.1]), torch.tensor([0.0, -1.0]), LOW, HIGH)
    loss.backward()
    assert math.isfinite(loss.item())
    assert logprobs.grad is not None
    assert logprobs.grad.isfinite().all()

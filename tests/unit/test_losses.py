"""Losses against numbers worked out by hand and slow transcriptions of their formulas, on both sides of every clip."""

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from learner.algorithm.correction import MAX_LOG_RATIO
from learner.algorithm.losses import decoupled_ppo_loss, ppo_loss, reference_kl, value_loss

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
    # q - 1 - log q at q = exp(20) and exp(-20).
    kl = reference_kl(torch.tensor([-500.0, -0.1]), torch.tensor([-0.1, -500.0]))
    assert kl.tolist() == pytest.approx([math.exp(20) - 21, math.exp(-20) + 19])


# Of each token: log ratio, weight and advantage. Ratios fall on both sides of both clips (0.8 and 1.28) and of a dual clip.
log_ratio = st.sampled_from([-0.5, -0.23, -0.22, -0.1, 0.0, 0.1, 0.24, 0.25, 0.7, 1.2]) | st.floats(-25.0, 25.0)
# A subnormal advantage times a small ratio would be 0, as if a clip had stopped it.
advantage = st.floats(-3.0, 3.0, allow_subnormal=False)
tokens = st.lists(st.tuples(log_ratio, st.floats(0.0, 2.0), advantage), min_size=1, max_size=12)


def slow_objective(log_ratio: float, advantage: float, dual: float | None) -> tuple[float, float]:
    """The token's objective as the papers write it, and its derivative by log pi."""
    ratio = math.exp(max(min(log_ratio, MAX_LOG_RATIO), -MAX_LOG_RATIO))
    slope = ratio * advantage if abs(log_ratio) < MAX_LOG_RATIO else 0.0
    clipped = min(max(ratio, 1 - LOW), 1 + HIGH) * advantage
    objective = min(ratio * advantage, clipped)
    if dual is not None and advantage < 0:
        objective = max(objective, dual * advantage)
    return objective, slope if objective == ratio * advantage else 0.0


@given(tokens, st.none() | st.floats(1.3, 4.0))
def test_every_clip_is_the_papers_in_value_gradient_and_count(batch, dual):
    columns = (torch.tensor(column, dtype=torch.float64) for column in zip(*batch, strict=True))
    log_ratios, weights, advantages = columns
    reference = torch.full_like(log_ratios, -30.0)
    slow = [slow_objective(each, advantage, dual) for each, _, advantage in batch]
    for decoupled in (True, False):
        logprobs = (reference + log_ratios).requires_grad_()
        if decoupled:
            loss, metrics = decoupled_ppo_loss(logprobs, reference, weights, advantages, LOW, HIGH, dual)
        else:
            loss, metrics = ppo_loss(logprobs, reference, advantages, LOW, HIGH, dual)
        loss.backward()
        factors = weights.tolist() if decoupled else [1.0] * len(batch)
        expected = -sum(factor * value for factor, (value, _) in zip(factors, slow, strict=True))
        assert loss.item() == pytest.approx(expected, rel=1e-9, abs=1e-9)
        assert logprobs.grad is not None
        slopes = [-factor * slope for factor, (_, slope) in zip(factors, slow, strict=True)]
        assert logprobs.grad.tolist() == pytest.approx(slopes, rel=1e-9, abs=1e-9)
        # A clip acts where it stops a gradient that would not be zero anyway.
        stopped = [slope == 0.0 and a != 0.0 for (_, slope), (_, _, a) in zip(slow, batch, strict=True)]
        inside = [abs(each) < MAX_LOG_RATIO for each, _, _ in batch]
        if all(inside):
            assert metrics["clip_fraction"] == pytest.approx(sum(stopped) / len(batch), abs=1e-6)


def test_dual_clip_by_hand():
    ratios = torch.tensor([5.0, 2.0, 5.0, 0.5, 5.0], dtype=torch.float64)
    advantages = torch.tensor([-1.0, -1.0, 1.0, -1.0, 0.0], dtype=torch.float64)
    loss, metrics = ppo_loss(ratios.log(), torch.zeros(5), advantages, LOW, HIGH, 3.0)
    # max(min(-5, -1.28), -3) + max(min(-2, -1.28), -3) + min(5, 1.28) + max(min(-0.5, -0.8), -3)
    # = -3 - 2 + 1.28 - 0.8; the second token keeps its gradient, and the last one has none that a clip could stop.
    assert loss.item() == pytest.approx(4.52)
    assert metrics["clip_fraction"] == pytest.approx(3 / 5)


@given(st.lists(st.floats(-15.0, 15.0), min_size=1, max_size=12))
def test_the_reference_kl_is_k3_and_never_negative(differences):
    logprobs = torch.full((len(differences),), -16.0, dtype=torch.float64, requires_grad=True)
    reference = (logprobs.detach() + torch.tensor(differences, dtype=torch.float64)).requires_grad_()
    kl = reference_kl(logprobs, reference)
    # q - 1 - log q with q = pi_ref / pi; its derivative by log pi is 1 - q.
    assert kl.tolist() == pytest.approx([math.exp(d) - 1 - d for d in differences], rel=1e-9, abs=1e-12)
    assert min(kl.tolist()) >= 0.0
    kl.sum().backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == pytest.approx([1 - math.exp(d) for d in differences], rel=1e-9, abs=1e-12)
    assert reference.grad is None


def test_the_reference_kl_estimates_the_divergence_of_two_distributions():
    generator = torch.Generator().manual_seed(0)
    policy, reference = torch.randn(2, 6, generator=generator, dtype=torch.float64).log_softmax(dim=1)
    drawn = torch.multinomial(policy.exp(), 200_000, replacement=True, generator=generator)
    exact = (policy.exp() * (policy - reference)).sum().item()
    assert reference_kl(policy[drawn], reference[drawn]).mean().item() == pytest.approx(exact, rel=0.03)


value = st.floats(-2.0, 2.0)


@given(st.lists(st.tuples(value, value, value), min_size=1, max_size=12), st.none() | st.floats(0.05, 1.0))
def test_the_value_loss_is_pessimistic_about_leaving_the_old_value(batch, clip):
    # At the clip's edge the loss has no slope.
    edges = [clip is not None and abs(abs(v - before) - clip) < 1e-9 for v, before, _ in batch]
    assume(not any(edges))
    values, old, returns = (torch.tensor(column, dtype=torch.float64) for column in zip(*batch, strict=True))
    values.requires_grad_()
    loss, metrics = value_loss(values, old, returns, clip)
    expected, slopes, stopped = 0.0, [], 0
    for v, before, target in batch:
        plain = (v - target) ** 2
        kept = v if clip is None else min(max(v, before - clip), before + clip)
        clipped = (kept - target) ** 2
        expected += 0.5 * max(plain, clipped)
        slopes.append(0.0 if clipped > plain else v - target)
        stopped += clipped > plain
    assert loss.item() == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert metrics["value_clip_fraction"] == pytest.approx(stopped / len(batch), abs=1e-6)
    loss.backward()
    assert values.grad is not None
    assert values.grad.tolist() == pytest.approx(slopes, rel=1e-9, abs=1e-9)

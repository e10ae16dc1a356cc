"""Importance weights against numbers worked out by hand and a slow transcription."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from learner.algorithm.correction import MAX_LOG_RATIO, importance_weights, in_band, sequence_ratios


def test_weights_by_hand():
    proximal = torch.tensor([-1.0, -1.0, -2.0], dtype=torch.float64)
    behaviour = proximal - torch.tensor([0.5, 4.0, 0.25], dtype=torch.float64).log()
    weights, metrics = importance_weights(proximal, behaviour, cap=2.0)
    # Ratios 0.5, 4, 0.25, truncated at 2.
    torch.testing.assert_close(weights, torch.tensor([0.5, 2.0, 0.25], dtype=torch.float64))
    assert metrics["importance_weight_mean"] == pytest.approx(2.75 / 3)
    assert metrics["importance_weight_max"] == pytest.approx(2.0)
    assert metrics["importance_weight_capped"] == pytest.approx(1 / 3)
    # (0.5 + 2 + 0.25)^2 / (3 (0.25 + 4 + 0.0625)) = 7.5625 / 12.9375
    assert metrics["importance_weight_ess"] == pytest.approx(7.5625 / 12.9375)
    # k3 = r - 1 - log r, not truncated: (0.5 - 1 + log 2) + (4 - 1 - log 4) + (0.25 - 1 + log 4)
    assert metrics["behaviour_kl"] == pytest.approx((-0.5 + math.log(2) + 3 - 0.75) / 3)


def test_weights_against_a_slow_transcription():
    generator = torch.Generator().manual_seed(0)
    proximal = -torch.rand(200, generator=generator, dtype=torch.float64) * 5
    behaviour = proximal + torch.randn(200, generator=generator, dtype=torch.float64)
    weights, metrics = importance_weights(proximal, behaviour, cap=1.5)
    slow = [min(math.exp(p - b), 1.5) for p, b in zip(proximal.tolist(), behaviour.tolist(), strict=True)]
    kl = [math.exp(p - b) - 1 - (p - b) for p, b in zip(proximal.tolist(), behaviour.tolist(), strict=True)]
    assert min(slow) < 1.0
    assert slow.count(1.5) > 10
    torch.testing.assert_close(weights, torch.tensor(slow, dtype=torch.float64))
    assert metrics["importance_weight_ess"] == pytest.approx(sum(slow) ** 2 / (200 * sum(w * w for w in slow)))
    assert metrics["behaviour_kl"] == pytest.approx(sum(kl) / 200)


# A weight on the cap itself is not truncated.
@pytest.mark.parametrize("cap", [1.0, 2.0])
def test_equal_policies_weigh_exactly_one(cap: float):
    logprobs = torch.tensor([-0.3, -7.0, 0.0])
    weights, metrics = importance_weights(logprobs, logprobs.clone(), cap)
    assert weights.tolist() == [1.0, 1.0, 1.0]
    assert metrics == {
        "importance_weight_mean": 1.0,
        "importance_weight_max": 1.0,
        "importance_weight_ess": 1.0,
        "importance_weight_capped": 0.0,
        "behaviour_kl": 0.0,
    }


def test_extreme_ratios_stay_finite_and_carry_no_gradient():
    proximal = torch.tensor([-0.1, -300.0], requires_grad=True)
    behaviour = torch.tensor([-300.0, -0.1])
    weights, metrics = importance_weights(proximal, behaviour, cap=2.0)
    assert weights.tolist() == pytest.approx([2.0, math.exp(-20)])
    assert not weights.requires_grad
    ratios = sequence_ratios(proximal, behaviour, torch.tensor([0, 1]))
    assert ratios.tolist() == pytest.approx([math.exp(20), math.exp(-20)])
    assert not ratios.requires_grad
    assert all(math.isfinite(value) for value in metrics.values())


# Log ratios on both sides of caps, bands and of the clamp before exp.
sequences = st.lists(
    st.lists(st.floats(-4.0, 4.0) | st.floats(-60.0, 60.0), min_size=1, max_size=6), min_size=1, max_size=6
)


@given(sequences, st.floats(0.1, 5.0), st.randoms())
def test_weights_and_sequence_ratios_are_the_papers_for_any_shapes_in_any_order(log_ratios, cap, random):
    tokens = [(row, each) for row, own in enumerate(log_ratios) for each in own]
    random.shuffle(tokens)
    rows = torch.tensor([row for row, _ in tokens])
    behaviour = torch.full((len(tokens),), -70.0, dtype=torch.float64)
    proximal = behaviour + torch.tensor([each for _, each in tokens], dtype=torch.float64)

    weights, metrics = importance_weights(proximal, behaviour, cap)
    slow = [min(math.exp(max(min(each, MAX_LOG_RATIO), -MAX_LOG_RATIO)), cap) for _, each in tokens]
    torch.testing.assert_close(weights, torch.tensor(slow, dtype=torch.float64))
    # A ratio on the cap itself may round to either side of it, so its token may count or not.
    beyond = [each - math.log(cap) for _, each in tokens]
    counted = metrics["importance_weight_capped"] * len(tokens)
    assert sum(each > 1e-9 for each in beyond) - 1e-4 <= counted <= sum(each > -1e-9 for each in beyond) + 1e-4

    # (prod_t pi / mu)^(1 / n), as a mean of logarithms: the product of 60 such ratios overflows.
    means = [sum(own) / len(own) for own in log_ratios]
    expected = [math.exp(max(min(mean, MAX_LOG_RATIO), -MAX_LOG_RATIO)) for mean in means]
    torch.testing.assert_close(
        sequence_ratios(proximal, behaviour, rows), torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-12
    )


def test_sequence_ratios_by_hand_and_the_band_takes_its_ends_in():
    ratios = torch.tensor([4.0, 1.0, 0.25, 0.25, 1.0, 1.5], dtype=torch.float64)
    rows = torch.tensor([0, 0, 1, 1, 2, 2])
    proximal = torch.full((6,), -1.0, dtype=torch.float64)
    means = sequence_ratios(proximal, proximal - ratios.log(), rows)
    # sqrt(4 * 1), sqrt(1/4 * 1/4), sqrt(1 * 1.5)
    torch.testing.assert_close(means, torch.tensor([2.0, 0.25, 1.5**0.5], dtype=torch.float64))
    assert in_band(torch.tensor([0.49, 0.5, 1.0, 2.0, 2.01]), (0.5, 2.0)).tolist() == [False, True, True, True, False]
    assert in_band(torch.tensor([0.0, 1e9]), None).tolist() == [True, True]

"""Importance weights against numbers worked out by hand and a slow transcription."""

import math

import pytest
import torch

from learner.correction import importance_weights


def test_weights_by_hand():
    proximal = torch.tensor([-1.0, -1.0, -2.0], dtype=torch.float64)
    behaviour = proximal - torch.tensor([0.5, 4.0, 0.25], dtype=torch.float64).log()
    weights, metrics = importance_weights(proximal, behaviour, cap=2.0)
    # Ratios 0.5, 4, 0.25, truncated at 2.
    torch.testing.assert_close(weights, torch.tensor([0.5, 2.0, 0.25], dtype=torch.float64))
    assert metrics["importance_weight_mean"] == pytest.approx(2.75 / 3)
    assert metrics["importance_weight_max"] == pytest.approx(2.0)
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


def test_equal_policies_weigh_exactly_one():
    logprobs = torch.tensor([-0.3, -7.0, 0.0])
    weights, metrics = importance_weights(logprobs, logprobs.clone(), cap=2.0)
    assert weights.tolist() == [1.0, 1.0, 1.0]
    assert metrics == {
        "importance_weight_mean": 1.0,
        "importance_weight_max": 1.0,
        "importance_weight_ess": 1.0,
        "behaviour_kl": 0.0,
    }


def test_extreme_ratios_stay_finite_and_carry_no_gradient():
    proximal = torch.tensor([-0.1, -300.0], requires_grad=True)
    weights, metrics = importance_weights(proximal, torch.tensor([-300.0, -0.1]), cap=2.0)
    assert weights.tolist() == pytest.approx([2.0, math.exp(-20)])
    assert not weights.requires_grad
    assert all(math.isfinite(value) for value in metrics.values())

"""Advantages against numbers worked out by hand."""

import pytest
import torch

from learner.advantages import group_baseline, whiten


def test_group_baseline_takes_each_groups_own_mean_in_any_order():
    rewards = torch.tensor([1.0, 0.0, 0.0, 2.0, 0.0, 1.0])
    groups = torch.tensor([7, 3, 7, 3, 7, 7])
    # Group 7 has rewards 1, 0, 0, 1: mean 0.5. Group 3 has 0, 2: mean 1.
    assert group_baseline(rewards, groups).tolist() == [0.5, -1.0, -0.5, 1.0, -0.5, 0.5]


def test_a_group_of_one_has_no_advantage():
    assert group_baseline(torch.tensor([5.0, 1.0]), torch.tensor([0, 1])).tolist() == [0.0, 0.0]


def test_whiten_divides_by_the_batchs_deviation():
    # Mean 0; mean square (9 + 9 + 1 + 1) / 4 = 5.
    whitened = whiten(torch.tensor([3.0, -3.0, 1.0, -1.0], dtype=torch.float64))
    expected = torch.tensor([3.0, -3.0, 1.0, -1.0], dtype=torch.float64) / 5**0.5
    torch.testing.assert_close(whitened, expected)


def test_whiten_leaves_the_baseline_at_zero():
    # Mean 1, deviation sqrt(((-1)^2 + 1^2) / 2) = 1: only divided, so 0 stays 0 and 2 stays 2.
    assert whiten(torch.tensor([0.0, 2.0])).tolist() == [0.0, 2.0]


@pytest.mark.parametrize("value", [0.0, 0.7, -3.0])
def test_a_constant_batch_has_no_advantage(value: float):
    constant = torch.full((6,), value)
    assert whiten(constant).tolist() == [0.0] * 6


def test_equal_rewards_whose_mean_is_rounded_have_no_advantage():
    # 0.1 + 0.1 + 0.1 is not 0.3 in binary: a rounding error of 1e-17 must not be blown up to a deviation of 1.
    rewards = torch.full((3,), 0.1, dtype=torch.float64)
    assert whiten(group_baseline(rewards, torch.zeros(3, dtype=torch.int64))).tolist() == [0.0] * 3

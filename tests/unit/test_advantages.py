"""Advantages against numbers worked out by hand and slow transcriptions of the papers' formulas."""

import math
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from learner.algorithm.advantages import gae, group_baseline, grpo, grpo_length_scale, vtrace, whiten


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
    # 0.1 + 0.1 + 0.1 is not 0.3 in binary: a rounding error of 1e-17 beside 0 must not be blown up to a deviation of 1.
    rewards = torch.tensor([0.1, 0.1, 0.1, 1.0], dtype=torch.float64)
    groups = torch.tensor([0, 0, 0, 1])
    baseline = group_baseline(rewards, groups)
    assert baseline.any()
    assert whiten(baseline).tolist() == [0.0] * 4
    assert grpo(rewards, groups, divide_by_std=True).tolist() == [0.0] * 4


def slow_gae(reward: float, values: list[float], gamma: float, lam: float) -> list[float]:
    """Equation 16 of arXiv 1506.02438 as it is written: A_t = sum_l (gamma lam)^l delta_{t+l}, for sampled tokens alone."""
    n = len(values)
    rewards = [0.0] * (n - 1) + [reward]
    after = [*values[1:], 0.0]
    deltas = [rewards[t] + gamma * after[t] - values[t] for t in range(n)]
    return [sum((gamma * lam) ** i * deltas[t + i] for i in range(n - t)) for t in range(n)]


def slow_vtrace(
    log_ratios: list[float], reward: float, values: list[float], gamma: float, lam: float, rho_cap: float, c_cap: float
) -> tuple[list[float], list[float]]:
    """Equation 1 of arXiv 1802.01561 as it is written, and the policy gradient's factor of its section 4.2."""
    n = len(values)
    rewards = [0.0] * (n - 1) + [reward]
    after = [*values[1:], 0.0]
    rho = [min(rho_cap, math.exp(each)) for each in log_ratios]
    c = [lam * min(c_cap, math.exp(each)) for each in log_ratios]
    deltas = [rho[t] * (rewards[t] + gamma * after[t] - values[t]) for t in range(n)]
    targets = [values[s] + sum(gamma ** (t - s) * math.prod(c[s:t]) * deltas[t] for t in range(s, n)) for s in range(n)]
    return targets, [rewards[s] + gamma * [*targets, 0.0][s + 1] - values[s] for s in range(n)]


@st.composite
def responses(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rewards [B], values and log ratios [B, T], and a mask [B, T] with holes anywhere; log ratios on both sides of caps."""
    batch, length = draw(st.integers(1, 4)), draw(st.integers(1, 7))
    rows = st.lists(st.booleans(), min_size=length, max_size=length).filter(any)
    mask = torch.tensor(draw(st.lists(rows, min_size=batch, max_size=batch)))
    numbers = st.floats(-2.0, 2.0)
    flat = draw(st.lists(numbers, min_size=batch * (2 * length + 1), max_size=batch * (2 * length + 1)))
    rewards, values, log_ratios = torch.tensor(flat, dtype=torch.float64).split([batch, batch * length, batch * length])
    # What is not sampled must not be read: one NaN there would spoil everything.
    values = values.view(batch, length).masked_fill(~mask, math.nan)
    return rewards, values, log_ratios.view(batch, length).masked_fill(~mask, math.nan), mask


unit = st.floats(0.0, 1.0)


@given(responses(), unit, unit)
def test_gae_is_the_papers_sum_over_sampled_tokens(batch, gamma, lam):
    rewards, values, _, mask = batch
    advantages, returns = gae(rewards, values, mask, gamma, lam)
    for row, sampled in enumerate(mask):
        slow = torch.tensor(slow_gae(rewards[row].item(), values[row][sampled].tolist(), gamma, lam)).double()
        torch.testing.assert_close(advantages[row][sampled], slow, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(returns[row][sampled], slow + values[row][sampled], atol=1e-6, rtol=1e-6)
    assert not advantages[~mask].any()
    assert not returns[~mask].any()


@given(responses(), unit, unit, st.floats(0.2, 3.0), st.floats(0.2, 3.0))
def test_vtrace_is_the_papers_sum_over_sampled_tokens(batch, gamma, lam, rho_cap, c_cap):
    rewards, values, log_ratios, mask = batch
    targets, advantages = vtrace(log_ratios, rewards, values, mask, gamma, lam, rho_cap, c_cap)
    for row, sampled in enumerate(mask):
        slow = slow_vtrace(
            log_ratios[row][sampled].tolist(),
            rewards[row].item(),
            values[row][sampled].tolist(),
            gamma,
            lam,
            rho_cap,
            c_cap,
        )
        for ours, theirs in zip((targets, advantages), slow, strict=True):
            torch.testing.assert_close(ours[row][sampled], torch.tensor(theirs).double(), atol=1e-5, rtol=1e-5)
    assert not targets[~mask].any()
    assert not advantages[~mask].any()


@given(responses(), unit, unit)
def test_on_policy_vtraces_targets_are_gaes_returns(batch, gamma, lam):
    rewards, values, _, mask = batch
    targets, _ = vtrace(torch.zeros_like(values), rewards, values, mask, gamma, lam, 1.0, 1.0)
    torch.testing.assert_close(targets, gae(rewards, values, mask, gamma, lam)[1])


def test_advantages_and_targets_carry_no_gradient():
    values, log_ratios = (torch.zeros(1, 2, requires_grad=True) for _ in range(2))
    mask = torch.ones(1, 2, dtype=torch.bool)
    of_gae = gae(torch.ones(1), values, mask, 0.9, 0.8)
    for ratios, critic in ((log_ratios, values.detach()), (log_ratios.detach(), values)):
        of_vtrace = vtrace(ratios, torch.ones(1), critic, mask, 0.9, 0.8, 1.0, 1.0)
        assert not any(result.requires_grad for result in (*of_gae, *of_vtrace))


def test_every_token_before_and_after_a_tool_call_learns_from_the_reward():
    # V = 0.5 everywhere and reward 1: +0.5 at each sampled token; tool output (0 in the mask) gets nothing.
    mask = torch.tensor([[1, 1, 1, 0, 0, 1, 1, 0], [1, 0, 0, 0, 1, 1, 0, 0]], dtype=torch.bool)
    advantages, returns = gae(torch.ones(2), torch.full((2, 8), 0.5), mask, gamma=1.0, lam=1.0)
    assert advantages.tolist() == (0.5 * mask).tolist()
    assert returns.tolist() == mask.float().tolist()


def test_a_longer_tool_output_changes_no_advantage():
    values = torch.tensor([[0.1, 0.7, 0.4]], dtype=torch.float64)
    short, _ = gae(torch.ones(1), values, torch.ones(1, 3, dtype=torch.bool), 0.9, 0.8)
    holes = torch.tensor([[True, True, False, False, False, True]])
    spread = torch.zeros(1, 6, dtype=torch.float64).masked_scatter(holes, values)
    long, _ = gae(torch.ones(1), spread, holes, 0.9, 0.8)
    assert long[holes].tolist() == short[0].tolist()


def test_vtrace_by_hand_below_and_above_its_caps():
    # Two tokens, V = 0, reward 1, gamma = lambda = 1, caps 1: the last token's ratio is 0.5, the first one's 4 (capped).
    # v_2 = 0.5 * 1; v_1 = 1 * (0 + 0 - 0) + 1 * (v_2 - 0) = 0.5. Advantages: 1 - 0, and v_2 - 0.
    log_ratios = torch.tensor([[4.0, 0.5]]).log()
    mask = torch.ones(1, 2, dtype=torch.bool)
    targets, advantages = vtrace(log_ratios, torch.ones(1), torch.zeros(1, 2), mask, 1.0, 1.0, 1.0, 1.0)
    assert targets.tolist() == [[0.5, 0.5]]
    assert advantages.tolist() == [[0.5, 1.0]]
    # With rho-bar 8 and c-bar 4 the first token's trace is 4 times as strong, its own difference is still 0.
    targets, _ = vtrace(log_ratios, torch.ones(1), torch.zeros(1, 2), mask, 1.0, 1.0, 8.0, 4.0)
    assert targets.tolist() == [[2.0, 0.5]]


rewards_and_groups = st.lists(st.tuples(st.floats(-3.0, 3.0), st.integers(0, 3)), min_size=1, max_size=12).map(
    lambda pairs: (torch.tensor([r for r, _ in pairs], dtype=torch.float64), torch.tensor([g for _, g in pairs]))
)


@given(rewards_and_groups, st.booleans())
def test_grpo_is_the_papers_normalisation_of_each_group_whatever_its_size(batch, divide):
    rewards, groups = batch
    ours = grpo(rewards, groups, divide)
    for reward, group, advantage in zip(rewards.tolist(), groups.tolist(), ours.tolist(), strict=True):
        own = rewards[groups == group].tolist()
        deviation = statistics.pstdev(own) if divide else 1.0
        # Where a group is constant up to rounding, there is nothing to learn from it.
        expected = (reward - statistics.fmean(own)) / deviation if deviation > 1e-7 else 0.0
        if deviation > 1e-7 or deviation < 1e-9:
            assert advantage == pytest.approx(expected, abs=1e-6)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=8))
def test_grpos_length_scale_turns_the_token_mean_into_a_mean_of_trajectory_means(lengths):
    losses = [torch.arange(n, dtype=torch.float64) - n / 3 for n in lengths]
    scale = grpo_length_scale(torch.tensor(lengths))
    ours = sum(s * loss.sum() for s, loss in zip(scale, losses, strict=True)) / sum(lengths)
    # 1 / B sum_i 1 / |o_i| sum_t l_it
    slow = statistics.fmean(float(loss.mean()) for loss in losses)
    assert float(ours) == pytest.approx(slow, rel=1e-5, abs=1e-5)


@given(st.lists(st.floats(-5.0, 5.0), min_size=1, max_size=20), st.booleans())
def test_whitening_is_over_the_whole_batch(numbers, centre):
    ours = whiten(torch.tensor(numbers, dtype=torch.float64), centre).tolist()
    deviation = statistics.pstdev(numbers)
    if deviation > 1e-7:
        mean = statistics.fmean(numbers) if centre else 0.0
        assert ours == pytest.approx([(number - mean) / deviation for number in numbers], abs=1e-6, rel=1e-6)
    elif deviation < 1e-9:
        assert ours == [0.0] * len(numbers)

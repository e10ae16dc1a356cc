"""Advantage estimators, as pure functions of tensors.

B is the number of trajectories in the batch, T the padded length of their responses. Rewards are outcome rewards, one a
trajectory, earned by its last sampled token. Only sampled tokens are steps of the trajectory: inserted ones (tool output)
and padding are skipped as if they were not there, so credit passes over them undiminished and none rests on them.
"""

import torch

MIN_DEVIATION = 1e-8
"""Below it a batch or a group counts as constant: dividing would only enlarge rounding errors."""


def group_baseline(rewards: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """Returns the reward minus the mean reward of its group.

    Args:
        rewards: float [B].
        groups: integer [B], the group of each trajectory, in any order. A group may lack samples: its mean is over those
            that are there.

    Returns:
        [B], of the dtype of `rewards`. Each group's values sum to 0; a group of one has 0.

    Source: REINFORCE++-baseline, https://arxiv.org/abs/2501.03262, section on the group baseline.
    """
    return rewards - _group_mean(rewards, groups)


def grpo(rewards: torch.Tensor, groups: torch.Tensor, divide_by_std: bool) -> torch.Tensor:
    """Returns the reward minus its group's mean, over its group's standard deviation.

    Args:
        rewards, groups: as for `group_baseline`.
        divide_by_std: False leaves the deviation out, as Dr. GRPO does.

    Returns:
        [B], of the dtype of `rewards`; zeros in a group whose rewards are all equal. The deviation is the population's.

    Sources: GRPO, DeepSeekMath https://arxiv.org/abs/2402.03300 section 4.1.2; without the deviation, Dr. GRPO
    https://arxiv.org/abs/2503.20783.
    """
    centred = group_baseline(rewards, groups)
    if not divide_by_std:
        return centred
    deviation = _group_mean(centred.square(), groups).sqrt()
    return torch.where(deviation > MIN_DEVIATION, centred / deviation, 0.0)


def grpo_length_scale(lengths: torch.Tensor) -> torch.Tensor:
    """Returns by what each trajectory's tokens are multiplied, so that a mean over tokens is GRPO's mean over trajectories.

    1 / (sum of n) sum_i sum_t scale_i l_it = 1 / B sum_i 1 / n_i sum_t l_it for scale_i = (mean n) / n_i.

    Args:
        lengths: integer [B], n_i, the sampled tokens of each trajectory.

    Returns:
        float32 [B].

    Source: the term 1 / |o_i| of DeepSeekMath https://arxiv.org/abs/2402.03300 equation 3, which Dr. GRPO
    https://arxiv.org/abs/2503.20783 leaves out.
    """
    return lengths.float().mean() / lengths


def gae(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, gamma: float, lam: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Computes generalised advantages: A_t = sum_l (gamma lam)^l delta_{t+l}, delta_t = r_t + gamma V_{t+1} - V_t.

    t counts sampled tokens; r_t is 0 but at the last one, after which the value is 0.

    Args:
        rewards: float [B].
        values: float [B, T], V at each token, before it is sampled; what stands where `mask` is False is not read.
        mask: bool [B, T], True on sampled tokens.
        gamma: discount of a sampled token.
        lam: lambda.

    Returns:
        Advantages and returns (advantage plus value, what the critic learns), both [B, T] of the dtype of `values`,
        detached, 0 where `mask` is False.

    Source: Schulman et al. https://arxiv.org/abs/1506.02438 equations 11 to 16.
    """
    rhos, cs = (values.new_full((), number).expand_as(values) for number in (1.0, lam))
    corrections, _ = _traces(rewards, values.detach(), mask, rhos, cs, gamma)
    return corrections, torch.where(mask, corrections + values.detach(), 0.0)


def vtrace(
    log_ratios: torch.Tensor,
    rewards: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor,
    gamma: float,
    lam: float,
    rho_cap: float,
    c_cap: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Computes V-trace: targets v_s for the critic and advantages for the policy, of the policy pi from samples of mu.

    v_s = V_s + sum_{t >= s} gamma^{t-s} (prod_{i=s}^{t-1} c_i) rho_t (r_t + gamma V_{t+1} - V_t) with
    rho_t = min(rho_cap, pi/mu) and c_t = lam min(c_cap, pi/mu); advantage_s = r_s + gamma v_{s+1} - V_s.

    Args:
        log_ratios: float [B, T], log pi - log mu of each sampled token, see `correction.log_ratio`.
        rewards, values, mask, gamma: as for `gae`.
        lam: lambda; 1 in the paper's experiments.
        rho_cap, c_cap: rho-bar and c-bar. rho_cap decides which policy the targets are the values of.

    Returns:
        Targets and advantages, both [B, T], detached, 0 where `mask` is False. The advantages do not yet hold the weight
        rho_s of the policy gradient: the loss applies the truncated importance weight once, to whatever estimator.

    Source: Espeholt et al. https://arxiv.org/abs/1802.01561 equation 1, remark 2 (lambda) and section 4.2.
    """
    ratios = log_ratios.detach().exp()
    rhos, cs = ratios.clamp(max=rho_cap), lam * ratios.clamp(max=c_cap)
    corrections, advantages = _traces(rewards, values.detach(), mask, rhos, cs, gamma)
    return torch.where(mask, corrections + values.detach(), 0.0), advantages


def whiten(advantages: torch.Tensor, centre: bool = False) -> torch.Tensor:
    """Returns the advantages over the batch's standard deviation, less its mean if `centre`; zeros for a constant batch.

    Estimators without a baseline of their own (a value per token, or none) need the mean taken off. After
    `group_baseline` it is 0 over trajectories by construction, and a mean over tokens instead would give trajectories
    exactly at their group's baseline an advantage that depends on the lengths of others: there nothing is subtracted.

    Args:
        advantages: float [N]: all trajectories of the batch, or all its sampled tokens.

    Returns:
        [N], of the same dtype; the deviation is the population's (divided by N).

    Source: https://arxiv.org/abs/2501.03262, global advantage normalisation.
    """
    deviation = advantages.std(correction=0)
    if deviation <= MIN_DEVIATION:
        return torch.zeros_like(advantages)
    return (advantages - advantages.mean() if centre else advantages) / deviation


def _group_mean(values: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """Returns [B]: for each trajectory the mean over its group."""
    _, index = torch.unique(groups, return_inverse=True)
    total = torch.zeros(int(index.max()) + 1, dtype=values.dtype, device=values.device).index_add_(0, index, values)
    return (total / torch.bincount(index))[index]


def _traces(
    rewards: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor,
    rhos: torch.Tensor,
    cs: torch.Tensor,
    gamma: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns v_s - V_s and r_s + gamma v_{s+1} - V_s of V-trace for the given rho and c.

    v_s - V_s = rho_s (r_s + gamma V_{s+1} - V_s) + gamma c_s (v_{s+1} - V_{s+1}); with rho = 1 and c = lambda it is GAE.
    """
    corrections, advantages = torch.zeros_like(values), torch.zeros_like(values)
    reward = rewards.to(values.dtype)
    next_value = next_correction = torch.zeros_like(reward)
    for t in reversed(range(values.shape[1])):
        sampled, value = mask[:, t], values[:, t]
        correction = rhos[:, t] * (reward + gamma * next_value - value) + gamma * cs[:, t] * next_correction
        advantage = reward + gamma * (next_value + next_correction) - value
        corrections[:, t] = torch.where(sampled, correction, 0.0)
        advantages[:, t] = torch.where(sampled, advantage, 0.0)
        # A token that was not sampled leaves what the tokens before it see as it is.
        next_correction = torch.where(sampled, correction, next_correction)
        next_value = torch.where(sampled, value, next_value)
        reward = torch.where(sampled, 0.0, reward)
    return corrections, advantages

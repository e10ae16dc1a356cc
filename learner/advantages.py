"""Advantages of REINFORCE++ with a group baseline, as pure functions of tensors.

B is the number of trajectories in the batch. Rewards are outcome rewards, one a trajectory, so every sampled token of a
trajectory has its trajectory's advantage (gamma = lambda = 1); inserted tokens take no part.
"""

import torch

MIN_DEVIATION = 1e-8
"""Below it a batch counts as constant: dividing would only enlarge rounding errors."""


def group_baseline(rewards: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """Reward minus the mean reward of its group.

    Args:
        rewards: float [B].
        groups: integer [B], the group of each trajectory, in any order.

    Returns:
        [B], of the dtype of `rewards`. Each group's values sum to 0; a group of one has 0.

    Source: REINFORCE++-baseline, https://arxiv.org/abs/2501.03262, section on the group baseline.
    """
    _, index = torch.unique(groups, return_inverse=True)
    count = torch.bincount(index)
    total = torch.zeros(len(count), dtype=rewards.dtype, device=rewards.device).index_add_(0, index, rewards)
    return rewards - (total / count)[index]


def whiten(advantages: torch.Tensor) -> torch.Tensor:
    """Advantages over the standard deviation of the batch; zeros where the batch is constant.

    The paper's global normalisation also subtracts the batch's mean. Here that mean is 0 by construction, since
    `group_baseline` centres every group, and a mean over tokens instead of trajectories would give trajectories exactly
    at their group's baseline an advantage that depends on the lengths of others. So nothing is subtracted.

    Args:
        advantages: float [B].

    Returns:
        [B], of the same dtype; the deviation is the population's (divided by B).

    Source: https://arxiv.org/abs/2501.03262, global advantage normalisation.
    """
    deviation = advantages.std(correction=0)
    if deviation <= MIN_DEVIATION:
        return torch.zeros_like(advantages)
    return advantages / deviation

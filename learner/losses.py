"""Policy losses, as pure functions over flat sampled tokens.

N is the number of sampled tokens of one micro-batch. Each loss is a *sum* over them: the caller divides by the number
of sampled tokens of the whole minibatch, so how tokens fall into micro-batches changes no gradient.
"""

import torch

from learner.correction import log_ratio


def _clipped_objective(
    logprobs: torch.Tensor,
    reference_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    clip_low: float,
    clip_high: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """min(r A, clip(r, 1 - clip_low, 1 + clip_high) A) [N], and whether the clip stops the token's gradient [N]."""
    ratio = log_ratio(logprobs, reference_logprobs.detach()).exp()
    objective = torch.minimum(ratio * advantages, ratio.clamp(1.0 - clip_low, 1.0 + clip_high) * advantages)
    clipped = ((advantages > 0) & (ratio > 1.0 + clip_high)) | ((advantages < 0) & (ratio < 1.0 - clip_low))
    return objective, clipped


def decoupled_ppo_loss(
    logprobs: torch.Tensor,
    proximal_logprobs: torch.Tensor,
    weights: torch.Tensor,
    advantages: torch.Tensor,
    clip_low: float,
    clip_high: float,
) -> tuple[torch.Tensor, dict[str, float]]:
    """PPO around the proximal policy, weighted for tokens that an older behaviour policy sampled.

    -sum_i w_i min(r_i A_i, clip(r_i, 1 - clip_low, 1 + clip_high) A_i) with r = pi / pi_prox.

    Args:
        logprobs: float [N], log pi, with gradient.
        proximal_logprobs: float [N], log pi_prox; `logprobs` itself where no update has been made since the batch was
            formed: then r is exactly 1.
        weights: float [N], min(pi_prox / mu, cap), see `importance_weights`.
        advantages: float [N].
        clip_low, clip_high: the ratio counts within [1 - clip_low, 1 + clip_high].

    Returns:
        The summed loss (scalar), and `clip_fraction`: the share of tokens whose gradient the clip stops.

    Sources: decoupled objective, Hilton et al. https://arxiv.org/abs/2110.00641 and AReaL
    https://arxiv.org/abs/2505.24298; PPO, Schulman et al. https://arxiv.org/abs/1707.06347 equation 7; separate lower
    and upper clip, DAPO https://arxiv.org/abs/2503.14476.
    """
    objective, clipped = _clipped_objective(logprobs, proximal_logprobs, advantages, clip_low, clip_high)
    return -(weights * objective).sum(), {"clip_fraction": clipped.float().mean().item()}


def ppo_loss(
    logprobs: torch.Tensor,
    behaviour_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    clip_low: float,
    clip_high: float,
) -> tuple[torch.Tensor, dict[str, float]]:
    """PPO clipped straight against the behaviour policy: r = pi / mu, no further weight.

    Arguments, result and clip as for `decoupled_ppo_loss`, `behaviour_logprobs` [N] being log mu.

    Sources: PPO, Schulman et al. https://arxiv.org/abs/1707.06347 equation 7; separate lower and upper clip, DAPO
    https://arxiv.org/abs/2503.14476.
    """
    objective, clipped = _clipped_objective(logprobs, behaviour_logprobs, advantages, clip_low, clip_high)
    return -objective.sum(), {"clip_fraction": clipped.float().mean().item()}

"""Losses of policy and critic, as pure functions over flat sampled tokens.

N is the number of sampled tokens of one micro-batch. Each loss is a *sum* over them: the caller divides by the number
of sampled tokens of the whole minibatch, so how tokens fall into micro-batches changes no gradient.
"""

import torch

from learner.algorithm.correction import log_ratio


def decoupled_ppo_loss(
    logprobs: torch.Tensor,
    proximal_logprobs: torch.Tensor,
    weights: torch.Tensor,
    advantages: torch.Tensor,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
) -> tuple[torch.Tensor, dict[str, float]]:
    """Computes PPO's loss around the proximal policy, weighted for tokens that an older behaviour policy sampled.

    -sum_i w_i min(r_i A_i, clip(r_i, 1 - clip_low, 1 + clip_high) A_i) with r = pi / pi_prox; where A_i < 0 the minimum
    is at least `dual_clip` A_i.

    Args:
        logprobs: float [N], log pi, with gradient.
        proximal_logprobs: float [N], log pi_prox; `logprobs` itself where no update has been made since the batch was
            formed: then r is exactly 1.
        weights: float [N], min(pi_prox / mu, cap), see `importance_weights`.
        advantages: float [N].
        clip_low, clip_high: the ratio counts within [1 - clip_low, 1 + clip_high].
        dual_clip: how many times a negative advantage may count, above 1 + clip_high; None bounds it not at all.

    Returns:
        The summed loss (scalar), and `clip_fraction`: the share of tokens whose gradient a clip stops.

    Sources: decoupled objective, Hilton et al. https://arxiv.org/abs/2110.00641 and AReaL
    https://arxiv.org/abs/2505.24298; PPO, Schulman et al. https://arxiv.org/abs/1707.06347 equation 7; separate lower
    and upper clip, DAPO https://arxiv.org/abs/2503.14476; dual clip, Ye et al. https://arxiv.org/abs/1912.09729 equation 5.
    """
    objective, clipped = _clipped_objective(logprobs, proximal_logprobs, advantages, clip_low, clip_high, dual_clip)
    return -(weights * objective).sum(), {"clip_fraction": clipped.float().mean().item()}


def ppo_loss(
    logprobs: torch.Tensor,
    behaviour_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
) -> tuple[torch.Tensor, dict[str, float]]:
    """Computes PPO's loss clipped straight against the behaviour policy: r = pi / mu, no further weight.

    Arguments, result, clips and sources as for `decoupled_ppo_loss`, `behaviour_logprobs` [N] being log mu.
    """
    objective, clipped = _clipped_objective(logprobs, behaviour_logprobs, advantages, clip_low, clip_high, dual_clip)
    return -objective.sum(), {"clip_fraction": clipped.float().mean().item()}


def reference_kl(logprobs: torch.Tensor, reference_logprobs: torch.Tensor) -> torch.Tensor:
    """Returns the k3 estimate of KL(pi || pi_ref) at each token: q - 1 - log q with q = pi_ref / pi; never negative.

    Args:
        logprobs: float [N], log pi, with gradient.
        reference_logprobs: float [N], log pi_ref.

    Returns:
        [N], in nats, with gradient.

    Sources: Schulman, "Approximating KL Divergence" (2020); as a loss, DeepSeekMath https://arxiv.org/abs/2402.03300
    equation 4.
    """
    log_ratios = log_ratio(reference_logprobs.detach(), logprobs)
    return log_ratios.exp() - 1.0 - log_ratios


def value_loss(
    values: torch.Tensor, old_values: torch.Tensor, returns: torch.Tensor, clip: float | None
) -> tuple[torch.Tensor, dict[str, float]]:
    """Returns half the squared error of the critic, pessimistic about moving further than `clip` from its old values.

    1/2 sum_i max((V_i - R_i)^2, (clip(V_i, V_old_i - clip, V_old_i + clip) - R_i)^2).

    Args:
        values: float [N], V, with gradient.
        old_values: float [N], of the critic before its updates on the batch.
        returns: float [N], R.
        clip: None takes the plain squared error.

    Returns:
        The summed loss (scalar), and `value_clip_fraction`: the share of tokens whose gradient the clip stops.

    Sources: Schulman et al. https://arxiv.org/abs/1506.02438 (value function) and the clip of OpenAI baselines' `ppo2`.
    """
    error = (values - returns).square()
    if clip is None:
        return 0.5 * error.sum(), {"value_clip_fraction": 0.0}
    kept = values.clamp(min=old_values - clip, max=old_values + clip)
    clipped_error = (kept - returns).square()
    stopped = (clipped_error > error) & (kept != values)
    return 0.5 * torch.maximum(error, clipped_error).sum(), {"value_clip_fraction": stopped.float().mean().item()}


def _clipped_objective(
    logprobs: torch.Tensor,
    reference_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the clipped objective [N] of `decoupled_ppo_loss`, unweighted, and where a clip stops the gradient [N]."""
    ratio = log_ratio(logprobs, reference_logprobs.detach()).exp()
    objective = torch.minimum(ratio * advantages, ratio.clamp(1.0 - clip_low, 1.0 + clip_high) * advantages)
    clipped = ((advantages > 0) & (ratio > 1.0 + clip_high)) | ((advantages < 0) & (ratio < 1.0 - clip_low))
    if dual_clip is not None:
        negative = advantages < 0
        objective = torch.where(negative, torch.maximum(objective, dual_clip * advantages), objective)
        clipped |= negative & (ratio > dual_clip)
    return objective, clipped

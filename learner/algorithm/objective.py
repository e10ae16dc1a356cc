"""Composes what the configuration asks for: a batch's advantages, and the policy's loss of a micro-batch."""

from collections.abc import Sequence

import torch
from torch.nn.utils.rnn import pad_sequence

from configs.schema import AlgorithmConfig
from learner.algorithm.advantages import gae, group_baseline, grpo, grpo_length_scale, vtrace, whiten
from learner.algorithm.correction import importance_weights, in_band, sequence_ratios
from learner.algorithm.losses import decoupled_ppo_loss, ppo_loss, reference_kl


def batch_advantages(
    algorithm: AlgorithmConfig,
    rewards: torch.Tensor,
    groups: torch.Tensor,
    values: Sequence[torch.Tensor] | None = None,
    log_ratios: Sequence[torch.Tensor] | None = None,
    lengths: Sequence[int] = (),
) -> tuple[list[torch.Tensor], list[torch.Tensor] | None]:
    """Returns the advantages of a batch of B trajectories, whitened as the estimator asks, and what the critic is to learn.

    Everything is computed in float64, so that equal rewards cancel.

    Args:
        rewards: float64 [B].
        groups: integer [B].
        lengths: sampled tokens n_i of each trajectory.
        values: float [n_i] for each trajectory, of the critic; for `gae` and `vtrace`.
        log_ratios: float [n_i] for each trajectory, log pi_prox - log mu; for `vtrace`.

    Returns:
        For each trajectory float32 advantages of its sampled tokens, [n_i], or one for all of them, a scalar; and its
        returns [n_i], float32, where there is a critic.
    """
    match algorithm.advantage:
        case "reinforce++-baseline":
            return list(whiten(group_baseline(rewards, groups)).float()), None
        case "grpo":
            return list(grpo(rewards, groups, algorithm.grpo_std).float()), None
        case "reinforce++":
            # The mean is over tokens, as in the paper, where a trajectory's advantage stands at each of its tokens.
            tokens = rewards.repeat_interleave(torch.tensor(lengths))
            return list(whiten(tokens, centre=True).float().split(list(lengths))), None
    assert values is not None
    mask = pad_sequence([torch.ones(count, dtype=torch.bool) for count in lengths], batch_first=True)
    padded = pad_sequence([each.double() for each in values], batch_first=True)
    if algorithm.advantage == "gae":
        advantages, returns = gae(rewards, padded, mask, algorithm.gamma, algorithm.gae_lambda)
    else:
        assert log_ratios is not None
        returns, advantages = vtrace(
            pad_sequence([each.double() for each in log_ratios], batch_first=True),
            rewards,
            padded,
            mask,
            algorithm.gamma,
            algorithm.gae_lambda,
            algorithm.vtrace_rho_cap,
            algorithm.vtrace_c_cap,
        )
    whitened = whiten(advantages[mask], centre=True).float()
    return list(whitened.split(list(lengths))), list(returns[mask].float().split(list(lengths)))


def length_scale(algorithm: AlgorithmConfig, lengths: torch.Tensor) -> torch.Tensor:
    """Returns by what each trajectory's tokens are multiplied in the loss, [B]; `lengths` [B] counts its sampled tokens."""
    if algorithm.advantage == "grpo" and algorithm.grpo_length:
        return grpo_length_scale(lengths)
    return torch.ones_like(lengths, dtype=torch.float32)


def policy_objective(
    algorithm: AlgorithmConfig,
    logprobs: torch.Tensor,
    *,
    proximal_logprobs: torch.Tensor,
    behaviour_logprobs: torch.Tensor,
    reference_logprobs: torch.Tensor | None,
    advantages: torch.Tensor,
    scale: torch.Tensor,
    sequences: torch.Tensor,
) -> tuple[torch.Tensor, dict[str, float]]:
    """Returns the loss to minimise, summed over the N > 0 sampled tokens of a micro-batch.

    Args:
        logprobs: float [N], log pi, with gradient.
        proximal_logprobs: float [N], log pi_prox, detached; equal to `logprobs` where no update has been made since the
            batch was formed.
        behaviour_logprobs: float [N], log mu.
        reference_logprobs: float [N], log pi_ref; needed where `kl_coefficient` is not 0.
        advantages: float [N].
        scale: float [N], from `length_scale`.
        sequences: int64 [N] in [0, S), the sequence of each token.

    Returns:
        The loss (scalar), and sums over tokens: `clip_fraction` and `reference_kl`.
    """
    clips = (algorithm.clip_low, algorithm.clip_high, algorithm.dual_clip)
    kept = in_band(sequence_ratios(proximal_logprobs, behaviour_logprobs, sequences), algorithm.sequence_band)
    # The objective is homogeneous in the advantage: scaling or masking a token scales its advantage.
    advantages = advantages * scale * kept[sequences]
    if algorithm.loss == "ppo":
        loss, metrics = ppo_loss(logprobs, behaviour_logprobs, advantages, *clips)
    else:
        weights, _ = importance_weights(proximal_logprobs, behaviour_logprobs, algorithm.weight_cap)
        if not algorithm.token_weights:
            weights = torch.ones_like(weights)
        loss, metrics = decoupled_ppo_loss(logprobs, proximal_logprobs, weights, advantages, *clips)
    sums = {"clip_fraction": metrics["clip_fraction"] * len(logprobs), "reference_kl": 0.0}
    if reference_logprobs is not None:
        kl = reference_kl(logprobs, reference_logprobs)
        loss = loss + algorithm.kl_coefficient * (scale * kl).sum()
        sums["reference_kl"] = kl.sum().item()
    return loss, sums

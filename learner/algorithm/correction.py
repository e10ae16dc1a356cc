"""Off-policy correction: how much a token that the behaviour policy sampled counts for the learner's policy.

N is the number of sampled tokens, S of trajectories. All log-probabilities belong to the same distribution: logits over
the ticket's temperature, without truncation.
"""

import torch

MAX_LOG_RATIO = 20.0
"""Log ratios are clamped to it before `exp`: exp(20) is far beyond every clip and cap, while exp(89) is infinite in
float32 and would turn a zero advantage into NaN."""


def log_ratio(logprobs: torch.Tensor, reference_logprobs: torch.Tensor) -> torch.Tensor:
    """Returns log(pi / pi_reference), clamped to +-`MAX_LOG_RATIO`. Shapes [N]."""
    return (logprobs - reference_logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def importance_weights(
    proximal_logprobs: torch.Tensor, behaviour_logprobs: torch.Tensor, cap: float
) -> tuple[torch.Tensor, dict[str, float]]:
    """Returns the truncated importance weights w = min(pi_prox / mu, cap), detached, and how far the two policies are apart.

    Args:
        proximal_logprobs: float [N], log pi_prox of each sampled token.
        behaviour_logprobs: float [N], log mu of each sampled token.
        cap: upper bound of a weight.

    Returns:
        The weights [N], and metrics over the N tokens: `importance_weight_mean`, `importance_weight_max` and
        `importance_weight_ess` of the truncated weights (effective sample size (sum w)^2 / (N sum w^2), in (0, 1]),
        `importance_weight_capped`, the share of them that the cap truncated, and `behaviour_kl`, the k3 estimate of
        KL(mu || pi_prox) in nats a token, from ratios that are not truncated.

    Sources: truncated importance weights, IMPALA https://arxiv.org/abs/1802.01561 (rho bar); the weight on top of a
    proximal policy, https://arxiv.org/abs/2505.24298; k3, Schulman, "Approximating KL Divergence" (2020).
    """
    log_ratios = log_ratio(proximal_logprobs.detach(), behaviour_logprobs)
    ratios = log_ratios.exp()
    weights = ratios.clamp(max=cap)
    metrics = {
        "importance_weight_mean": weights.mean().item(),
        "importance_weight_max": weights.max().item(),
        "importance_weight_ess": (weights.sum().square() / (len(weights) * weights.square().sum())).item(),
        "importance_weight_capped": (ratios > cap).float().mean().item(),
        "behaviour_kl": (ratios - 1.0 - log_ratios).mean().item(),
    }
    return weights, metrics


def sequence_ratios(
    proximal_logprobs: torch.Tensor, behaviour_logprobs: torch.Tensor, sequences: torch.Tensor
) -> torch.Tensor:
    """Returns the geometric mean over each trajectory's sampled tokens of pi_prox / mu, detached.

    (prod_t pi_prox / mu)^(1 / n) = exp(1 / n sum_t (log pi_prox - log mu)); the mean is clamped like every log ratio.

    Args:
        proximal_logprobs, behaviour_logprobs: float [N].
        sequences: integer [N] in [0, S), the trajectory of each token; every trajectory has one at least.

    Returns:
        float [S].

    Source: GSPO https://arxiv.org/abs/2507.18071 equation 7, here between the policies that differ by staleness and engine.
    """
    difference = proximal_logprobs.detach() - behaviour_logprobs
    counts = torch.bincount(sequences)
    total = torch.zeros(len(counts), dtype=difference.dtype, device=difference.device)
    mean = total.index_add_(0, sequences, difference) / counts
    return mean.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def in_band(ratios: torch.Tensor, band: tuple[float, float] | None) -> torch.Tensor:
    """Returns which trajectories [S] (bool) keep their loss: those whose ratio is in `band`, ends included.

    Without a band all keep it.
    """
    if band is None:
        return torch.ones_like(ratios, dtype=torch.bool)
    low, high = band
    return (ratios >= low) & (ratios <= high)

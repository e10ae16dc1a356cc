"""Off-policy correction: how much a token that the behaviour policy sampled counts for the learner's policy.

N is the number of sampled tokens. All log-probabilities belong to the same distribution: logits over the ticket's
temperature, without truncation.
"""

import torch

MAX_LOG_RATIO = 20.0
"""Log ratios are clamped to it before `exp`: exp(20) is far beyond every clip and cap, while exp(89) is infinite in
float32 and would turn a zero advantage into NaN."""


def log_ratio(logprobs: torch.Tensor, reference_logprobs: torch.Tensor) -> torch.Tensor:
    """log(pi / pi_reference), clamped to +-`MAX_LOG_RATIO`. Shapes [N]."""
    return (logprobs - reference_logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def importance_weights(
    proximal_logprobs: torch.Tensor, behaviour_logprobs: torch.Tensor, cap: float
) -> tuple[torch.Tensor, dict[str, float]]:
    """Truncated importance weights w = min(pi_prox / mu, cap), detached, and how far the two policies are apart.

    Args:
        proximal_logprobs: float [N], log pi_prox of each sampled token.
        behaviour_logprobs: float [N], log mu of each sampled token.
        cap: upper bound of a weight.

    Returns:
        The weights [N], and metrics over the N tokens: `importance_weight_mean`, `importance_weight_max` and
        `importance_weight_ess` of the truncated weights (effective sample size (sum w)^2 / (N sum w^2), in (0, 1]), and
        `behaviour_kl`, the k3 estimate of KL(mu || pi_prox) in nats a token, from ratios that are not truncated.

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
        "behaviour_kl": (ratios - 1.0 - log_ratios).mean().item(),
    }
    return weights, metrics

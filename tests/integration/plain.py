"""A training step by plain transformers, to hold the trainer against; and what tests ask of a trainer."""

from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from bus.messages import Trajectory
from configs.training import OptimizerConfig
from learner.training.batches import micro_batches
from learner.training.policy import Policy
from learner.training.rank_trainer import RankTrainer

# With an epsilon that dwarfs every gradient, AdamW's first step is lr / eps times the gradient: the weights show it.
GRADIENT = OptimizerConfig(lr=1e4, eps=1e4, max_grad_norm=1e9)
TRAIN = OptimizerConfig(lr=1e-3)
Weights = dict[str, torch.Tensor]


def weights(trainer: RankTrainer) -> Weights:
    return dict(trainer.policy.named_weights())


def behave_like(policy: Policy, trajectories: list[Trajectory]) -> list[Trajectory]:
    """The same trajectories with the policy's own log-probabilities as the behaviour policy's."""
    result = []
    for item in trajectories:
        with torch.no_grad():
            logprobs = policy.token_logprobs(micro_batches([item], torch.zeros(1), 4096)[0])
        behaviour = np.zeros(item.response_length, np.float32)
        behaviour[np.flatnonzero(item.loss_mask)] = logprobs.numpy()
        result.append(item.model_copy(update={"logprobs": behaviour}))
    return result


def plain_logprobs(model: torch.nn.Module, item: Trajectory) -> torch.Tensor:
    """Log-probabilities of the sampled tokens from full logits of one sequence, without padding."""
    tokens = torch.from_numpy(item.tokens.astype(np.int64))
    logits = model(input_ids=tokens[None]).logits[0] / item.temperature
    positions = item.prompt_length + np.flatnonzero(item.loss_mask)
    return torch.log_softmax(logits[positions - 1], dim=-1)[range(len(positions)), tokens[positions]]


def plain_gradient(
    folder: Path, groups: list[list[Trajectory]], cap: float, dtype: torch.dtype = torch.float32
) -> Weights:
    """Returns the gradient of the on-policy decoupled loss, a sequence at a time, over the number of all sampled tokens.

    It is computed in float32, of weights that were rounded to `dtype`.
    """
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).float()
    everything = [item for group in groups for item in group]
    rewards = np.array([item.reward for item in everything])
    means = {group[0].group: np.mean([item.reward for item in group]) for group in groups}
    centred = np.array([item.reward - means[item.group] for item in everything])
    advantages = centred / centred.std()
    assert rewards.std() > 0
    count = sum(int(item.loss_mask.sum()) for item in everything)
    for item, advantage in zip(everything, advantages, strict=True):
        logprobs = plain_logprobs(model, item)
        behaviour = torch.from_numpy(item.logprobs[np.flatnonzero(item.loss_mask)])
        weight = (logprobs.detach() - behaviour).exp().clamp(max=cap)
        (-(weight * logprobs).sum() * float(advantage) / count).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def difference(after: Weights, before: Weights) -> Weights:
    return {name: before[name] - after[name] for name in before}

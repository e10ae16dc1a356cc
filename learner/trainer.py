"""One training step: from groups of trajectories to updated weights and the step's metrics.

The result depends on the configuration, the weights, the groups in their order and the version alone: `train` draws
nothing from a global random state, so a replay of the same groups repeats it. It blocks for as long as the computation
takes and is meant for a worker thread.
"""

import random
import time
from pathlib import Path

import structlog
import torch

from bus.messages import Trajectory
from configs.schema import RunConfig
from learner.advantages import group_baseline, whiten
from learner.batches import MicroBatch, micro_batches, sampled_tokens
from learner.correction import importance_weights
from learner.losses import decoupled_ppo_loss, ppo_loss
from learner.policy import Policy

log = structlog.get_logger()

NO_METRICS = dict.fromkeys(
    (
        "loss",
        "grad_norm",
        "importance_weight_mean",
        "importance_weight_max",
        "importance_weight_ess",
        "behaviour_kl",
        "clip_fraction",
        "trained_tokens",
        "train_seconds",
        "train_tokens_per_s",
        "learning_rate",
        "skipped_updates",
    ),
    0.0,
)
"""Every metric of a step, with the values of one that had nothing to train on."""


class Trainer:
    """Owns the policy and trains it batch by batch."""

    def __init__(self, config: RunConfig, model_folder: Path) -> None:
        """Loads the policy from `model_folder`, see `Policy`."""
        learner = config.learner
        self._algorithm = learner.algorithm
        self._budget = learner.deepspeed.micro_batch_tokens
        self._seed = config.seed
        self.policy = Policy(
            model_folder,
            config.model,
            learner.optimizer,
            learner.deepspeed,
            config.seed,
            total_steps=learner.steps * self._algorithm.minibatches,
        )

    def train(self, groups: list[list[Trajectory]], version: int) -> dict[str, float]:
        """Trains on one batch: an optimiser step for each of the algorithm's minibatches.

        Args:
            groups: the batch, already filtered; advantages are relative to each group and to the batch.
            version: that this step makes; with the seed it decides which trajectories share a minibatch.

        Returns:
            The step's metrics (names: `NO_METRICS`). `loss` is per sampled token and, like `grad_norm`, the mean over
            the updates that were applied; an update whose gradients were not finite is left out and counted in
            `skipped_updates`. The importance weights and `behaviour_kl` compare the policy that the batch met with the
            behaviour policy; under the loss `ppo`, which has no such weights, they are computed for information.
            `train_tokens_per_s` counts sampled tokens. No groups: all zero, and no weight is touched.
        """
        started = time.perf_counter()
        trajectories = [trajectory for group in groups for trajectory in group]
        if not trajectories:
            return dict(NO_METRICS)
        advantages = _advantages(trajectories)
        minibatches = [
            micro_batches([trajectories[i] for i in members], advantages[members], self._budget)
            for members in self._split(len(trajectories), version)
        ]
        # The first minibatch meets the proximal policy itself; only those after it need a pass of their own, before any
        # update is made.
        decoupled = self._algorithm.loss == "decoupled_ppo"
        later = [self._logprobs(minibatch) if decoupled else None for minibatch in minibatches[1:]]
        total = dict(NO_METRICS)
        met: list[tuple[torch.Tensor, torch.Tensor]] = []
        for minibatch, proximal in zip(minibatches, [None, *later], strict=True):
            self._update(minibatch, proximal, total, met, version)
        tokens = sum(sampled_tokens(trajectory) for trajectory in trajectories)
        applied = len(minibatches) - total["skipped_updates"]
        seconds = time.perf_counter() - started
        proximal_logprobs, behaviour_logprobs = (torch.cat(parts) for parts in zip(*met, strict=True))
        _, correction = importance_weights(proximal_logprobs, behaviour_logprobs, self._algorithm.weight_cap)
        return (
            total
            | correction
            | {
                "loss": total["loss"] / max(applied, 1),
                "grad_norm": total["grad_norm"] / max(applied, 1),
                "clip_fraction": total["clip_fraction"] / tokens,
                "trained_tokens": float(tokens),
                "train_seconds": seconds,
                "train_tokens_per_s": tokens / seconds,
            }
        )

    def _split(self, count: int, version: int) -> list[list[int]]:
        """Indices of the trajectories of each minibatch: sizes differ by one at most, none is empty."""
        order = list(range(count))
        random.Random(f"minibatches {self._seed} {version}").shuffle(order)
        parts = min(self._algorithm.minibatches, count)
        return [order[part::parts] for part in range(parts)]

    def _logprobs(self, minibatch: list[MicroBatch]) -> list[torch.Tensor]:
        with torch.no_grad():
            return [self.policy.token_logprobs(micro) for micro in minibatch]

    def _update(
        self,
        minibatch: list[MicroBatch],
        proximal: list[torch.Tensor] | None,
        total: dict[str, float],
        met: list[tuple[torch.Tensor, torch.Tensor]],
        version: int,
    ) -> None:
        """One optimiser step. Adds to `total`, and its tokens' log-probabilities (proximal, behaviour) to `met`."""
        tokens = sum(len(micro.targets) for micro in minibatch)
        loss_sum = 0.0
        for position, on_host in enumerate(minibatch):
            micro = on_host.to(self.policy.device)
            logprobs = self.policy.token_logprobs(micro)
            reference = logprobs.detach() if proximal is None else proximal[position]
            loss, clip_fraction = self._loss(logprobs, reference, micro)
            self.policy.backward(loss / tokens)
            loss_sum += loss.item()
            total["clip_fraction"] += clip_fraction * len(micro.targets)
            met.append((reference.cpu(), on_host.behaviour_logprobs))
        result = self.policy.optimizer_step()
        total["learning_rate"] = result.learning_rate
        if result.applied:
            total["loss"] += loss_sum / tokens
            total["grad_norm"] += result.grad_norm
        else:
            total["skipped_updates"] += 1
            log.warning("update left out: gradients are not finite", version=version, loss=loss_sum / tokens)

    def _loss(self, logprobs: torch.Tensor, reference: torch.Tensor, micro: MicroBatch) -> tuple[torch.Tensor, float]:
        """The algorithm's loss, summed over the micro-batch's tokens, and its clip fraction."""
        clip = (self._algorithm.clip_low, self._algorithm.clip_high)
        if self._algorithm.loss == "ppo":
            loss, metrics = ppo_loss(logprobs, micro.behaviour_logprobs, micro.advantages, *clip)
        else:
            weights, _ = importance_weights(reference, micro.behaviour_logprobs, self._algorithm.weight_cap)
            loss, metrics = decoupled_ppo_loss(logprobs, reference, weights, micro.advantages, *clip)
        return loss, metrics["clip_fraction"]


def _advantages(trajectories: list[Trajectory]) -> torch.Tensor:
    """[B] float32, computed in float64 so that equal rewards cancel."""
    rewards = torch.tensor([trajectory.reward for trajectory in trajectories], dtype=torch.float64)
    groups = torch.tensor([trajectory.group for trajectory in trajectories])
    return whiten(group_baseline(rewards, groups)).float()

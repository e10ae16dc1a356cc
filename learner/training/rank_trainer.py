"""One training step: from groups of trajectories to updated weights and the step's metrics.

    batch ─▶ passes (values, proximal) ─▶ advantages ─▶ the critic's updates ─▶ the policy's updates

All ranks train together, each on its share of every pass, and all have the same metrics; see `learner.training.passes`.

The result depends on the configuration, the weights, the groups in their order and the version alone: `train` draws
nothing from a global random state, so a replay of the same groups repeats it. It blocks for as long as the computation
takes and is meant for a worker thread.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

import numpy as np
import structlog
import torch

from bus.messages import Trajectory, WeightVersion
from configs.schema import RunConfig
from learner.algorithm.correction import importance_weights, in_band, log_ratio, sequence_ratios
from learner.algorithm.losses import value_loss
from learner.algorithm.objective import batch_advantages, length_scale, policy_objective
from learner.training.batches import MicroBatch, sampled_tokens
from learner.training.critic import Critic
from learner.training.deepspeed_engine import StepResult
from learner.training.engine_gap import EngineCheck, gap_bound
from learner.training.minibatches import Minibatch, split
from learner.training.passes import Passes
from learner.training.policy import Policy
from learner.training.ranks import Ranks, agreed_compute_dtype, join_process_group, leave_process_group
from learner.training.reference import ReferencePolicy
from learner.training.trainer import TokenOutcome, Watcher
from runtime.model_files import model_tensors

log = structlog.get_logger()

POLICY_METRICS = (
    "loss",
    "grad_norm",
    "learning_rate",
    "skipped_updates",
    "clip_fraction",
    "reference_kl",
    "importance_weight_mean",
    "importance_weight_max",
    "importance_weight_ess",
    "importance_weight_capped",
    "behaviour_kl",
    "engine_gap",
    "sequence_ratio_min",
    "sequence_ratio_max",
    "sequence_masked",
    "advantage_mean",
    "advantage_std",
    "trained_tokens",
    "trained_sequence_tokens",
    "parameters",
    "train_seconds",
    "train_tokens_per_s",
)
"""What a step reports. What it did not measure is left out: a step with nothing to train on has its counts alone."""
CRITIC_METRICS = (
    "critic_loss",
    "critic_grad_norm",
    "critic_learning_rate",
    "critic_skipped_updates",
    "value_clip_fraction",
    "value_mean",
    "value_explained_variance",
)
"""What a critic adds to them."""

Update = tuple[StepResult, dict[str, float]]
"""What one optimiser step did, and its minibatch's sums over sampled tokens."""


class RankTrainer:
    """Owns the policy, the critic if the advantages need one, and the reference; trains them batch by batch."""

    def __init__(self, config: RunConfig, model_folder: Path) -> None:
        """Loads the models from `model_folder`, see `Policy`. Raises ModelError where it is not whole or not supported."""
        model_tensors(model_folder)
        learner = config.learner
        self._algorithm = learner.algorithm
        self._critic_config = learner.critic
        self._seed = config.seed
        self._owns_process_group = join_process_group()
        self.compute_dtype: str = agreed_compute_dtype(config.model)
        """Name of the dtype of every model's passes, on all ranks."""
        compute: torch.dtype = getattr(torch, self.compute_dtype)
        self._frozen_steps = learner.critic.frozen_policy_steps if self._algorithm.has_critic else 0
        self.policy = Policy(
            model_folder,
            config.model,
            learner.optimizer,
            learner.deepspeed,
            config.seed,
            total_steps=(learner.steps - self._frozen_steps) * self._algorithm.minibatches,
            compute=compute,
        )
        self._critic: Critic | None = None
        if self._algorithm.has_critic:
            steps = learner.steps * learner.critic.minibatches
            self._critic = Critic(model_folder, learner.critic, learner.deepspeed, steps, compute)
        self._reference: ReferencePolicy | None = None
        if self._algorithm.kl_coefficient:
            self._reference = ReferencePolicy(model_folder, config.model, self.policy.device, compute)
        self._engine_check = EngineCheck(gap_bound(config))
        self._passes = Passes(Ranks(), learner.deepspeed.micro_batch_tokens, self.policy.device)

    def train(
        self,
        groups: list[list[Trajectory]],
        version: int,
        same: frozenset[WeightVersion] = frozenset(),
        watcher: Watcher | None = None,
    ) -> dict[str, float]:
        """Trains on one batch: an optimiser step for each of the algorithm's minibatches, and of the critic's.

        Args:
            groups: the batch, already filtered; advantages are relative to each group and to the batch.
            version: of the weights that the step trains from; with the seed it decides which trajectories share a minibatch.
            same: versions of the weight log that are these weights. Engines are held against the policy on their tokens.
            watcher: is told, at the end, what the step made of each trajectory's tokens.

        Returns:
            The step's metrics (names: `POLICY_METRICS`, with a critic `CRITIC_METRICS` too), without those that the step
            did not measure. `loss` is per sampled token and, like `grad_norm`, the mean over the updates that were applied;
            an update whose gradients were not finite is left out and counted in `skipped_updates`. The importance weights,
            `behaviour_kl` and the sequences' ratios compare the proximal policy with the behaviour policy, whether or
            not the loss uses them. The loss `ppo` has no proximal pass: each minibatch is compared with the weights
            just before its own update. `engine_gap` is there where tokens of `same` are. `train_tokens_per_s`
            counts sampled tokens. No groups: no weight is touched.

        Raises EngineGapError, before the policy's first update, where engines and learner disagree on those tokens.
        """
        started = time.perf_counter()
        trajectories = [trajectory for group in groups for trajectory in group]
        counts = {
            "trained_tokens": float(sum(map(sampled_tokens, trajectories))),
            "trained_sequence_tokens": float(sum(len(trajectory.tokens) for trajectory in trajectories)),
            "parameters": float(self.policy.parameters),
            "skipped_updates": 0.0,
        }
        if not trajectories:
            return counts
        behaviour = [torch.from_numpy(item.logprobs[np.flatnonzero(item.loss_mask)]) for item in trajectories]
        lengths = [sampled_tokens(item) for item in trajectories]
        frozen = version < self._frozen_steps
        proximal_logprobs: list[torch.Tensor] | None = None
        if frozen or self._algorithm.advantage == "vtrace":
            proximal_logprobs = self._passes.evaluate(self.policy.token_logprobs, trajectories)
        updates: dict[str, float] = {}
        if frozen:
            assert proximal_logprobs is not None
            updates |= self._engine_check.measure(trajectories, dict(enumerate(proximal_logprobs)), same)
        values = self._passes.evaluate(self._critic.values, trajectories) if self._critic else None
        advantages, returns = batch_advantages(
            self._algorithm,
            torch.tensor([trajectory.reward for trajectory in trajectories], dtype=torch.float64),
            torch.tensor([trajectory.group for trajectory in trajectories]),
            values,
            [log_ratio(*pair) for pair in zip(proximal_logprobs, behaviour, strict=True)]
            if proximal_logprobs
            else None,
            lengths,
        )
        if values is not None and returns is not None:
            updates |= self._train_critic(trajectories, values, returns, version)
        if not frozen:
            policy_updates, proximal_logprobs = self._train_policy(
                trajectories, advantages, proximal_logprobs, version, same
            )
            updates |= policy_updates
        assert proximal_logprobs is not None
        if watcher is not None:
            each = zip(advantages, proximal_logprobs, behaviour, strict=True)
            watcher([TokenOutcome(own.reshape(-1).numpy(), log_ratio(now, then).numpy()) for own, now, then in each])
        seconds = time.perf_counter() - started
        flat = torch.cat([own.expand(length) for own, length in zip(advantages, lengths, strict=True)])
        return (
            counts
            | updates
            | self._correction_metrics(proximal_logprobs, behaviour)
            | {
                "advantage_mean": flat.mean().item(),
                "advantage_std": flat.std(correction=0).item(),
                "train_seconds": seconds,
                "train_tokens_per_s": counts["trained_tokens"] / seconds,
            }
        )

    def save(self, folder: Path) -> None:
        """Writes everything that training continues from."""
        self.policy.save(folder)
        if self._critic is not None:
            self._critic.save(folder)

    def load(self, folder: Path) -> None:
        """Continues from what `save` wrote. Raises FileNotFoundError where a part is missing."""
        self.policy.load(folder)
        if self._critic is not None:
            self._critic.load(folder)

    def load_and_compare(self, folder: Path) -> dict[str, bool]:
        """Continues from what `save` wrote; returns of each part of the optimisers' state whether it was the same before.

        Parts are named as in `TrainingEngine.state_digests`, `policy master` for one, and compared bit for bit on all ranks.
        Before the first optimiser step there are none.
        """
        before = self._state_digests()
        self.load(folder)
        after = self._state_digests()
        names = before.keys() | after.keys()
        differing = Ranks().total({name: float(before.get(name) != after.get(name)) for name in names})
        return {name: ranks == 0 for name, ranks in sorted(differing.items())}

    def _state_digests(self) -> dict[str, str]:
        models = {"policy": self.policy, "critic": self._critic}
        return {
            f"{model} {name}": digest
            for model, engine in models.items()
            if engine is not None
            for name, digest in engine.state_digests().items()
        }

    def close(self) -> None:
        """Frees the engines, and the process group if this trainer made it."""
        if self._critic is not None:
            self._critic.close()
        self.policy.close()
        if self._owns_process_group:
            leave_process_group()

    def _train_critic(
        self,
        trajectories: Sequence[Trajectory],
        values: Sequence[torch.Tensor],
        returns: Sequence[torch.Tensor],
        version: int,
    ) -> dict[str, float]:
        """Makes the critic's updates on one batch; returns what they did."""
        assert self._critic is not None
        parts = split(len(trajectories), self._critic_config.minibatches, f"critic {self._seed} {version}")
        minibatches = [self._passes.minibatch(trajectories, members, values) for members in parts]
        updates = [self._update_critic(self._critic, minibatch, values, returns) for minibatch in minibatches]
        before, target = torch.cat(list(values)), torch.cat(list(returns))
        variance = target.var(correction=0).item()
        return {
            **_outcome("critic_", updates, minibatches, version),
            "value_clip_fraction": sum(sums["value_clip_fraction"] for _, sums in updates) / len(before),
            "value_mean": before.mean().item(),
            # 1: the values were the returns; 0: no better than their mean. Without variance there is nothing to explain.
            **(
                {"value_explained_variance": 1.0 - (target - before).var(correction=0).item() / variance}
                if variance
                else {}
            ),
        }

    def _update_critic(
        self,
        critic: Critic,
        minibatch: Minibatch,
        values: Sequence[torch.Tensor],
        returns: Sequence[torch.Tensor],
    ) -> Update:
        """Makes one optimiser step on the critic."""

        def objective(micro: MicroBatch, now: torch.Tensor) -> tuple[torch.Tensor, dict[str, float]]:
            old, target = (minibatch.gather(each, micro).to(now.device) for each in (values, returns))
            loss, metrics = value_loss(now, old, target, self._critic_config.value_clip)
            return loss, {name: share * len(now) for name, share in metrics.items()}

        names = ("value_clip_fraction",)
        _, sums = self._passes.accumulate(critic.values, critic.backward, minibatch, objective, names)
        return critic.optimizer_step(), sums

    def _train_policy(
        self,
        trajectories: Sequence[Trajectory],
        advantages: Sequence[torch.Tensor],
        proximal_logprobs: Sequence[torch.Tensor] | None,
        version: int,
        same: frozenset[WeightVersion],
    ) -> tuple[dict[str, float], list[torch.Tensor]]:
        """Makes the policy's updates on one batch.

        Args:
            proximal_logprobs: log pi_prox, [n_i] for each trajectory, where a pass of the batch has been made already.

        Returns:
            What the updates did; and log pi_prox, [n_i] for each trajectory.
        """
        parts = split(len(trajectories), self._algorithm.minibatches, f"minibatches {self._seed} {version}")
        minibatches = [self._passes.minibatch(trajectories, members, advantages) for members in parts]
        # The first minibatch's update begins with the proximal policy itself; only those after it need a pass of their own,
        # before any update is made.
        decoupled = self._algorithm.loss == "decoupled_ppo"
        proximal = dict(enumerate(proximal_logprobs or ()))
        if decoupled and not proximal:
            for minibatch in minibatches[1:]:
                proximal |= self._passes.evaluate_minibatch(self.policy.token_logprobs, minibatch)
        updates: list[Update] = []
        gap: dict[str, float] = {}
        for position, minibatch in enumerate(minibatches):
            sums, before = self._accumulate_policy(minibatch, proximal if decoupled and position > 0 else None)
            proximal |= before
            if position == 0:
                gap = self._engine_check.measure(trajectories, proximal, same)
            updates.append((self.policy.optimizer_step(), sums))
        tokens = sum(minibatch.tokens for minibatch in minibatches)
        shares = ("clip_fraction", "reference_kl") if self._reference else ("clip_fraction",)
        metrics = (
            gap
            | _outcome("", updates, minibatches, version)
            | {name: sum(sums[name] for _, sums in updates) / tokens for name in shares}
        )
        return metrics, [proximal[index] for index in range(len(trajectories))]

    def _accumulate_policy(
        self, minibatch: Minibatch, proximal: Mapping[int, torch.Tensor] | None
    ) -> tuple[dict[str, float], dict[int, torch.Tensor]]:
        """Adds a minibatch's gradient to what the policy's next step applies.

        Args:
            proximal: log pi_prox, [n_i] under a trajectory's index; None where it is the policy before this very step.

        Returns:
            The minibatch's sums over sampled tokens; and each trajectory's log-probabilities, [n_i] under the index, where
            `proximal` is None (collecting them costs an exchange between ranks).
        """
        device = self.policy.device
        lengths = torch.cat([torch.bincount(micro.sequences) for micro in minibatch.micros])
        order = torch.cat([micro.members for micro in minibatch.micros])
        scales = torch.empty(len(order)).index_copy_(0, order, length_scale(self._algorithm, lengths)).to(device)

        def objective(micro: MicroBatch, now: torch.Tensor) -> tuple[torch.Tensor, dict[str, float]]:
            return policy_objective(
                self._algorithm,
                now,
                proximal_logprobs=now.detach() if proximal is None else minibatch.gather(proximal, micro).to(device),
                behaviour_logprobs=micro.behaviour_logprobs,
                reference_logprobs=self._reference.token_logprobs(micro) if self._reference else None,
                advantages=micro.advantages,
                scale=scales[micro.members][micro.sequences],
                sequences=micro.sequences,
            )

        names = ("clip_fraction", "reference_kl")
        outputs, sums = self._passes.accumulate(
            self.policy.token_logprobs, self.policy.backward, minibatch, objective, names
        )
        return sums, self._passes.collect(outputs, minibatch) if proximal is None else {}

    def _correction_metrics(
        self, proximal_logprobs: list[torch.Tensor], behaviour: list[torch.Tensor]
    ) -> dict[str, float]:
        """Returns how far the proximal policy is from the one that sampled the batch, over tokens and over trajectories."""
        flat, behaviour_flat = torch.cat(proximal_logprobs), torch.cat(behaviour)
        _, metrics = importance_weights(flat, behaviour_flat, self._algorithm.weight_cap)
        lengths = torch.tensor([len(each) for each in proximal_logprobs])
        sequences = torch.arange(len(lengths)).repeat_interleave(lengths)
        ratios = sequence_ratios(flat, behaviour_flat, sequences)
        kept = in_band(ratios, self._algorithm.sequence_band)
        return metrics | {
            "sequence_ratio_min": ratios.min().item(),
            "sequence_ratio_max": ratios.max().item(),
            "sequence_masked": 1.0 - kept.float().mean().item(),
        }


def _outcome(
    prefix: str, updates: Sequence[Update], minibatches: Sequence[Minibatch], version: int
) -> dict[str, float]:
    """Returns what the updates of one model did.

    Loss and gradient's norm are means over those that were applied, if any was.
    """
    values = {
        f"{prefix}learning_rate": updates[-1][0].learning_rate,
        f"{prefix}skipped_updates": float(sum(not result.applied for result, _ in updates)),
    }
    applied = [
        (sums["loss"] / minibatch.tokens, result.grad_norm)
        for (result, sums), minibatch in zip(updates, minibatches, strict=True)
        if result.applied
    ]
    if applied:
        values[f"{prefix}loss"] = fmean(loss for loss, _ in applied)
        values[f"{prefix}grad_norm"] = fmean(norm for _, norm in applied)
    if len(applied) < len(updates):
        log.warning("updates left out: gradients are not finite", version=version, model=prefix.strip("_") or "policy")
    return values

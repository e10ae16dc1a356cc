"""Packs trajectories into padded micro-batches under a token budget.

Sequences are padded on the right. Under causal attention no real token sees what follows it, so padding needs no attention
mask and changes no result. A sequence is cut after the position that predicts its last sampled token: later positions would
only cost time.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Self

import numpy as np
import torch

from bus.messages import Trajectory

PADDING_ID = 0
"""Any valid token id does: nothing reads what is computed there."""


@dataclass(frozen=True)
class MicroBatch:
    """S sequences of at most L tokens, and their N sampled tokens, flat, in order of sequence and position."""

    input_ids: torch.Tensor
    """int64 [S, L], padded on the right."""
    index: torch.Tensor
    """int64 [N], into the flattened S * L positions: where the sampled token is predicted, one before its own place."""
    targets: torch.Tensor
    """int64 [N], ids of the sampled tokens."""
    behaviour_logprobs: torch.Tensor
    """float32 [N]."""
    advantages: torch.Tensor
    """float32 [N]."""
    temperatures: torch.Tensor
    """float32 [N]."""
    members: torch.Tensor
    """int64 [S], the place of each sequence's trajectory among those that were packed."""

    @property
    def sequences(self) -> torch.Tensor:
        """Returns int64 [N] in [0, S): the sequence of each sampled token."""
        return self.index // self.input_ids.shape[1]

    def to(self, device: torch.device) -> Self:
        """Returns the micro-batch on `device`."""
        return type(self)(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})


def sampled_tokens(trajectory: Trajectory) -> int:
    """Returns the number of a trajectory's tokens that the model sampled: the ones that are trained on."""
    return int(trajectory.loss_mask.sum())


def micro_batches(
    trajectories: Sequence[Trajectory], advantages: torch.Tensor | Sequence[torch.Tensor], budget: int
) -> list[MicroBatch]:
    """Packs trajectories, longest first, into micro-batches of at most `budget` tokens, padding included.

    Neighbours in length share a micro-batch, which keeps padding small; the longest come first, so memory that will
    not suffice fails at once. A sequence longer than the budget is a micro-batch of its own.

    Args:
        trajectories: B of them.
        advantages: for each trajectory its own (a scalar), or one for each of its sampled tokens.
        budget: tokens, S * L at most.
    """
    lengths = [trajectory.prompt_length + int(np.flatnonzero(trajectory.loss_mask)[-1]) for trajectory in trajectories]
    order = sorted(range(len(trajectories)), key=lambda i: -lengths[i])
    packed: list[list[int]] = []
    for i in order:
        if packed and (len(packed[-1]) + 1) * lengths[packed[-1][0]] <= budget:
            packed[-1].append(i)
        else:
            packed.append([i])
    return [
        _pad([trajectories[i] for i in members], [advantages[i] for i in members], members, lengths[members[0]])
        for members in packed
    ]


def _pad(trajectories: list[Trajectory], advantages: list[torch.Tensor], members: list[int], length: int) -> MicroBatch:
    input_ids = np.full((len(trajectories), length), PADDING_ID, dtype=np.int64)
    index, targets, logprobs = [], [], []
    for row, trajectory in enumerate(trajectories):
        used = trajectory.tokens[:length]
        input_ids[row, : len(used)] = used
        sampled = np.flatnonzero(trajectory.loss_mask)
        index.append(row * length + trajectory.prompt_length + sampled - 1)
        targets.append(trajectory.tokens[trajectory.prompt_length + sampled].astype(np.int64))
        logprobs.append(trajectory.logprobs[sampled])
    counts = torch.tensor([len(part) for part in index])
    temperatures = torch.tensor([trajectory.temperature for trajectory in trajectories], dtype=torch.float32)
    return MicroBatch(
        input_ids=torch.from_numpy(input_ids),
        index=torch.from_numpy(np.concatenate(index)),
        targets=torch.from_numpy(np.concatenate(targets)),
        behaviour_logprobs=torch.from_numpy(np.concatenate(logprobs)),
        advantages=torch.cat([own.float().expand(len(part)) for own, part in zip(advantages, index, strict=True)]),
        temperatures=temperatures.repeat_interleave(counts),
        members=torch.tensor(members),
    )

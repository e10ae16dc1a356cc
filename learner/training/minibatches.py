"""Minibatches: how per-trajectory tensors get into the micro-batches of an update, and back out.

What a step knows of its batch of B trajectories is held as one tensor for each trajectory i, [n_i] for its n_i sampled
tokens. A minibatch is some of those trajectories, packed into micro-batches in another order.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from learner.training.batches import MicroBatch


@dataclass(frozen=True)
class Minibatch:
    """Trajectories that share an update."""

    trajectories: tuple[int, ...]
    """Their indices in the batch."""
    micros: tuple[MicroBatch, ...]
    """Those of all ranks. Their `members` are indices into `trajectories`."""
    mine: tuple[MicroBatch, ...]
    """This rank's share of them, see `Ranks.share`."""

    @property
    def tokens(self) -> int:
        """Returns the number of sampled tokens of the whole minibatch."""
        return sum(len(micro.targets) for micro in self.micros)

    def gather(self, of_batch: Mapping[int, torch.Tensor] | Sequence[torch.Tensor], micro: MicroBatch) -> torch.Tensor:
        """Returns [N]: what the sampled tokens of one micro-batch have in `of_batch`, [n_i] under a trajectory's index."""
        return torch.cat([of_batch[self.trajectories[member]] for member in micro.members.tolist()])

    def scatter(self, outputs: Sequence[torch.Tensor]) -> dict[int, torch.Tensor]:
        """Returns what came of each trajectory's sampled tokens, [n_i] under its index.

        `outputs` is what came of each of `micros`, [N].
        """
        of_batch = {}
        for micro, output in zip(self.micros, outputs, strict=True):
            counts = torch.bincount(micro.sequences, minlength=len(micro.members)).tolist()
            for member, part in zip(micro.members.tolist(), output.split(counts), strict=True):
                of_batch[self.trajectories[member]] = part
        return of_batch


def split(count: int, parts: int, seed: str) -> list[list[int]]:
    """Splits the indices 0 ... count - 1 at random into `parts`, fewer if there are fewer indices; a function of `seed`.

    Sizes differ by one at most, none is empty.
    """
    order = list(range(count))
    random.Random(seed).shuffle(order)
    parts = min(parts, count)
    return [order[part::parts] for part in range(parts)]

"""Passes of a batch through a model on all ranks.

Every rank holds the whole batch and passes its share of the micro-batches; what came of a trajectory's tokens is then known
on every rank, and sums are over all of them. So the number of ranks changes neither what a step computes nor, beyond
rounding, its result. Every rank makes the same calls in the same order.
"""

from collections.abc import Callable, Sequence

import torch

from bus.messages import Trajectory
from learner.training.batches import MicroBatch, micro_batches
from learner.training.minibatches import Minibatch
from learner.training.ranks import Ranks

Forward = Callable[[MicroBatch], torch.Tensor]
"""What a model makes of each sampled token, [N] float32, with gradient where gradients are recorded."""
Objective = Callable[[MicroBatch, torch.Tensor], tuple[torch.Tensor, dict[str, float]]]
"""Takes a micro-batch and the model's output; returns the loss, summed over its N > 0 sampled tokens, and other sums."""


class Passes:
    """The ranks' passes, with micro-batches of at most `budget` tokens, on `device`."""

    def __init__(self, ranks: Ranks, budget: int, device: torch.device) -> None:
        self._ranks = ranks
        self._budget = budget
        self._device = device

    def minibatch(
        self, trajectories: Sequence[Trajectory], members: Sequence[int], advantages: Sequence[torch.Tensor]
    ) -> Minibatch:
        """Packs the trajectories of the batch whose indices are `members`; `advantages` has the whole batch's."""
        micros = micro_batches(
            [trajectories[member] for member in members], [advantages[member] for member in members], self._budget
        )
        return Minibatch(tuple(members), tuple(micros), tuple(self._ranks.share(micros)))

    def evaluate(self, forward: Forward, trajectories: Sequence[Trajectory]) -> list[torch.Tensor]:
        """Returns what `forward` makes, without gradient, of each trajectory's sampled tokens: [n_i] float32 on the CPU."""
        everything = self.minibatch(trajectories, range(len(trajectories)), torch.zeros(len(trajectories)).unbind())
        of_batch = self.evaluate_minibatch(forward, everything)
        return [of_batch[index] for index in range(len(trajectories))]

    def evaluate_minibatch(self, forward: Forward, minibatch: Minibatch) -> dict[int, torch.Tensor]:
        """Returns the same for a minibatch's trajectories, by their index in the batch."""
        with torch.no_grad():
            outputs = [forward(micro) for micro in minibatch.mine]
        return self.collect(outputs, minibatch)

    def collect(self, outputs: Sequence[torch.Tensor], minibatch: Minibatch) -> dict[int, torch.Tensor]:
        """Brings together what each rank made of its micro-batches' sampled tokens, [N] each; see `Minibatch.scatter`."""
        return minibatch.scatter(self._ranks.collect(outputs))

    def accumulate(
        self,
        forward: Forward,
        backward: Callable[[torch.Tensor], None],
        minibatch: Minibatch,
        objective: Objective,
        names: Sequence[str],
    ) -> tuple[list[torch.Tensor], dict[str, float]]:
        """Adds the gradient of the mean of `objective` over a minibatch's sampled tokens to what the next step applies.

        Args:
            names: of the sums that `objective` gives beside the loss.

        Returns:
            What the model made of each of this rank's micro-batches, detached; and the sums over the whole minibatch's
            tokens, `loss` included.
        """
        sums = dict.fromkeys(("loss", *names), 0.0)
        outputs: list[torch.Tensor] = []
        for on_host in minibatch.mine:
            micro = on_host.to(self._device)
            output = forward(micro)
            outputs.append(output.detach())
            if not len(output):
                # It only fills this rank's share up: nothing to learn from, but the other ranks' passes wait for this one's.
                backward(output.sum())
                continue
            loss, others = objective(micro, output)
            backward(loss / minibatch.tokens)
            for name, value in (others | {"loss": loss.item()}).items():
                sums[name] += value
        return outputs, self._ranks.total(sums)

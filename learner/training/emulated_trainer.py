"""A trainer that computes nothing: each step adds one to a single small tensor.

It stands where DeepSpeed's does, for tests of load and faults; ledger, batches, checkpoints, weight log and archive are the
real ones. Its weights after n steps are the same in every run, so a resumed learner reproduces what the log holds.
"""

import json
from pathlib import Path

import torch

from bus.messages import Trajectory, WeightVersion
from learner.training.trainer import Watcher
from weights.codec import Layout

SIZE = 1024
COUNTER = "counter.json"


class EmulatedTrainer:
    """Counts its steps, as a `Trainer` of one rank."""

    ranks = 1
    compute_dtype = "float32"

    def __init__(self, model: Path) -> None:
        self.vocabulary: int = json.loads((model / "config.json").read_text())["vocab_size"]
        self._steps = 0

    def train(
        self,
        groups: list[list[Trajectory]],
        version: int,
        same: frozenset[WeightVersion] = frozenset(),
        watcher: Watcher | None = None,
    ) -> dict[str, float]:
        """Counts the step, which makes nothing of any token."""
        self._steps = version + 1
        return {"skipped_updates": 0.0}

    def save(self, folder: Path) -> None:
        """Writes the counter."""
        (folder / COUNTER).write_text(json.dumps({"steps": self._steps}))

    def load(self, folder: Path) -> None:
        """Takes over what `save` wrote."""
        self._steps = json.loads((folder / COUNTER).read_text())["steps"]

    def load_and_compare(self, folder: Path) -> dict[str, bool]:
        """Takes over what `save` wrote; returns whether the counter was the same before."""
        before = self._steps
        self.load(folder)
        return {"emulated counter": self._steps == before}

    def export(self, folder: Path) -> None:
        """Writes the counter where a model would be."""
        folder.mkdir(parents=True, exist_ok=True)
        self.save(folder)

    def copy_weights(self, image: torch.Tensor) -> None:
        """Fills the one tensor, [SIZE] float32, as `weight_layout` has it."""
        image.view(torch.float32).fill_(self._steps)

    def weight_layout(self) -> Layout:
        """Returns the layout of the one tensor."""
        return Layout.of([("counter", "float32", (SIZE,), 4 * SIZE)])

    def close(self) -> None:
        """Does nothing: there is nothing to free."""

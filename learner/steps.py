"""Training without a bus: the ledger of tickets and the trainer, one batch after another.

The live learner and replay both use this, so they do the same: a step follows from the checkpoint and from the results in
their order alone.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from configs.errors import UserError
from configs.schema import RunConfig
from learner.checkpoints import CheckpointError
from learner.tickets.archive import Archive
from learner.tickets.filters import Filters
from learner.tickets.ledger import Batch, Ledger

if TYPE_CHECKING:
    from learner.training.trainer import Trainer


class UnstableError(UserError):
    """Too many updates were not finite; the text says where the last batch lies and what to do."""


class Steps:
    """Says where training stands, apart from the weights."""

    def __init__(self, config: RunConfig, trainer: "Trainer", folder: Path) -> None:
        """`folder` takes the batch on which training had to stop."""
        settings = config.learner
        self.ledger = Ledger(
            settings.batch_groups,
            settings.group_size,
            settings.max_staleness,
            settings.steps,
            Filters(settings.filters, settings.algorithm.group_relative),
        )
        self._trainer = trainer
        self._folder = folder
        self._limit = settings.max_skipped_updates
        self._skipped = 0

    def train(self, batch: Batch) -> dict[str, float]:
        """Trains on one batch; returns the trainer's metrics.

        Raises EngineGapError where engines and learner disagree, and UnstableError once `learner.max_skipped_updates`
        updates of policy and critic had to be left out, without a step in between that needed none to be.
        """
        trained = self._trainer.train([list(group) for group in batch.trained], batch.version)
        skipped = int(trained["skipped_updates"] + trained.get("critic_skipped_updates", 0))
        self._skipped = self._skipped + skipped if skipped else 0
        if self._skipped >= self._limit:
            folder = self._folder / "not-finite"
            archive = Archive(folder)
            archive.cut(0)
            for sequence, result in enumerate((result for group in batch.trained for result in group), start=1):
                archive.append(batch.version, sequence, result)
            archive.sync()
            raise UnstableError(
                f"{self._skipped} updates up to step {batch.step} were not finite and left out: the weights are those "
                f"of the last good one, the batch is in {folder} (`learner.tickets.archive.read_archive`), and `zerotir "
                "replay` comes to the same point; try a smaller learner.optimizer.lr"
            )
        return trained

    def state(self) -> dict[str, Any]:
        """Returns everything that a checkpoint must hold beside the trainer's part, as msgpack takes it."""
        return {
            "ledger": self.ledger.state(),
            "skipped": self._skipped,
            "ranks": self._trainer.ranks,
            # A replay takes the same, to come to the same sums.
            "threads": torch.get_num_threads(),
            "compute_dtype": self._trainer.compute_dtype,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Takes over what `state` returned.

        Raises CheckpointError where another number of ranks wrote it, MessageError where a stored result is damaged.
        """
        if state["ranks"] != self._trainer.ranks:
            raise CheckpointError(
                f"the checkpoint was written by {state['ranks']} ranks, this learner has {self._trainer.ranks}: "
                "start as many"
            )
        self.ledger.restore(state["ledger"])
        self._skipped = state["skipped"]

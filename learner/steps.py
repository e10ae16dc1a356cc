"""Training without a bus: the ledger of tickets and the trainer, one batch after another.

The live learner and replay both use this, so they do the same: a step follows from the checkpoint and from the results in
their order alone.
"""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import structlog
import torch

from bus.messages import Failure, WeightVersion
from configs.errors import UserError
from configs.schema import RunConfig
from learner.checkpoints import CheckpointError
from learner.tickets.archive import Archive
from learner.tickets.filters import UNTRAINED_STEPS, may_be_chance, why_untrained
from learner.tickets.ledger import Batch, Ledger
from learner.tickets.token_values import TokenValues, write_values

if TYPE_CHECKING:
    from learner.training.trainer import TokenOutcome, Trainer


log = structlog.get_logger()

LARGEST = float(np.finfo(np.float16).max)


class UnstableError(UserError):
    """Too many updates were not finite; the text says where the last batch lies and what to do."""


class UntrainedError(UserError):
    """Step after step had nothing to train on; the text says why, and what to do."""


class Steps:
    """Says where training stands, apart from the weights."""

    def __init__(self, config: RunConfig, trainer: "Trainer", folder: Path, tokens: Path | None = None) -> None:
        """`folder` takes the batch on which training had to stop, `tokens` what each step made of its tokens."""
        self.ledger = Ledger.of(config.learner)
        self._trainer = trainer
        self._folder = folder
        self._tokens = tokens
        self._limit = config.learner.max_skipped_updates
        self._skipped = 0
        self._untrained: list[dict[str, int]] = []
        """Why results were not trained on, in each of the latest steps that could train on none."""

    def train(self, batch: Batch, same: frozenset[WeightVersion] = frozenset()) -> dict[str, float]:
        """Trains on one batch; returns the trainer's metrics.

        `same`: the versions that are the weights that the step trains from; engines are held against the learner on their
        tokens. A replay has none: with another configuration it soon has other weights than the engines had.

        Raises EngineGapError where engines and learner disagree, UnstableError once `learner.max_skipped_updates` updates
        of policy and critic had to be left out, without a step in between that needed none to be, and UntrainedError after
        `UNTRAINED_STEPS` steps in a row, or a whole run, in which nothing could be trained on.
        """
        self._require_trained(batch)
        watcher = None
        if self._tokens is not None:
            watcher = partial(self._write_values, self._tokens, batch)
            if not batch.trained:
                # An earlier training of this step may have had something to train on.
                self._write_values(self._tokens, batch, ())
        trained = self._trainer.train([list(group) for group in batch.trained], batch.version, same, watcher)
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

    def _write_values(self, folder: Path, batch: Batch, outcomes: Sequence["TokenOutcome"]) -> None:
        """Writes what a step made of its tokens, for people: that they cannot look at it is no reason to stop."""
        members = (member for group in batch.trained for member in group)
        values = (
            TokenValues(
                ticket=member.ticket,
                published_at=member.published_at,
                advantages=outcome.advantages.clip(-LARGEST, LARGEST).astype("<f2"),
                log_ratios=outcome.log_ratios.astype("<f2"),
            )
            for member, outcome in zip(members, outcomes, strict=True)
        )
        try:
            write_values(folder, batch.step, values)
        except OSError as error:
            log.warning("what the step made of its tokens is not kept", step=batch.step, error=str(error))

    def _require_trained(self, batch: Batch) -> None:
        """Counts steps that had nothing to train on, and raises UntrainedError; warns where it may be chance."""
        if batch.trained:
            self._untrained.clear()
            return
        reasons = Counter({reason: len(members) for reason, members in batch.filtered.items()})
        reasons.update(result.reason for group in batch.taken for result in group if isinstance(result, Failure))
        if may_be_chance(reasons):
            log.warning(f"nothing to train on: {why_untrained(reasons)}", step=batch.step)
            self._untrained.clear()
            return
        self._untrained.append(dict(reasons))
        steps = len(self._untrained)
        if steps >= UNTRAINED_STEPS or (self.ledger.trained == 0 and batch.step == self.ledger.steps):
            counts = Counter[str]()
            for each in self._untrained:
                counts.update(each)
            raise UntrainedError(
                f"the last {steps} steps up to step {batch.step} had nothing to train on: of their tickets' results "
                f"{why_untrained(counts)}"
            )

    def state(self) -> dict[str, Any]:
        """Returns everything that a checkpoint must hold beside the trainer's part, as msgpack takes it."""
        return {
            "ledger": self.ledger.state(),
            "skipped": self._skipped,
            "untrained": self._untrained,
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
                "start as many (`--ranks`, and `launch.learner_ranks` under `zerotir up`)"
            )
        self.ledger.restore(state["ledger"])
        self._skipped = state["skipped"]
        self._untrained = list(state["untrained"])

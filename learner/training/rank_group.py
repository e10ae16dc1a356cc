"""All ranks as one trainer: rank 0 gives commands, the others carry them out with it.

    rank 0   learner loop ─▶ command ─▶ train, save, load ...          ─▶ command ...
    others                   wait    ─▶ the same call, its own trainer ─▶ wait ...

A command is a message, broadcast as bytes. While rank 0 has none (it waits for results) it says so every `WAIT_S`
seconds, so that no wait for a command reaches the process group's bound unless rank 0 is gone. With one rank there are
no commands.
"""

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import structlog
import torch

from bus.codec import Message, decode, encode
from bus.messages import Trajectory, WeightVersion
from learner.training.engine_gap import EngineGapError
from learner.training.rank_trainer import RankTrainer
from learner.training.ranks import Ranks
from learner.training.trainer import Watcher
from weights.codec import Layout

log = structlog.get_logger()

WAIT_S = 60.0


class Command(Message):
    """Says what every rank does next."""

    what: Literal["wait", "train", "save", "load", "compare", "weights", "stop"]
    version: int = 0
    groups: tuple[tuple[bytes, ...], ...] = ()
    """Packed trajectories of the batch to train on."""
    same: tuple[WeightVersion, ...] = ()
    """Names of that version on the weight log."""
    folder: str = ""
    """The folder to save to, load from or compare with; all ranks must reach it."""


class RankGroup:
    """Rank 0's side, a `Trainer`: all ranks carry out each method together. One at a time, from any thread."""

    def __init__(self, trainer: RankTrainer) -> None:
        self._trainer = trainer
        self._ranks = Ranks()
        self._busy = threading.Lock()
        self._closed = threading.Event()
        if self._ranks.count > 1:
            threading.Thread(target=self._keep_waiting, name="commands", daemon=True).start()

    @property
    def ranks(self) -> int:
        """See `Trainer.ranks`."""
        return self._ranks.count

    @property
    def compute_dtype(self) -> str:
        """See `Trainer.compute_dtype`."""
        return self._trainer.compute_dtype

    @property
    def vocabulary(self) -> int:
        """See `Trainer.vocabulary`."""
        return self._trainer.policy.vocabulary

    def train(
        self,
        groups: list[list[Trajectory]],
        version: int,
        same: frozenset[WeightVersion] = frozenset(),
        watcher: Watcher | None = None,
    ) -> dict[str, float]:
        """See `Trainer.train`."""
        with self._command("train", version=version, groups=groups, same=same):
            return self._trainer.train(groups, version, same, watcher)

    def save(self, folder: Path) -> None:
        """See `Trainer.save`."""
        with self._command("save", folder=folder):
            self._trainer.save(folder)

    def load(self, folder: Path) -> None:
        """See `Trainer.load`."""
        with self._command("load", folder=folder):
            self._trainer.load(folder)

    def load_and_compare(self, folder: Path) -> dict[str, bool]:
        """See `Trainer.load_and_compare`."""
        with self._command("compare", folder=folder):
            return self._trainer.load_and_compare(folder)

    def export(self, folder: Path) -> None:
        """See `Trainer.export`."""
        with self._command("weights"):
            self._trainer.policy.export(folder)

    def copy_weights(self, image: torch.Tensor) -> None:
        """See `Trainer.copy_weights`."""
        with self._command("weights"):
            self._trainer.policy.copy_weights(image)

    def weight_layout(self) -> Layout:
        """See `Trainer.weight_layout`."""
        return self._trainer.policy.weight_layout()

    def close(self) -> None:
        """See `Trainer.close`."""
        self._closed.set()
        with self._command("stop"):
            self._trainer.close()

    @contextlib.contextmanager
    def _command(
        self,
        what: Literal["train", "save", "load", "compare", "weights", "stop"],
        version: int = 0,
        groups: list[list[Trajectory]] | None = None,
        folder: Path = Path(),
        same: frozenset[WeightVersion] = frozenset(),
    ) -> Iterator[None]:
        with self._busy:
            if self._ranks.count > 1:
                packed = tuple(tuple(encode(trajectory) for trajectory in group) for group in groups or ())
                command = Command(
                    what=what, version=version, groups=packed, folder=str(folder.resolve()), same=tuple(same)
                )
                self._ranks.broadcast(encode(command))
            yield

    def _keep_waiting(self) -> None:
        command = encode(Command(what="wait"))
        while not self._closed.wait(WAIT_S):
            if self._busy.acquire(blocking=False):
                try:
                    if not self._closed.is_set():
                        self._ranks.broadcast(command)
                finally:
                    self._busy.release()


def serve_rank(trainer: RankTrainer) -> None:
    """Carries out rank 0's commands until it says stop. Raises RuntimeError where rank 0 is gone."""
    ranks = Ranks()
    while True:
        command = decode(ranks.broadcast(), Command)
        folder = Path(command.folder)
        match command.what:
            case "train":
                groups = [[decode(data, Trajectory) for data in group] for group in command.groups]
                # Every rank finds the same; rank 0 says what comes next.
                with contextlib.suppress(EngineGapError):
                    trainer.train(groups, command.version, frozenset(command.same))
            case "save":
                trainer.save(folder)
            case "load":
                trainer.load(folder)
            case "compare":
                trainer.load_and_compare(folder)
            case "weights":
                trainer.policy.copy_weights(None)
            case "stop":
                trainer.close()
                return

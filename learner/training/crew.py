"""All ranks as one trainer: rank 0 leads, the others do what it orders.

    rank 0   learner loop ─▶ order ─▶ train, save, load ...          ─▶ order ...
    others                   wait  ─▶ the same call, its own trainer ─▶ wait ...

An order is a message, broadcast as bytes. While rank 0 has none (it waits for results) it says so every `WAIT_S` seconds, so
that no wait for an order reaches the process group's bound unless rank 0 is gone. With one rank there are no orders.
"""

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import structlog
import torch

from bus.codec import Message, decode, encode
from bus.messages import Trajectory
from learner.training.ranks import Ranks
from learner.training.trainer import Trainer
from weights.codec import Layout

log = structlog.get_logger()

WAIT_S = 60.0


class Order(Message):
    """What every rank does next."""

    what: Literal["wait", "train", "save", "load", "compare", "weights", "stop"]
    version: int = 0
    groups: tuple[tuple[bytes, ...], ...] = ()
    """Packed trajectories of the batch to train on."""
    folder: str = ""
    """To save to, load from or compare with; all ranks must reach it."""


class Crew:
    """Rank 0's side: each method is carried out by all ranks together. One at a time, from any thread."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._ranks = Ranks()
        self._busy = threading.Lock()
        self._closed = threading.Event()
        if self._ranks.count > 1:
            threading.Thread(target=self._keep_waiting, name="orders", daemon=True).start()

    @property
    def ranks(self) -> int:
        """How many there are."""
        return self._ranks.count

    @property
    def compute_dtype(self) -> str:
        """See `Trainer.compute_dtype`."""
        return self._trainer.compute_dtype

    @property
    def vocabulary(self) -> int:
        """See `Policy.vocabulary`."""
        return self._trainer.policy.vocabulary

    def train(self, groups: list[list[Trajectory]], version: int) -> dict[str, float]:
        """See `Trainer.train`."""
        with self._order("train", version=version, groups=groups):
            return self._trainer.train(groups, version)

    def save(self, folder: Path) -> None:
        """See `Trainer.save`."""
        with self._order("save", folder=folder):
            self._trainer.save(folder)

    def load(self, folder: Path) -> None:
        """See `Trainer.load`."""
        with self._order("load", folder=folder):
            self._trainer.load(folder)

    def load_and_compare(self, folder: Path) -> dict[str, bool]:
        """See `Trainer.load_and_compare`."""
        with self._order("compare", folder=folder):
            return self._trainer.load_and_compare(folder)

    def export(self, folder: Path) -> None:
        """See `Policy.export`."""
        with self._order("weights"):
            self._trainer.policy.export(folder)

    def copy_weights(self, image: torch.Tensor) -> None:
        """See `Policy.copy_weights`."""
        with self._order("weights"):
            self._trainer.policy.copy_weights(image)

    def weight_layout(self) -> Layout:
        """See `Policy.weight_layout`."""
        return self._trainer.policy.weight_layout()

    def close(self) -> None:
        """Ends the other ranks and frees the engines."""
        self._closed.set()
        with self._order("stop"):
            self._trainer.close()

    @contextlib.contextmanager
    def _order(
        self,
        what: Literal["train", "save", "load", "compare", "weights", "stop"],
        version: int = 0,
        groups: list[list[Trajectory]] | None = None,
        folder: Path = Path(),
    ) -> Iterator[None]:
        with self._busy:
            if self._ranks.count > 1:
                packed = tuple(tuple(encode(trajectory) for trajectory in group) for group in groups or ())
                order = Order(what=what, version=version, groups=packed, folder=str(folder.resolve()))
                self._ranks.broadcast(encode(order))
            yield

    def _keep_waiting(self) -> None:
        order = encode(Order(what="wait"))
        while not self._closed.wait(WAIT_S):
            if self._busy.acquire(blocking=False):
                try:
                    if not self._closed.is_set():
                        self._ranks.broadcast(order)
                finally:
                    self._busy.release()


def follow(trainer: Trainer) -> None:
    """Does what rank 0 orders until it says stop. Raises RuntimeError where rank 0 is gone."""
    ranks = Ranks()
    while True:
        order = decode(ranks.broadcast(), Order)
        folder = Path(order.folder)
        match order.what:
            case "train":
                groups = [[decode(data, Trajectory) for data in group] for group in order.groups]
                trainer.train(groups, order.version)
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

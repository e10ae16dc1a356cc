"""The trainer protocol, which is all that the learner needs of its training, and the choice of a trainer."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from bus.messages import Trajectory, WeightVersion
from configs.schema import RunConfig
from weights.codec import Layout

if TYPE_CHECKING:
    import torch


class TokenOutcome(NamedTuple):
    """Holds what a step made of one trajectory's n sampled tokens."""

    advantages: NDArray[np.float32]
    """[n], or [1] where all tokens have the same."""
    log_ratios: NDArray[np.float32]
    """[n] log pi_prox - log mu."""


Watcher = Callable[[Sequence[TokenOutcome]], None]
"""Is told what a step made of its trajectories, in the order of the batch; not called where there were none."""


class Trainer(Protocol):
    """Trains a policy batch by batch: the ranks of DeepSpeed as one, or an emulation. Takes one call at a time.

    Versions count the training steps: the step that trains from version v makes version v + 1.
    """

    @property
    def ranks(self) -> int:
        """Returns the number of processes that train together."""
        ...

    @property
    def compute_dtype(self) -> str:
        """Returns the name of the dtype of every model's passes, the same on all ranks."""
        ...

    @property
    def vocabulary(self) -> int:
        """Returns the number of token ids that the policy knows."""
        ...

    def train(
        self,
        groups: list[list[Trajectory]],
        version: int,
        same: frozenset[WeightVersion] = frozenset(),
        watcher: Watcher | None = None,
    ) -> dict[str, float]:
        """Trains on one batch and returns the step's metrics; `RankTrainer.train` describes all of it.

        `version` is the one that the step trains from, `same` its names on the weight log.
        """
        ...

    def save(self, folder: Path) -> None:
        """Writes everything that training continues from."""
        ...

    def load(self, folder: Path) -> None:
        """Continues from what `save` wrote. Raises FileNotFoundError where a part is missing."""
        ...

    def load_and_compare(self, folder: Path) -> dict[str, bool]:
        """Continues from what `save` wrote; returns for each part of the optimisers' state whether it was equal before."""
        ...

    def export(self, folder: Path) -> None:
        """Writes the policy as a Hugging Face checkpoint."""
        ...

    def copy_weights(self, image: "torch.Tensor") -> None:
        """Copies the policy's weights to `image`, uint8 [nbytes], as `weight_layout` describes it."""
        ...

    def weight_layout(self) -> Layout:
        """Returns where each tensor lies in the image of the weights."""
        ...

    def close(self) -> None:
        """Ends the other ranks and frees the models."""
        ...


def make_trainer(config: RunConfig, model: Path) -> Trainer:
    """Loads the model in the folder `model` into the trainer that `config` asks for. Takes seconds, and a GPU's memory."""
    if config.learner.trainer == "emulated":
        from learner.training.emulated_trainer import EmulatedTrainer

        return EmulatedTrainer(model)
    from learner.training.rank_group import RankGroup
    from learner.training.rank_trainer import RankTrainer

    return RankGroup(RankTrainer(config, model))

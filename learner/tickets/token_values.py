"""Keeps what a step made of every token that it trained on: its advantage, the learner's log-probability less the actor's.

One file a step, `runs/<id>/tokens/`, beside the archive, which has what the actor wrote of the same tokens. People look at
it; training reads nothing of it. A step that is trained again writes its file again.

Cost: 2 bytes a sampled token, 2 more where tokens of a trajectory have advantages of their own, before compression. The
archive has 9 a token.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Self

import zstandard
from pydantic import model_validator

from bus.codec import Float16Array, Message, MessageError, decode, encode
from bus.messages import Ordinal, Time
from runtime.files import write_whole


class TokenValues(Message):
    """Holds what a step made of one trajectory's n sampled tokens."""

    ticket: Ordinal
    published_at: Time
    """The trajectory's: an archive that was cut may have got another one for the ticket."""
    advantages: Float16Array
    """[n], or [1] where all tokens have the same."""
    log_ratios: Float16Array
    """[n] log π_prox − log μ, the learner's log-probability less the actor's, within ±20; see `RankTrainer.train`."""

    @model_validator(mode="after")
    def consistent(self) -> Self:
        if len(self.advantages) not in (1, len(self.log_ratios)):
            raise ValueError("advantages are of another number of tokens")
        return self


class StepValues(Message):
    """Holds what a step made of everything that it trained on."""

    step: Ordinal
    trajectories: tuple[TokenValues, ...]


def values_path(folder: Path, step: int) -> Path:
    """Returns where the values of a step lie."""
    return folder / f"{step:06d}.tokens"


def write_values(folder: Path, step: int, trajectories: Iterable[TokenValues]) -> None:
    """Writes the file of a step. Raises OSError."""
    folder.mkdir(exist_ok=True)
    packed = encode(StepValues(step=step, trajectories=tuple(trajectories)))
    write_whole(values_path(folder, step), zstandard.ZstdCompressor().compress(packed))


def read_values(folder: Path, step: int) -> dict[int, TokenValues]:
    """Returns what a step made of its trajectories, by ticket; empty where that is not there, or not yet.

    Raises MessageError where the file is damaged, or another version's.
    """
    try:
        packed = zstandard.ZstdDecompressor().decompress(values_path(folder, step).read_bytes())
    except FileNotFoundError:
        return {}
    except zstandard.ZstdError as error:
        raise MessageError(f"{values_path(folder, step)} is damaged: {error}") from error
    return {each.ticket: each for each in decode(packed, StepValues).trajectories}

"""Where a run's bus is and how to enter it: the file `runs/<id>/bus.json`.

The file holds the credentials, so it is written with mode 0600 and its content is never logged.
"""

import os
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError


class AddressError(RuntimeError):
    """There is no usable bus.json; the text says how to get one."""


class BusAddress(BaseModel):
    """What a role needs to join a run."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    run: str
    """The run's id; every stream, bucket and subject carries it."""
    url: str
    user: str
    password: str

    def write(self, path: Path) -> None:
        """Writes the file with mode 0600, whole or not at all."""
        draft = path.with_suffix(".draft")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(self.model_dump_json(indent=2) + "\n")
        draft.replace(path)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises AddressError where the file is missing or unreadable."""
        try:
            return cls.model_validate_json(path.read_text())
        except FileNotFoundError:
            raise AddressError(
                f"no run found at {path}: start one with `zerotir up` or `zerotir bus`, or name its file with --run"
            ) from None
        except (OSError, ValidationError) as error:
            raise AddressError(f"{path} is not a usable bus.json: {error}") from error

"""Where a run's bus is and how to enter it: `runs/<id>/bus.json` and one file a role in `runs/<id>/credentials/`.

A role signs the server's challenge with the seed of an ed25519 key (an nkey). The server's configuration holds public keys
alone, and no secret crosses the network. bus.json holds the seed of the run's master key, role `bus`, from which the keys of
all other roles follow; a role's own file holds its own seed alone. The files have mode 0600, and a seed is in no log and in
no `repr`.
"""

import hmac
import os
from pathlib import Path
from typing import Self

import nkeys
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from bus.permissions import ROLES
from configs.bus import TlsConfig
from configs.errors import UserError
from configs.names import Name
from runtime.files import write_whole

MASTER = "bus"
"""The role that makes the streams and may do everything within its run."""
CREDENTIALS = "credentials"
"""Folder of the roles' files, beside bus.json."""


class AddressError(UserError):
    """There is no usable file; the text says how to get one."""


class BusAddress(BaseModel):
    """Says how one role joins a run."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    run: Name
    """The run's id; every stream, bucket and subject carries it."""
    url: str
    """The server's URL, or those of several, separated by commas: any that is up is used."""
    role: str
    seed: str = Field(repr=False)
    """Seed of the role's key; secret."""
    tls: TlsConfig = TlsConfig()

    @field_validator("seed")
    @classmethod
    def is_a_seed(cls, seed: str) -> str:
        try:
            nkeys.from_seed(bytearray(seed.encode()))
        except nkeys.NkeysError as error:
            raise ValueError("not the seed of a key") from error
        return seed

    @classmethod
    def new(cls, run: str, url: str, tls: TlsConfig = TlsConfig()) -> Self:  # noqa: B008 (immutable)
        """Returns the master's address of a new run, with a key of its own."""
        return cls(run=run, url=url, role=MASTER, seed=_seed(os.urandom(32)), tls=tls)

    @property
    def port(self) -> int:
        """Returns the port of an embedded server, of which there is one."""
        return int(self.url.rsplit(":", 1)[1])

    @property
    def public_key(self) -> str:
        """Returns the key by which the server knows the role."""
        return nkeys.from_seed(bytearray(self.seed.encode())).public_key.decode()

    def for_role(self, role: str) -> Self:
        """Returns the same run for `role`.

        Raises AddressError where this address is neither that role's nor the master's.
        """
        if role == self.role:
            return self
        if self.role != MASTER:
            raise AddressError(
                f"these credentials are those of role {self.role}: {role} needs bus.json or credentials/{role}.json"
            )
        derived = hmac.digest(self.seed.encode(), role.encode(), "sha256")
        return self.model_copy(update={"role": role, "seed": _seed(derived)})

    def write(self, path: Path) -> None:
        """Writes the file with mode 0600, whole or not at all."""
        write_whole(path, self.model_dump_json(indent=2) + "\n", mode=0o600)

    def write_all(self, folder: Path) -> None:
        """Writes every role's file and, last, bus.json."""
        (folder / CREDENTIALS).mkdir(mode=0o700, exist_ok=True)
        for role in ROLES:
            self.for_role(role).write(folder / CREDENTIALS / f"{role}.json")
        self.write(folder / "bus.json")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises AddressError where the file is missing or unreadable."""
        try:
            return cls.model_validate_json(path.read_text())
        except FileNotFoundError:
            raise AddressError(
                f"no run found at {path}: start one with `zerotir up` or `zerotir bus`, or name its folder or file"
            ) from None
        except (OSError, ValidationError) as error:
            reason = error.strerror if isinstance(error, OSError) else error.errors(include_input=False)[0]["msg"]
            raise AddressError(f"{path} is not a usable bus.json: {reason}") from error


def run_folder(path: Path) -> Path:
    """Returns the run's folder on this host, by the file through which a role joins: logs and results go there."""
    folder = path.resolve().parent
    return folder.parent if folder.name == CREDENTIALS else folder


def _seed(raw: bytes) -> str:
    return nkeys.encode_seed(raw, nkeys.PREFIX_BYTE_USER).decode()

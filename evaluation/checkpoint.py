"""A Hugging Face checkpoint as an image in memory that the engine loads like a version from the weight log.

The safetensors files are copied one after another into an anonymous file in memory, which the engine's workers map through
this process's descriptor; their headers say where each tensor lies. Nothing of a checkpoint is unpickled.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import xxhash

from bus.messages import TensorEntry
from runtime.models import ModelError

DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
"""Names of dtypes in safetensors, and torch's names of them."""
BLOCK_BYTES = 16 * 2**20
ALIGNMENT = 64


@dataclass(frozen=True)
class CheckpointImage:
    """The weights of a checkpoint in memory; a context manager that gives the memory back."""

    descriptor: int
    tensors: tuple[TensorEntry, ...]
    digest: str
    """xxh3-64 of the files' bytes: which weights these are, wherever they lie."""

    @property
    def path(self) -> str:
        """Returns the path under which other processes of this user map the image."""
        return f"/proc/{os.getpid()}/fd/{self.descriptor}"

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Reads all `*.safetensors` of `folder`. Raises ModelError."""
        paths = sorted(folder.glob("*.safetensors"))
        if not paths:
            raise ModelError(f"{folder} holds no *.safetensors: save the model with `save_pretrained`")
        digest = xxhash.xxh3_64()
        tensors: list[TensorEntry] = []
        descriptor = os.memfd_create("zerotir-checkpoint")
        try:
            with os.fdopen(descriptor, "wb", closefd=False) as memory:
                for path in paths:
                    memory.write(bytes(-memory.tell() % ALIGNMENT))
                    tensors += _entries(path, memory.tell())
                    with path.open("rb") as file:
                        while block := file.read(BLOCK_BYTES):
                            digest.update(block)
                            memory.write(block)
        except BaseException as error:
            os.close(descriptor)
            if isinstance(error, OSError):
                raise ModelError(f"the weights in {folder} cannot be read: {error}") from error
            raise
        return cls(descriptor, tuple(tensors), digest.hexdigest())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self.descriptor)


def _entries(path: Path, begin: int) -> list[TensorEntry]:
    """Returns where the tensors of a safetensors file lie that is put at `begin`.

    The format: the header's length in eight bytes, little-endian, the header as JSON, then the tensors.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > size:
            raise ModelError(f"{path} is no whole safetensors file")
        try:
            header: dict[str, Any] = json.loads(file.read(length))
        except ValueError as error:
            raise ModelError(f"{path} is no safetensors file: {error}") from error
    header.pop("__metadata__", None)
    entries = []
    for name, entry in header.items():
        first, last = entry["data_offsets"]
        if 8 + length + last > size:
            raise ModelError(f"{path} ends before {name} does: it was not copied whole")
        if entry["dtype"] not in DTYPES:
            raise ModelError(
                f"{path}: {name} is {entry['dtype']}; expected one of {', '.join(DTYPES)} (quantised ones are not)"
            )
        entries.append(
            TensorEntry(
                name=name,
                dtype=DTYPES[entry["dtype"]],
                shape=tuple(entry["shape"]),
                offset=begin + 8 + length + first,
                nbytes=last - first,
            )
        )
    return entries

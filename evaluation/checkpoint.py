"""A Hugging Face checkpoint as an image in memory that the engine loads like a version from the weight log.

The files that hold the model's tensors are copied one after another into an anonymous file in memory, which the engine's
workers map through this process's descriptor; the files' headers say where each tensor lies. Nothing is unpickled.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import xxhash

from bus.messages import TensorEntry
from runtime.model_files import DTYPES, model_tensors
from runtime.models import ModelError

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
        """Reads the model in `folder`, and all of it. Raises ModelError, see `model_tensors`."""
        stored = model_tensors(folder)
        digest = xxhash.xxh3_64()
        begins: dict[Path, int] = {}
        descriptor = os.memfd_create("zerotir-checkpoint")
        try:
            with os.fdopen(descriptor, "wb", closefd=False) as memory:
                for path in sorted({tensor.path for tensor in stored}):
                    memory.write(bytes(-memory.tell() % ALIGNMENT))
                    begins[path] = memory.tell()
                    with path.open("rb") as file:
                        while block := file.read(BLOCK_BYTES):
                            digest.update(block)
                            memory.write(block)
        except BaseException as error:
            os.close(descriptor)
            if isinstance(error, OSError):
                raise ModelError(f"the weights in {folder} cannot be read: {error}") from error
            raise
        tensors = tuple(
            TensorEntry(
                name=tensor.name,
                dtype=DTYPES[tensor.dtype],
                shape=tensor.shape,
                offset=begins[tensor.path] + tensor.offset,
                nbytes=tensor.nbytes,
            )
            for tensor in stored
        )
        return cls(descriptor, tensors, digest.hexdigest())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self.descriptor)

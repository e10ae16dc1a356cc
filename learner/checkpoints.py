"""Checkpoints: a folder for each, written under another name and renamed when whole.

A kill at any moment leaves the previous checkpoint good. The folder `step-<n>` holds the training engine's state after n
steps and `learner.msgpack`, the learner's book and position in the result log.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import structlog

log = structlog.get_logger()

STATE = "learner.msgpack"


class CheckpointError(RuntimeError):
    """A checkpoint cannot be read; the text says which."""


class Checkpoints:
    """The checkpoints of one run, newest last."""

    def __init__(self, folder: Path, keep: int) -> None:
        self._folder = folder
        self._keep = keep
        # The engine's part is unpickled when it is loaded: nobody else may write here.
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def newest(self) -> Path | None:
        """The newest whole checkpoint."""
        found = sorted(path for path in self._folder.glob("step-*") if path.suffix != ".partial")
        return found[-1] if found else None

    def write(self, step: int, save: Callable[[Path], None], state: dict[str, Any]) -> Path:
        """Writes the checkpoint after `step` steps: `save` puts the training engine's files into a folder."""
        final = self._folder / f"step-{step:06d}"
        partial = final.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(mode=0o700)
        save(partial)
        with (partial / STATE).open("wb") as file:
            file.write(msgpack.packb({"step": step, **state}))
            file.flush()
            os.fsync(file.fileno())
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        for old in sorted(path for path in self._folder.glob("step-*") if path.suffix != ".partial")[: -self._keep]:
            shutil.rmtree(old)
        log.info("checkpoint written", path=str(final))
        return final

    @staticmethod
    def read(path: Path) -> dict[str, Any]:
        """The learner's state of a checkpoint. Raises CheckpointError."""
        try:
            return msgpack.unpackb((path / STATE).read_bytes(), strict_map_key=False)
        except (OSError, ValueError, msgpack.UnpackException) as error:
            raise CheckpointError(f"{path} is not a usable checkpoint: {error}") from error

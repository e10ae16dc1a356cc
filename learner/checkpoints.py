"""Checkpoints: a folder for each, written under another name, forced to the disk and renamed when whole.

A kill at any moment leaves the previous checkpoint good. The folder `step-<n>` holds the training engines' state after n
steps, `learner.msgpack` with the run's id, the learner's ledger and its position in the result log, and
`checkpoint.json` for people; `step-<n>-<m>` is one more after the same step, written because results filled their
stream. A learner always goes on from the newest one of its run; to go back further, remove what is newer.
"""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import structlog

from configs.schema import RunConfig
from configs.training import CheckpointConfig
from learner.tickets.archive import CheckpointError
from runtime.files import sync

log = structlog.get_logger()

STATE = "learner.msgpack"
SUMMARY = "checkpoint.json"


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(self, folder: Path, config: CheckpointConfig) -> None:
        self._folder = folder
        self._config = config
        # The engines' part is unpickled when it is loaded: nobody else may write here.
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def newest(self) -> Path | None:
        """Returns the newest whole checkpoint."""
        return max(self._whole(), default=None)

    def newest_state(self) -> tuple[Path, dict[str, Any]] | None:
        """Returns the newest whole checkpoint and the learner's state in it. Raises CheckpointError as `read` does."""
        newest = self.newest()
        if newest is None:
            return None
        try:
            return newest, self.read(newest)
        except CheckpointError:
            if newest.exists():
                raise
            return self.newest_state()  # A learner that still lives has written a newer one.

    def best(self) -> Path | None:
        """Returns the one with the highest value of the metric that the configuration names, the earliest of equals."""
        values = {path: _value(path, self._config.best) for path in self._whole()}
        return max(sorted(path for path in values if values[path] > -math.inf), key=lambda p: values[p], default=None)

    def write(self, step: int, save: Callable[[Path], None], state: dict[str, Any], metrics: dict[str, float]) -> Path:
        """Writes the checkpoint after `step` steps, and removes those that are no longer to be kept.

        Args:
            save: puts the training engines' files into a folder.
            state: the learner's, as msgpack takes it.
            metrics: of the step.
        """
        final = self._unused(step)
        partial = final.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(mode=0o700)
        save(partial)
        (partial / STATE).write_bytes(msgpack.packb({"step": step, **state}))
        (partial / SUMMARY).write_text(json.dumps({"step": step, "metrics": metrics}, indent=1))
        for path in sorted(partial.rglob("*")):
            sync(path)
        sync(partial)
        partial.rename(final)
        sync(self._folder)
        if self._config.best is not None and self._config.best not in metrics:
            log.warning("the metric of learner.checkpoint.best is not among the step's", metric=self._config.best)
        kept = {*sorted(self._whole())[-self._config.keep :], self.best()}
        for old in self._whole():
            if old not in kept:
                # No longer a checkpoint before the first of its files goes.
                gone = old.with_suffix(".partial")
                shutil.rmtree(gone, ignore_errors=True)
                shutil.rmtree(old.rename(gone))
        log.info("checkpoint written", path=str(final))
        return final

    @staticmethod
    def read(path: Path) -> dict[str, Any]:
        """Returns the learner's state of a checkpoint. Raises CheckpointError."""
        try:
            return msgpack.unpackb((path / STATE).read_bytes(), strict_map_key=False)
        except (OSError, ValueError, msgpack.UnpackException) as error:
            raise CheckpointError(f"{path} is not a usable checkpoint: {error}") from error

    def _unused(self, step: int) -> Path:
        """Returns a path for a checkpoint after `step`: one of the same step is kept until the new one is whole."""
        plain = f"step-{step:06d}"
        same = [path.name for path in self._whole() if path.name.startswith(plain)]
        if not same:
            return self._folder / plain
        return self._folder / f"{plain}-{int(max(same).removeprefix(plain).removeprefix('-') or 0) + 1:06d}"

    def _whole(self) -> list[Path]:
        return [path for path in self._folder.glob("step-*") if path.suffix != ".partial"]


def in_checkpoint_dtype(config: RunConfig, run: Path) -> RunConfig:
    """Returns `config` with the dtype that the learner of the run in folder `run` computed in, if it has a checkpoint.

    A new measurement could choose the other one, of which DeepSpeed loads no checkpoint. An explicit dtype stays.
    """
    newest = Checkpoints(run / "checkpoints", config.learner.checkpoint).newest_state()
    if newest is None or config.model.compute_dtype != "auto":
        return config
    model = config.model.model_copy(update={"compute_dtype": newest[1]["compute_dtype"]})
    return config.model_copy(update={"model": model})


def _value(path: Path, metric: str | None) -> float:
    if metric is None or not (path / SUMMARY).exists():
        return -math.inf
    value = json.loads((path / SUMMARY).read_text())["metrics"].get(metric)
    return -math.inf if value is None or not math.isfinite(value) else value

"""Weights & Biases. Its own environment holds: WANDB_MODE=offline, WANDB_PROJECT, WANDB_ENTITY, WANDB_BASE_URL."""

import os
from pathlib import Path
from shlex import quote
from typing import Any

import wandb
from wandb.errors import AuthenticationError, UsageError

from configs.errors import UserError
from tracking.tracker import COLUMNS, PROJECT, SAMPLES, Row, Sample, TrackerError


def start(folder: Path, run: str, config: dict[str, Any], after: int) -> "WandbRun":
    """Returns the tracker; see `tracking.tracker.start_tracker`."""
    # What this process does is of no interest: it only follows the run, maybe on another host.
    try:
        settings = wandb.Settings(
            console="off",
            x_disable_stats=True,
            x_save_requirements=False,
            disable_git=True,
            disable_code=True,
            save_code=False,
            silent=True,
        )
        opened = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=run,
            name=run,
            resume="allow",
            dir=str(folder),
            settings=settings,
        )
        opened.config.update(config, allow_val_change=True)
    except (AuthenticationError, UsageError) as error:
        raise UserError(f"W&B does not take the run {run}: {error} Or set WANDB_MODE=offline") from error
    except wandb.Error as error:
        raise TrackerError(f"W&B: {error}") from error
    except ValueError as error:
        raise UserError(f"W&B does not take its settings: {' '.join(str(error).split())[:300]}") from error
    if opened.disabled:
        raise UserError("W&B is switched off (WANDB_MODE=disabled): it would keep nothing of the run")
    return WandbRun(opened, folder)


class WandbRun:
    """Writes the history of one run; W&B's own process takes it from there, to its server or to a file.

    It does not say what it has written, and loses what it has not where this process is killed.
    """

    settles_s: float | None = None

    def __init__(self, run: wandb.Run, folder: Path) -> None:
        files = folder / "wandb" / "offline-run-*"
        self.where = run.url or f"offline; send it with: wandb sync {quote(str(files.parent))}/{files.name}"
        self.destination = run.url or "offline"
        self._run = run
        self._roles: set[str] = set()

    def write(self, rows: list[Row]) -> None:
        """Logs each row with its step, or its second, as the abscissa."""
        for row in rows:
            axis = "seconds" if row.step is None else "step"
            if row.role not in self._roles:
                self._roles.add(row.role)
                self._run.define_metric(f"{row.role}/*", step_metric=axis)
            place = row.seconds if row.step is None else row.step
            self._log({**row.values, axis: place, "_timestamp": row.time})

    def write_samples(self, samples: list[Sample]) -> None:
        """Logs a step's transcripts as a table."""
        rows = [sample.row() for sample in samples]
        self._log({SAMPLES: wandb.Table(columns=list(COLUMNS), data=rows), "step": samples[0].step})

    def _log(self, values: dict[str, object]) -> None:
        try:
            self._run.log(values)
        except wandb.Error as error:
            raise TrackerError(f"W&B: {error}") from error

    def flush(self) -> None:
        """Does nothing: W&B lets nobody wait for it but at the end."""

    def close(self) -> None:
        """Waits until W&B has everything."""
        self._run.finish()

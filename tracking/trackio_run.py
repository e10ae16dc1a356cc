"""Trackio: in a local store, or where TRACKIO_SPACE_ID or TRACKIO_SERVER_URL says; TRACKIO_PROJECT names the project.

Its library raises no errors once a run is open. What a server does not take it keeps in the local store, and sends it when
the run goes on; what the local store does not take is lost, with a warning, which here is an error.
"""

import os
import sqlite3
import warnings
from pathlib import Path
from shlex import quote
from typing import Any

import structlog
import trackio
from trackio.utils import TRACKIO_DIR

from configs.errors import UserError
from tracking.tracker import COLUMNS, PROJECT, SAMPLES, Row, Sample, TrackerError

log = structlog.get_logger()


def start(folder: Path, run: str, config: dict[str, Any], after: int) -> "TrackioRun":
    """Returns the tracker; see `tracking.tracker.start_tracker`."""
    project = os.environ.get("TRACKIO_PROJECT", PROJECT)
    try:
        opened = trackio.init(
            project=project,
            name=run,
            resume="allow",
            config=config,
            auto_log_gpu=False,
            auto_log_cpu=False,
            embed=False,
        )
    except ValueError as error:
        raise UserError(f"Trackio does not take the run {run}: {error}") from error
    except (OSError, sqlite3.Error) as error:
        raise TrackerError(f"Trackio: {error}") from error
    # Which its library reads as well.
    server = os.environ.get("TRACKIO_SPACE_ID") or os.environ.get("TRACKIO_SERVER_URL", "").partition("?")[0]
    return TrackioRun(opened, project, server)


class TrackioRun:
    """Writes one run of a project."""

    settles_s: float | None = 10.0

    def __init__(self, run: trackio.Run, project: str, server: str) -> None:
        """`server`: where it sends runs to; empty for the local store."""
        self.destination = f"{server or TRACKIO_DIR} {project}"
        self.where = server or f"trackio show --project {quote(project)}"
        self._run = run
        self._is_local = not server
        self._lost = ""
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = self._note  # type: ignore[assignment]

    def _note(self, message: Warning | str, *_: object) -> None:
        """Takes a warning of its library's threads."""
        log.warning("Trackio warns", warning=str(message))
        self._lost = self._lost or str(message)

    def _require_nothing_lost(self) -> None:
        if self._is_local and self._lost:
            raise TrackerError(f"Trackio: {self._lost}")

    def write(self, rows: list[Row]) -> None:
        """Logs each row at its step, or at its second; Trackio notes its own time."""
        for row in rows:
            self._run.log(dict(row.values), step=row.seconds if row.step is None else row.step)

    def write_samples(self, samples: list[Sample]) -> None:
        """Logs a step's transcripts as a table."""
        rows = [sample.row() for sample in samples]
        self._run.log({SAMPLES: trackio.Table(columns=list(COLUMNS), data=rows)}, step=samples[0].step)

    def flush(self) -> None:
        """Raises TrackerError where the store has not taken something; Trackio's thread writes within a second or two."""
        self._require_nothing_lost()

    def close(self) -> None:
        """Waits until everything is in the store, for half a minute at most."""
        self._run.finish()
        self._require_nothing_lost()

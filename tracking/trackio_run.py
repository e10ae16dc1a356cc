"""Trackio: in a local store, or where TRACKIO_SPACE_ID or TRACKIO_SERVER_URL says; TRACKIO_PROJECT names the project.

Its library raises no errors once a run is open: what a server does not take it keeps in the local store, and sends it when
the run goes on.
"""

import os
from pathlib import Path
from shlex import quote
from typing import Any

import trackio

from configs.errors import UserError
from tracking.tracker import PROJECT, SAMPLES, Row, Sample

COLUMNS = ["step", "ticket", "verdict", "reward", "transcript"]


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
    return TrackioRun(opened, project)


class TrackioRun:
    """Writes one run of a project."""

    def __init__(self, run: trackio.Run, project: str) -> None:
        self.where = f"trackio show --project {quote(project)}"
        self._run = run

    def write(self, rows: list[Row]) -> None:
        """Logs each row at its step, or at its second; Trackio notes its own time."""
        for row in rows:
            self._run.log({**row.values}, step=row.seconds if row.step is None else row.step)

    def write_samples(self, samples: list[Sample]) -> None:
        """Logs a step's transcripts as a table."""
        rows = [[sample.step, sample.ticket, sample.verdict, sample.reward, sample.text] for sample in samples]
        self._run.log({SAMPLES: trackio.Table(columns=COLUMNS, data=rows)}, step=samples[0].step)

    def flush(self) -> None:
        """Does nothing: Trackio's thread writes within a second, and its library lets nobody wait for it but at the end."""

    def close(self) -> None:
        """Waits until everything is in the store, for half a minute at most."""
        self._run.finish()

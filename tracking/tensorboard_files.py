"""TensorBoard: event files in the run's folder, which `tensorboard --logdir` shows.

Each folder is one of TensorBoard's runs: `learner`, `evaluator/DATA/N`, and `processes` for what belongs to no step. Where a
step is trained again, from an older checkpoint, or given again after a kill, what was there from it on is taken away in
TensorBoard's own way: by a new file that begins with a purge.
"""

import os
import threading
from pathlib import Path
from shlex import quote
from textwrap import indent
from typing import Any

import structlog
import yaml
from tensorboardX import SummaryWriter

from tracking.tracker import SAMPLES, Row, Sample, TrackerError

log = structlog.get_logger()

PROCESSES = "processes"
CODE = "    "
"""Markdown shows what is indented by it as it stands."""


def start(folder: Path, run: str, config: dict[str, Any], after: int) -> "TensorBoard":
    """Returns the tracker; see `tracking.tracker.start_tracker`."""
    return TensorBoard(folder, config, after)


class TensorBoard:
    """Writes event files."""

    settles_s: float | None = 0.0
    destination = ""

    def __init__(self, folder: Path, config: dict[str, Any], after: int) -> None:
        self.where = f"tensorboard --logdir {quote(str(folder))}"
        self._folder = folder
        self._position = after
        self._writers: dict[str, SummaryWriter] = {}
        self._steps: dict[str, int] = {}
        """The last step in each folder."""
        threading.excepthook = self._note
        text = indent(yaml.safe_dump(config, sort_keys=False), CODE)
        self._writer("configuration").add_text("configuration", text, after)

    def _note(self, arguments: threading.ExceptHookArgs) -> None:
        """Says why a thread has died: the one that writes a file takes nothing more, and tells nobody."""
        log.error("an event file cannot be written", folder=str(self._folder), error=str(arguments.exc_value))

    def _writer(self, name: str, purge_step: int | None = None) -> SummaryWriter:
        if purge_step is not None and name in self._writers:
            self._writers.pop(name).close()
        if name not in self._writers:
            # TensorBoard reads a folder's files in the order of their names, which begin with the second.
            suffix = f".{self._position:012d}.{os.getpid()}"
            self._writers[name] = SummaryWriter(str(self._folder / name), purge_step=purge_step, filename_suffix=suffix)
        return self._writers[name]

    def write(self, rows: list[Row]) -> None:
        """Writes each value at its step, or at its second."""
        for row in rows:
            if row.step is None:
                writer, place = self._writer(PROCESSES), row.seconds
            else:
                name, place = f"{row.role}/{row.part}".rstrip("/"), row.step
                # The first one may have been there before this process was.
                again = name not in self._steps or place <= self._steps[name]
                writer = self._writer(name, place if again else None)
                self._steps[name] = place
            for value_name, value in row.values.items():
                writer.add_scalar(value_name, value, place, walltime=row.time)
            self._position = row.sequence

    def write_samples(self, samples: list[Sample]) -> None:
        """Writes each as a text that is shown as it stands."""
        for sample in samples:
            text = indent(sample.text, CODE)
            self._writer(SAMPLES).add_text(f"{SAMPLES}/{sample.verdict}", text, sample.step)

    def flush(self) -> None:
        """Writes everything to the files. Raises TrackerError where a disk does not take it."""
        try:
            for writer in self._writers.values():
                writer.flush()
        except OSError as error:
            raise TrackerError(f"the event files in {self._folder} cannot be written: {error}") from error

    def close(self) -> None:
        """Closes the files."""
        for writer in self._writers.values():
            writer.close()

"""TensorBoard: event files in the run's folder, which `tensorboard --logdir` shows.

Three folders, each one TensorBoard run: `learner`, `evaluator` and `processes`, for what belongs to no step. A step that
is trained again, from an older checkpoint, takes away what was there from it on, in TensorBoard's own way: a file that
begins with a purge.
"""

from pathlib import Path
from shlex import quote
from textwrap import indent
from typing import Any

import yaml
from tensorboardX import SummaryWriter

from tracking.tracker import SAMPLES, Row, Sample, TrackerError

PROCESSES = "processes"
CODE = "    "
"""Markdown shows what is indented by it as it stands."""


def start(folder: Path, run: str, config: dict[str, Any], after: int) -> "TensorBoard":
    """Returns the tracker; see `tracking.tracker.start_tracker`."""
    return TensorBoard(folder, config, after)


class TensorBoard:
    """Writes event files."""

    def __init__(self, folder: Path, config: dict[str, Any], after: int) -> None:
        self.where = f"tensorboard --logdir {quote(str(folder))}"
        self._folder = folder
        self._position = after
        self._writers: dict[str, SummaryWriter] = {}
        self._steps: dict[str, int] = {}
        """The last step in each folder."""
        self._writer("learner", None).add_text(
            "configuration", indent(yaml.safe_dump(config, sort_keys=False), CODE), after
        )

    def _writer(self, name: str, purge_step: int | None) -> SummaryWriter:
        if purge_step is not None and name in self._writers:
            self._writers.pop(name).close()
        if name not in self._writers:
            # TensorBoard reads a folder's files in the order of their names, which begin with the second.
            suffix = f".{self._position:012d}"
            self._writers[name] = SummaryWriter(str(self._folder / name), purge_step=purge_step, filename_suffix=suffix)
        return self._writers[name]

    def write(self, rows: list[Row]) -> None:
        """Writes each value at its step, or at its second."""
        for row in rows:
            name = PROCESSES if row.step is None else row.role
            step = row.seconds if row.step is None else row.step
            again = row.step is not None and step <= self._steps.get(name, -1)
            writer = self._writer(name, step if again else None)
            self._steps[name] = step
            for value_name, value in row.values.items():
                writer.add_scalar(value_name, value, step, walltime=row.time)
            self._position = row.sequence

    def write_samples(self, samples: list[Sample]) -> None:
        """Writes each as a text that is shown as it stands."""
        for sample in samples:
            self._writer("learner", None).add_text(
                f"{SAMPLES}/{sample.verdict}", indent(sample.text, CODE), sample.step
            )

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

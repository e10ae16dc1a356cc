"""What every tracker is given, and the one table of them.

    metrics of the bus ──▶ `Row` ──┐
    results of the archive ──▶ `Sample` ──┴──▶ `Tracker`: TensorBoard, W&B, Trackio or MLflow

Names are the same in all of them: `learner/accuracy`, `evaluator/...`, and with the process where there are several of a
role, `actor/actor-0/tokens_per_s`. `@` becomes `_at_`: not every tracker has it in names.
"""

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, Self

from bus.messages import Metrics
from bus.metrics import OF_STEPS
from configs.errors import UserError
from configs.schema import TrackerName

PROJECT = "zerotir"
"""Name of the project, or experiment, in which a tracker keeps runs, where its own environment names none."""
SAMPLES = "transcripts"
COLUMNS = ("step", "ticket", "verdict", "reward", "transcript")
"""Of a table of samples."""
LONGEST_NAME = 250


class TrackerError(RuntimeError):
    """A tracker cannot go on; trying again later may help."""


@dataclass(frozen=True)
class Row:
    """What one process measured at one time."""

    sequence: int
    """Position in the run's metrics log."""
    role: str
    part: str
    """What of a process it measured, such as an evaluator's data set; empty for all of it."""
    time: float
    """Seconds since the epoch, by the run's clock."""
    step: int | None
    """The training step or, of an evaluator, the weight version; None for what belongs to no step."""
    seconds: int
    """Since the run's first measurement: the abscissa of what belongs to no step."""
    values: dict[str, float]

    @classmethod
    def of(cls, sequence: int, metrics: Metrics, began: float | None) -> Self:
        """Returns what `metrics` say, in a run whose first measurement was at the time `began`, if that is known."""
        step = metrics.step if metrics.role in OF_STEPS else None
        _, _, part = metrics.id.partition("/")
        # One learner, one evaluator: which process it was is of no interest, but what it measured is.
        prefix = f"{metrics.role}/{metrics.id if step is None else part}"
        values = {_name(f"{prefix}/{name}"): value for name, value in metrics.values.items()}
        seconds = 0 if began is None else max(0, int(metrics.time - began))
        return cls(sequence, metrics.role, part, metrics.time, step, seconds, values)


def _name(name: str) -> str:
    """Returns a name that every tracker takes: MLflow has no @ in names, reads them as paths, and bounds their length."""
    parts = [part if part.strip(".") else "_" for part in name.replace("@", "_at_").split("/") if part]
    return "/".join(parts)[:LONGEST_NAME]


@dataclass(frozen=True)
class Sample:
    """One transcript of a step."""

    step: int
    ticket: int
    verdict: str
    """`right` or `wrong`."""
    reward: float
    text: str
    """All of it, for people."""

    def row(self) -> list[object]:
        """Returns what it has in each of the `COLUMNS` of a table."""
        return [self.step, self.ticket, self.verdict, self.reward, self.text]


class Tracker(Protocol):
    """A run in one tracker. Methods are called from one thread, and may take long. They raise TrackerError."""

    where: str
    """Says where people find it."""
    destination: str
    """Tells one place where the tracker keeps runs from another: there it would have nothing of this one yet."""
    settles_s: float | None
    """Seconds after which what it was given, and `flush` was called for, outlives this process however that ends; None: only
    once it is closed."""

    def write(self, rows: list[Row]) -> None:
        """Takes measurements, in order."""

    def write_samples(self, samples: list[Sample]) -> None:
        """Takes transcripts of one step."""

    def flush(self) -> None:
        """Writes out what was taken, as far as the tracker's library lets one see to that."""

    def close(self) -> None:
        """Ends the tracker's work on the run, which may go on later; it has everything then."""


@dataclass(frozen=True)
class Kind:
    """A tracker that a run can have."""

    module: str
    """Ours: its `start` begins or goes on with a run."""
    package: str
    """The one that has to be installed; it is an extra of the same name as the tracker."""


KINDS: dict[TrackerName, Kind] = {
    "tensorboard": Kind("tracking.tensorboard_files", "tensorboardX"),
    "wandb": Kind("tracking.wandb_run", "wandb"),
    "trackio": Kind("tracking.trackio_run", "trackio"),
    "mlflow": Kind("tracking.mlflow_run", "mlflow"),
}


def require_installed(name: TrackerName) -> None:
    """Raises UserError where a tracker's package is absent."""
    if find_spec(KINDS[name].package) is None:
        raise UserError(
            f"the tracker {name} needs the package {KINDS[name].package}, which is not installed: "
            f"`pip install 'zerotir[{name}]'`"
        )


def start_tracker(name: TrackerName, folder: Path, run: str, config: dict[str, Any], after: int) -> Tracker:
    """Begins the run in a tracker, or goes on with it.

    Args:
        name: the tracker.
        folder: for files of its own.
        run: the run's id, by which the tracker knows it again.
        config: the run's configuration as it is now, as data.
        after: position in the metrics log up to which the tracker has everything, 0 where it has nothing.

    Raises UserError for what the user has to fix, TrackerError where the tracker does not take it.
    """
    require_installed(name)
    return import_module(KINDS[name].module).start(folder, run, config, after)

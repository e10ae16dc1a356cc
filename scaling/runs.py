"""Runs as the analysis sees them: read from their folders, pooled where only the seed differs.

A run's folder has `config.yaml`, what it was told to do, and `metrics.jsonl`, what the learner measured at each step. Of the
configuration a few fields are needed and the others only compared, so runs of other versions of this project, with other
fields, are as good as any.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from bus.metrics import steps_of
from configs.errors import UserError
from scaling.data import Floats, Ints, Points

QUANTITIES = {
    "accuracy": "accuracy",
    "code_ratio": "code ratio",
    "calls_per_response": "calls per response",
    "response_length": "response length (tokens)",
}
"""What grows, or does not: name of the metric and what it is called in plots."""

SHARES = ("accuracy", "code_ratio")
"""Those that are a share of a step's responses."""

AXES = {
    "step": "training step",
    "trained_tokens": "trained tokens (millions)",
    "training_flops": "training compute (PFLOP)",
    "generation_flops": "generation compute (PFLOP)",
}
"""What it may grow with, all cumulative: the compute is the usual count, see `read_run`."""

NEEDED = {
    "trained_tokens": ("trained_tokens",),
    "training_flops": ("parameters", "trained_sequence_tokens"),
    "generation_flops": ("parameters", "trajectories", "prompt_length", "response_length"),
}
IRRELEVANT = (
    *("name", "seed", "bus", "launch", "actor", "weights", "evaluation", "sandbox.concurrency"),
    *("sandbox.request_timeout_s", "learner.steps", "learner.checkpoint", "learner.batch_timeout_s"),
)
"""Fields of a configuration, or sections of it, that make no other setting."""
PROBLEMS = ("model", "tasks.problems")
"""Those that make other problems for a model, or another model."""
MANY = 3
"""Fields in which settings of one name may differ, and still be told apart by them in a label."""


class RunError(UserError, ValueError):
    """A folder that is no run with measurements; the text says which and why."""


@dataclass(frozen=True)
class Run:
    """One run's series over its steps."""

    folder: Path
    settings: dict[str, Any]
    """Every field of its configuration, by its path."""
    steps: Ints
    """[T], ascending."""
    series: dict[str, Floats]
    """Name of a quantity or axis to [T]; not a number where the step did not measure it."""
    samples: Floats
    """[T], responses of each step; not a number where the step did not count them."""
    missing: dict[str, str]
    """Axis to the word that says why the run has no such series."""
    hours: float
    """Hours from the first metric of the learner to the last, pauses included."""

    @property
    def name(self) -> str:
        """Returns the name of its configuration."""
        return str(self.settings["name"])

    @property
    def seed(self) -> int:
        """Returns the seed that it was run with."""
        return int(self.settings["seed"])

    @property
    def model(self) -> str:
        """Returns the name or folder of its model."""
        return str(self.settings["model.path"])

    @property
    def max_tool_calls(self) -> int:
        """Returns how many tool calls a response may make."""
        return int(self.settings["rollout.max_tool_calls"])

    def fields(self, *sections: str) -> dict[str, Any]:
        """Returns the fields of some sections."""
        return {path: value for path, value in self.settings.items() if _within(path, sections)}


@dataclass(frozen=True)
class Setting:
    """Runs that differ in their seed alone: replicates of one experiment."""

    label: str
    runs: list[Run]

    @property
    def max_tool_calls(self) -> int:
        """Returns how many tool calls a response may make."""
        return self.runs[0].max_tool_calls

    @property
    def problems(self) -> dict[str, Any]:
        """Returns what was asked of which model."""
        return self.runs[0].fields(*PROBLEMS)

    def points(self, x: str, y: str) -> Points:
        """Returns all runs' pairs of two series. Raises KeyError where a run has no such series, see `Run.missing`."""
        if y in SHARES and all(np.isfinite(run.samples).all() for run in self.runs):
            return Points.of_shares([(run.series[x], run.series[y], run.steps, run.samples) for run in self.runs])
        return Points.of_runs([(run.series[x], run.series[y], run.steps) for run in self.runs])

    def missing(self, axis: str) -> str | None:
        """Returns why the setting has no such axis; None where it has one."""
        return next((run.missing[axis] for run in self.runs if axis in run.missing), None)


def read_run(folder: Path) -> Run:
    """Reads a run's folder.

    Compute is counted in the usual way (Kaplan et al. 2020): 2 floating-point operations a parameter and token in a forward
    pass and 4 in a backward pass. Training is 6 N D with the D tokens, prompts and tool output included, of the trajectories
    that were trained on; generation is 2 N D with those of every trajectory that a batch took, filtered ones included. An
    optimiser's work, attention's part that grows with the square of the length, and what caches save are not in it.

    Raises RunError.
    """
    settings = _read_settings(folder)
    records = steps_of(folder)
    if not records:
        raise RunError(f"{folder} has no training step in its metrics.jsonl yet")
    measured = {name for record in records for name, value in record.items() if isinstance(value, int | float)}
    column = {name: _column(records, name) for name in measured}
    steps = np.array([record["step"] for record in records], dtype=np.int64)
    series: dict[str, Floats] = {"step": steps.astype(np.float64)}
    series |= {name: column.get(name, np.full(len(records), np.nan)) for name in QUANTITIES}
    missing = {}
    for axis, names in NEEDED.items():
        if absent := [name for name in names if name not in column]:
            missing[axis] = f"{folder.name} has no metric {' and '.join(absent)}"
    if "trained_tokens" not in missing:
        series["trained_tokens"] = np.cumsum(column["trained_tokens"]) / 1e6
    if "training_flops" not in missing:
        tokens = column["trained_sequence_tokens"]
        series["training_flops"] = np.cumsum(6 * column["parameters"] * tokens) / 1e15
    if "generation_flops" not in missing:
        # A batch without any trajectory has no lengths, and generated nothing.
        lengths = np.nan_to_num(column["prompt_length"] + column["response_length"])
        series["generation_flops"] = np.cumsum(2 * column["parameters"] * column["trajectories"] * lengths) / 1e15
    hours = (records[-1]["time"] - records[0]["time"] + records[0].get("step_seconds", 0.0)) / 3600
    samples = column.get("trajectories", np.full(len(records), np.nan))
    return Run(folder, settings, steps, series, samples, missing, hours)


def pool(runs: Iterable[Run]) -> list[Setting]:
    """Returns the settings in the order of their first runs, labelled by name and what tells equal names apart."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(repr(sorted(_setting(run).items())), []).append(run)
    pooled = list(groups.values())
    settings = []
    for group in pooled:
        first, mine = group[0], _setting(group[0])
        namesakes = [_setting(other[0]) for other in pooled if other[0].name == first.name]
        fields = dict.fromkeys(field for other in namesakes for field in other)
        differing = [field for field in fields if any(other.get(field) != mine.get(field) for other in namesakes)]
        told = [f"{field.rpartition('.')[2]} {mine[field]}" for field in differing if field in mine]
        label = ", ".join([first.name, *told])
        if len(differing) > MANY:
            label = f"{first.name} ({first.folder.name})"
        settings.append(Setting(label, group))
    return settings


def _setting(run: Run) -> dict[str, Any]:
    """Returns what makes a setting."""
    return {path: value for path, value in run.settings.items() if not _within(path, IRRELEVANT)}


def _within(path: str, sections: Iterable[str]) -> bool:
    return any(path == section or path.startswith(f"{section}.") for section in sections)


def _read_settings(folder: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load((folder / "config.yaml").read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RunError(f"{folder} is no run's folder: {error}") from error
    settings = dict(_flat("", values))
    needed = {"name", "seed", "model.path", "rollout.max_tool_calls"}
    if lacking := needed - set(settings):
        raise RunError(f"{folder} is no run's folder: its config.yaml does not say {', '.join(sorted(lacking))}")
    return settings


def _flat(path: str, value: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for name, below in value.items():
            yield from _flat(f"{path}.{name}" if path else name, below)
    else:
        yield path, value


def _column(records: list[dict[str, Any]], name: str) -> Floats:
    return np.array([record.get(name, np.nan) for record in records], dtype=np.float64)

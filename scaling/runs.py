"""Runs as the analysis sees them: read from their folders, pooled where only the seed differs.

A run's folder has `config.yaml`, what it was told to do, and `metrics.jsonl`, what the learner measured at each step.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bus.metrics import steps_of
from configs.loading import ConfigError, load_config
from configs.schema import RunConfig
from scaling.data import Floats, Ints, Points

QUANTITIES = {
    "accuracy": "accuracy",
    "code_ratio": "code ratio",
    "calls_per_response": "calls per response",
    "response_length": "response length (tokens)",
}
"""What grows, or does not: name of the metric and what it is called in plots."""

AXES = {
    "step": "training step",
    "trained_tokens": "trained tokens (millions)",
    "training_flops": "training compute (PFLOP)",
    "generation_flops": "generation compute (PFLOP)",
}
"""What it may grow with, all cumulative: the compute is the usual count, see `read_run`."""

NEEDED = {
    "training_flops": ("parameters", "trained_sequence_tokens"),
    "generation_flops": ("parameters", "trajectories", "prompt_length", "response_length"),
}
IRRELEVANT: Any = {
    "name": True,
    "seed": True,
    "bus": True,
    "launch": True,
    "sandbox": {"concurrency", "request_timeout_s"},
    "actor": True,
    "weights": True,
    "evaluation": True,
    "learner": {"steps", "checkpoint", "batch_timeout_s"},
}
"""Fields of a configuration that make no other setting."""


class RunError(ValueError):
    """A folder that is no run with measurements; the text says which and why."""


@dataclass(frozen=True)
class Run:
    """One run's series over its steps."""

    folder: Path
    config: RunConfig
    steps: Ints
    """[T], ascending."""
    series: dict[str, Floats]
    """Name of a quantity or axis to [T]; not a number where the step did not measure it."""
    missing: dict[str, str]
    """Axis to the word that says why the run has no such series."""
    hours: float
    """From the first metric of the learner to the last, pauses included."""


@dataclass(frozen=True)
class Setting:
    """Runs that differ in their seed alone: replicates of one experiment."""

    label: str
    runs: list[Run]

    @property
    def config(self) -> RunConfig:
        """Of the first run."""
        return self.runs[0].config

    @property
    def tool_budget(self) -> int:
        """Executions that a response may ask for."""
        return self.config.rollout.max_tool_calls

    def points(self, x: str, y: str) -> Points:
        """All runs' pairs of two series. Raises KeyError where a run has no such series, see `Run.missing`."""
        return Points.of_runs([(run.series[x], run.series[y], run.steps) for run in self.runs])

    def missing(self, axis: str) -> str | None:
        """Why the setting has no such axis, or None."""
        return next((run.missing[axis] for run in self.runs if axis in run.missing), None)


def read_run(folder: Path) -> Run:
    """Reads a run's folder.

    Compute is counted in the usual way (Kaplan et al. 2020): 2 floating-point operations a parameter and token in a forward
    pass and 4 in a backward pass. Training is 6 N D with the D tokens, prompts and tool output included, of the trajectories
    that were trained on; generation is 2 N D with those of every trajectory that a batch took, filtered ones included. An
    optimiser's work, attention's part that grows with the square of the length, and what caches save are not in it.

    Raises RunError.
    """
    try:
        config = load_config(str(folder / "config.yaml"))
    except ConfigError as error:
        raise RunError(f"{folder} is no run's folder: {error}") from error
    records = steps_of(folder)
    if not records:
        raise RunError(f"{folder} has no training step in its metrics.jsonl yet")
    measured = {name for record in records for name, value in record.items() if isinstance(value, int | float)}
    column = {name: _column(records, name) for name in measured}
    steps = np.array([record["step"] for record in records], dtype=np.int64)
    series: dict[str, Floats] = {"step": steps.astype(np.float64)}
    series |= {name: column.get(name, np.full(len(records), np.nan)) for name in QUANTITIES}
    series["trained_tokens"] = np.cumsum(column["trained_tokens"]) / 1e6
    missing = {}
    for axis, names in NEEDED.items():
        if absent := [name for name in names if name not in column]:
            missing[axis] = f"{folder.name} has no metric {' and '.join(absent)}"
    if "training_flops" not in missing:
        tokens = column["trained_sequence_tokens"]
        series["training_flops"] = np.cumsum(6 * column["parameters"] * tokens) / 1e15
    if "generation_flops" not in missing:
        # A batch without any trajectory has no lengths, and generated nothing.
        lengths = np.nan_to_num(column["prompt_length"] + column["response_length"])
        series["generation_flops"] = np.cumsum(2 * column["parameters"] * column["trajectories"] * lengths) / 1e15
    hours = (records[-1]["time"] - records[0]["time"] + records[0].get("step_seconds", 0.0)) / 3600
    return Run(folder, config, steps, series, missing, hours)


def pool(runs: Iterable[Run]) -> list[Setting]:
    """Settings in the order of their first runs, labelled by name, with what tells settings of one name apart."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(repr(_setting(run.config)), []).append(run)
    pooled = list(groups.values())
    names = [group[0].config.name for group in pooled]
    settings = []
    for group, name in zip(pooled, names, strict=True):
        namesakes = [
            _setting(other[0].config) for other, other_name in zip(pooled, names, strict=True) if other_name == name
        ]
        mine = _setting(group[0].config)
        differing = [field for field in mine if any(other.get(field) != mine[field] for other in namesakes)]
        label = ", ".join([name, *(f"{field.rpartition('.')[2]} {mine[field]}" for field in differing)])
        settings.append(Setting(label, group))
    return settings


def _setting(config: RunConfig) -> dict[str, Any]:
    """What makes a setting, flat: field path to value."""
    return dict(_flat("", config.model_dump(mode="json", exclude=IRRELEVANT)))


def _flat(path: str, value: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for name, below in value.items():
            yield from _flat(f"{path}.{name}" if path else name, below)
    else:
        yield path, value


def _column(records: list[dict[str, Any]], name: str) -> Floats:
    return np.array([record.get(name, np.nan) for record in records], dtype=np.float64)

"""MLflow: on the server of MLFLOW_TRACKING_URI, in the experiment of MLFLOW_EXPERIMENT_NAME; else in its local store."""

import os
from pathlib import Path
from typing import Any

import yaml
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from tracking.tracker import PROJECT, SAMPLES, Row, Sample, TrackerError

RUN_TAG = "zerotir.run"
MOST_METRICS = 1000
MOST_PARAMS = 100
"""Bounds of one request of MLflow's."""
LONGEST_PARAM = 6000
LONGEST_ERROR = 300
"""Characters: MLflow's errors have a request's whole history."""


def start(folder: Path, run: str, config: dict[str, Any], after: int) -> "MlflowRun":
    """Returns the tracker; see `tracking.tracker.start_tracker`."""
    try:
        return MlflowRun(run, config)
    except MlflowException as error:
        raise _error(error) from error


class MlflowRun:
    """Writes one run of an experiment; it knows it again by its tag `zerotir.run`."""

    settles_s: float | None = 0.0

    def __init__(self, run: str, config: dict[str, Any]) -> None:
        self._client = MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self._client.get_experiment_by_name(name)
        experiment_id = experiment.experiment_id if experiment else self._client.create_experiment(name)
        found = self._client.search_runs([experiment_id], f"tags.`{RUN_TAG}` = '{run}'", max_results=1)
        opened = found[0] if found else self._client.create_run(experiment_id, tags={RUN_TAG: run}, run_name=run)
        self._id = opened.info.run_id
        self._client.update_run(self._id, status="RUNNING")
        # A parameter cannot change: the file has what is in force.
        new = [Param(key, value) for key, value in _flat("", config) if key not in opened.data.params]
        for begin in range(0, len(new), MOST_PARAMS):
            self._client.log_batch(self._id, params=new[begin : begin + MOST_PARAMS])
        self._client.log_text(self._id, yaml.safe_dump(config, sort_keys=False), "config.yaml")
        self.destination = f"{self._client.tracking_uri} {self._id}"
        self.where = f"experiment {name}, run {run}, at {self._client.tracking_uri}"

    def write(self, rows: list[Row]) -> None:
        """Logs all values, each at its step, or at its second, with its time."""
        metrics = [
            Metric(name, value, int(row.time * 1000), row.seconds if row.step is None else row.step)
            for row in rows
            for name, value in row.values.items()
        ]
        try:
            for begin in range(0, len(metrics), MOST_METRICS):
                self._client.log_batch(self._id, metrics=metrics[begin : begin + MOST_METRICS])
        except MlflowException as error:
            raise _error(error) from error

    def write_samples(self, samples: list[Sample]) -> None:
        """Stores each as a text file."""
        try:
            for sample in samples:
                name = f"{SAMPLES}/step-{sample.step:06d}-{sample.verdict}-ticket-{sample.ticket}.txt"
                self._client.log_text(self._id, sample.text, name)
        except (MlflowException, OSError) as error:
            raise _error(error) from error

    def flush(self) -> None:
        """Does nothing: MLflow has taken what `write` was given."""

    def close(self) -> None:
        """Says that the run has ended, for now."""
        try:
            self._client.set_terminated(self._id)
        except MlflowException as error:
            raise _error(error) from error


def _error(error: Exception) -> TrackerError:
    return TrackerError(f"MLflow: {str(error)[:LONGEST_ERROR]}")


def _flat(prefix: str, values: dict[str, object]) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, dict) and value:
            found += _flat(f"{prefix}{name}.", value)
        else:
            found.append((f"{prefix}{name}", str(value)[:LONGEST_PARAM]))
    return found

"""Experiments as configurations: a matrix of runs, from a YAML file to the resolved configuration of each run.

    name: quickstart
    set: [learner.steps=20]
    experiments:
      - config: quickstart
        seeds: [0, 1]
      - config: quickstart-text

Each experiment is one configuration times its seeds, limits of tool calls and models; the runs come in that order.
"""

from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, NonNegativeInt, ValidationError, model_validator

from configs.loading import ConfigError, explain, load_config, read_document
from configs.names import to_name
from configs.schema import RunConfig, Section

SHIPPED_MATRICES = Path(__file__).parent / "matrices"

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,39}$")]


class Experiment(Section):
    """One configuration under several seeds, limits of tool calls and models."""

    config: str
    """Name of a shipped configuration, or a YAML file."""
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0,)
    """Seeds: replicates, which the report pools."""
    max_tool_calls: tuple[NonNegativeInt, ...] = ()
    """Values of `rollout.max_tool_calls`; empty keeps the configuration's own. 0 with a prompt that offers code is another
    experiment than a prompt without: for the baseline name a configuration of its own."""
    models: tuple[str, ...] = ()
    """Values of `model.path`; empty keeps the configuration's own."""
    set: tuple[str, ...] = ()
    """Further overrides of this experiment, `field.path=value`."""


class Matrix(Section):
    """A set of runs that is reported as one."""

    name: Name
    """Its folder under `launch.runs_dir` is `matrix-NAME`."""
    set: tuple[str, ...] = ()
    """Overrides of every run, `field.path=value`."""
    experiments: Annotated[tuple[Experiment, ...], Field(min_length=1)]
    """What is run, in this order."""

    @model_validator(mode="after")
    def each_once(self) -> Self:
        for experiment in self.experiments:
            for field in ("seeds", "max_tool_calls", "models"):
                values = getattr(experiment, field)
                if len(set(values)) != len(values):
                    raise ValueError(f"{experiment.config}: {field} names a value twice")
        return self


@dataclass(frozen=True)
class PlannedRun:
    """One run of a matrix."""

    name: str
    """Unique in the matrix: the name of its folder."""
    config: RunConfig


def load_matrix(name: str, overrides: list[str] | None = None) -> tuple[Matrix, list[PlannedRun]]:
    """Loads a shipped matrix by name, or a YAML file by path; `overrides` come last and apply to every run.

    Raises ConfigError for whatever is wrong with it or with a run's configuration, and for two runs of one name.
    """
    try:
        matrix = Matrix.model_validate(read_document(name, SHIPPED_MATRICES))
    except ValidationError as error:
        raise ConfigError(f"{name}: {explain(error, Matrix)}") from error
    runs: dict[str, PlannedRun] = {}
    for experiment in matrix.experiments:
        for model, budget, seed in product(
            experiment.models or (None,), experiment.max_tool_calls or (None,), experiment.seeds
        ):
            own = [f"seed={seed}"]
            own += [f"model.path={model}"] if model is not None else []
            own += [f"rollout.max_tool_calls={budget}"] if budget is not None else []
            config = load_config(experiment.config, [*matrix.set, *experiment.set, *own, *(overrides or [])])
            parts = [config.name]
            parts += [Path(model).name.lower()] if model is not None else []
            parts += [f"calls{budget}"] if budget is not None else []
            run = PlannedRun(to_name("-".join([*parts, f"seed{seed}"])), config)
            if run.name in runs:
                raise ConfigError(
                    f"{name}: two runs would be called {run.name}: give one of them a `name` in its `set`"
                )
            runs[run.name] = run
    return matrix, list(runs.values())

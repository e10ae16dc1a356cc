"""Says what became of each result of a run, by its folder alone."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from shlex import quote
from statistics import fmean
from typing import Any

from bus.codec import MessageError
from bus.messages import Failure, Trajectory
from bus.metrics import steps_of
from configs.errors import UserError
from configs.schema import RunConfig
from launch.past_run import config_of
from learner.step_metrics import slug
from learner.tickets.archive import read_archive
from learner.tickets.audit import Ending, endings
from learner.tickets.ledger import Ledger

MORE_STEPS_THAN_ANY_RUN_HAS = 2**40
FILTERED = "filtered_by_"


def archive_of(run: Path) -> tuple[RunConfig, Iterator[Ending]]:
    """Returns a run's configuration, and what became of each result in its archive.

    Works while the run is on as well. Of a step whose metrics are not there, or which by them left out others than
    `learner.filters` of the run as it was last started, it is not known what it trained on (`Ending.is_known`). Raises
    UserError where there is no archive; the iterator does where it is damaged. Holds a few batches in memory.
    """
    config = config_of(run)
    folder = run / "results"
    if not folder.is_dir():
        raise UserError(f"{quote(str(run))} holds no results: they lie on the learner's host, from the first one on")
    # A run that was resumed with fewer steps has results of tickets beyond them; more steps change no batch before.
    ledger = Ledger.of(config.learner.model_copy(update={"steps": MORE_STEPS_THAN_ANY_RUN_HAS}))
    measured = {record["step"]: record for record in steps_of(run)}

    def found() -> Iterator[Ending]:
        try:
            for step, group in groupby(endings(read_archive(folder), ledger), key=lambda ending: ending.step):
                of_step = list(group)
                if step is not None and _left_out(of_step) != _measured(measured.get(step, {})):
                    of_step = [_of_unknown_end(ending) for ending in of_step]
                yield from of_step
        except MessageError as error:
            raise UserError(f"{quote(str(folder))} holds results of another version: {error}") from error
        except (ValueError, OSError) as error:
            raise UserError(f"{quote(str(folder))} cannot be read: {error}") from error

    return config, found()


def _of_unknown_end(ending: Ending) -> Ending:
    reason = ending.reason if isinstance(ending.result, Failure) else None
    return replace(ending, reason=reason, is_known=False)


def _left_out(of_step: list[Ending]) -> dict[str, float]:
    """Returns what a step's metrics say of its filters, for results that ended as given."""
    reasons = Counter(f"{FILTERED}{slug(ending.reason or '')}" for ending in of_step if ending.end == "filtered")
    lengths = [
        ending.result.response_length
        for ending in of_step
        if ending.end == "trained" and isinstance(ending.result, Trajectory)
    ]
    return {**reasons, **({"trained_length": fmean(lengths)} if lengths else {})}


def _measured(record: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in record.items() if name.startswith(FILTERED) or name == "trained_length"}

"""Says what became of each result of a run, by its folder alone."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
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
from learner.tickets.audit import Ending, Endings
from learner.tickets.ledger import Ledger

MORE_STEPS_THAN_ANY_RUN_HAS = 2**40
FILTERED = "filtered_by_"


def ledger_of(config: RunConfig) -> Ledger:
    """Returns the ledger at the beginning of a run.

    A run that was resumed with fewer steps has results of tickets beyond them; more steps change no batch before.
    """
    return Ledger.of(config.learner.model_copy(update={"steps": MORE_STEPS_THAN_ANY_RUN_HAS}))


def archive_of(run: Path) -> tuple[RunConfig, Iterator[Ending]]:
    """Returns a run's configuration, and what became of each result in its archive: step by step, then those that wait.

    Works while the run is on as well. Of a step whose metrics are not there, or which by them left out others than
    `learner.filters` of the run as it was last started, it is not known what it trained on (`Ending.is_known`). Raises
    UserError where there is no archive; the iterator does where it is damaged. Holds a few batches in memory.
    """
    config = config_of(run)
    folder = run / "results"
    if not folder.is_dir():
        raise UserError(f"{quote(str(run))} holds no results: they lie on the learner's host, from the first one on")
    endings = Endings(ledger_of(config))
    measured = {record["step"]: record for record in steps_of(run)}

    def found() -> Iterator[Ending]:
        try:
            for sequence, result in read_archive(folder):
                for of_step in endings.take(sequence, result):
                    yield from checked(of_step, measured.get(of_step[0].step, {}))
            yield from endings.waiting()
        except MessageError as error:
            raise UserError(f"{quote(str(folder))} holds results of another version: {error}") from error
        except (ValueError, OSError) as error:
            raise UserError(f"{quote(str(folder))} cannot be read: {error}") from error

    return config, found()


def checked(of_step: Sequence[Ending], measured: Mapping[str, Any]) -> Sequence[Ending]:
    """Returns what became of a step's results, as it is known: by `measured`, the step's metrics, it may not be.

    The filters of a step are not in the archive; its metrics say how many they left out.
    """
    if left_out(of_step) == what_was_left_out(measured):
        return of_step
    return [of_unknown_end(ending) for ending in of_step]


def of_unknown_end(ending: Ending) -> Ending:
    """Returns it as one of which it is not known whether it was trained on."""
    reason = ending.reason if isinstance(ending.result, Failure) else None
    return replace(ending, reason=reason, is_known=False)


def left_out(of_step: Sequence[Ending]) -> dict[str, float]:
    """Returns what a step's metrics say of its filters, for results that ended as given."""
    reasons = Counter(f"{FILTERED}{slug(ending.reason or '')}" for ending in of_step if ending.end == "filtered")
    lengths = [
        ending.result.response_length
        for ending in of_step
        if ending.end == "trained" and isinstance(ending.result, Trajectory)
    ]
    return {**reasons, **({"trained_length": fmean(lengths)} if lengths else {})}


def what_was_left_out(measured: Mapping[str, Any]) -> dict[str, float]:
    """Returns what a step's metrics say of its filters."""
    return {name: value for name, value in measured.items() if name.startswith(FILTERED) or name == "trained_length"}

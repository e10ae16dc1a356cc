"""Says what became of each result of a run, by its folder alone."""

from collections.abc import Iterator
from pathlib import Path
from shlex import quote

from bus.codec import MessageError
from bus.metrics import steps_of
from configs.errors import UserError
from configs.schema import RunConfig
from launch.past_run import config_of
from learner.tickets.archive import read_archive
from learner.tickets.audit import Ending, Endings, checked, ledger_of


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

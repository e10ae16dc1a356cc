"""Reads an archive as the learner read its results: the batches to which they lead, and what became of each."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from bus.messages import Failure, Trajectory
from bus.metrics import slug
from configs.schema import RunConfig
from learner.tickets.ledger import Batch, Ledger, Result

MORE_STEPS_THAN_ANY_RUN_HAS = 2**40
FILTERED = "filtered_by_"


@dataclass(frozen=True)
class Ending:
    """Says what became of a result."""

    sequence: int
    """Its position in the result stream."""
    result: Result
    step: int | None
    """The step that used its group up; None while its group or batch waits."""
    reason: str | None
    """Why it was not trained on: a filter's reason or a failure's."""
    is_known: bool = True
    """Whether the step is known to have trained on it, or left it out: what its filters were is not in the archive."""

    @property
    def end(self) -> str:
        """Returns the end of its ticket: `trained`, `filtered`, `failed`, `unknown`, or `waiting` where that is open."""
        if isinstance(self.result, Failure):
            return "failed"
        if self.step is None:
            return "waiting"
        if not self.is_known:
            return "unknown"
        return "filtered" if self.reason else "trained"

    @property
    def staleness(self) -> int | None:
        """Returns by how many versions its oldest weights were behind those that the step trained from."""
        if self.step is None or isinstance(self.result, Failure):
            return None
        return max(0, self.step - 1 - self.result.lowest_version)


def ledger_of(config: RunConfig) -> Ledger:
    """Returns the ledger at the beginning of a run.

    A run that was resumed with fewer steps has results of tickets beyond them; more steps change no batch before.
    """
    return Ledger.of(config.learner.model_copy(update={"steps": MORE_STEPS_THAN_ANY_RUN_HAS}))


class Batches:
    """Forms a run's batches from its results: as the learner did, each at the first position at which it can be formed."""

    def __init__(self, ledger: Ledger) -> None:
        """`ledger` is a fresh one."""
        self._ledger = ledger
        self._step = 0
        ledger.admit(0)

    def take(self, sequence: int, result: Result) -> Iterator[Batch]:
        """Takes the next result of the archive, and yields the batches that can be formed now.

        Raises ValueError for a result that the ledger does not accept: an archive holds accepted ones alone.
        """
        reason = self._ledger.accept(sequence, result)
        if reason is not None:
            raise ValueError(f"result {sequence} of the archive answers ticket {result.ticket}: {reason}")
        while self._ledger.ready(self._step) is not None:
            yield self._ledger.take(self._step)
            self._step += 1
            self._ledger.admit(self._step)


def batches_of(results: Iterable[tuple[int, Result]], ledger: Ledger) -> Iterator[Batch]:
    """Reads `results`, (sequence, result) in the archive's order, through the fresh `ledger`, batch by batch.

    Raises ValueError as `Batches.take` does.
    """
    batches = Batches(ledger)
    for sequence, result in results:
        yield from batches.take(sequence, result)


class Endings:
    """Finds what became of each result of a run. Holds the results of (max_staleness + 1) batches at most."""

    def __init__(self, ledger: Ledger) -> None:
        """`ledger` is a fresh one."""
        self._batches = Batches(ledger)
        self._waiting: dict[int, tuple[int, Result]] = {}
        """Ticket to (sequence, result)."""

    def take(self, sequence: int, result: Result) -> Iterator[list[Ending]]:
        """Takes the next result of the archive, and yields what each step that can be formed now made of its results.

        They are in the order of their tickets. Raises ValueError as `Batches.take` does.
        """
        self._waiting[result.ticket] = sequence, result
        for batch in self._batches.take(sequence, result):
            reasons = {member.ticket: reason for reason, left_out in batch.filtered.items() for member in left_out}
            of_step = []
            for taken in (taken for group in batch.taken for taken in group):
                at, _ = self._waiting.pop(taken.ticket)
                reason = taken.reason if isinstance(taken, Failure) else reasons.get(taken.ticket)
                of_step.append(Ending(at, taken, batch.step, reason))
            yield of_step

    def waiting(self) -> list[Ending]:
        """Returns the results whose groups or batches wait, in the order of their tickets."""
        return [
            Ending(sequence, result, None, result.reason if isinstance(result, Failure) else None)
            for _, (sequence, result) in sorted(self._waiting.items())
        ]


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

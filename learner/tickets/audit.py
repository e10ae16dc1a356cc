"""Reads an archive as the learner read its results: the batches to which they lead, and what became of each."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from bus.messages import Failure
from learner.tickets.ledger import Batch, Ledger, Result


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


def batches_of(results: Iterable[tuple[int, Result]], ledger: Ledger) -> Iterator[Batch]:
    """Reads `results`, (sequence, result) in the archive's order, through the fresh `ledger`, batch by batch.

    As the learner did: one result at a time, each batch at the first position at which it can be formed. Raises ValueError
    for a result that the ledger does not accept: an archive holds accepted ones alone.
    """
    step = 0
    ledger.admit(step)
    for sequence, result in results:
        reason = ledger.accept(sequence, result)
        if reason is not None:
            raise ValueError(f"result {sequence} of the archive answers ticket {result.ticket}: {reason}")
        while ledger.ready(step) is not None:
            yield ledger.take(step)
            step += 1
            ledger.admit(step)


def endings(results: Iterable[tuple[int, Result]], ledger: Ledger) -> Iterator[Ending]:
    """Yields what became of `results`, taken as `batches_of` takes them: step by step by ticket, then those that wait.

    At most the results of (max_staleness + 1) batches are in memory. Raises ValueError as `batches_of` does.
    """
    sequences: dict[int, int] = {}
    waiting: dict[int, Result] = {}

    def noted() -> Iterator[tuple[int, Result]]:
        for sequence, result in results:
            sequences[result.ticket], waiting[result.ticket] = sequence, result
            yield sequence, result

    for batch in batches_of(noted(), ledger):
        reasons = {member.ticket: reason for reason, left_out in batch.filtered.items() for member in left_out}
        for result in (result for group in batch.taken for result in group):
            del waiting[result.ticket]
            reason = result.reason if isinstance(result, Failure) else reasons.get(result.ticket)
            yield Ending(sequences.pop(result.ticket), result, batch.step, reason)
    for ticket in sorted(waiting):
        result = waiting[ticket]
        yield Ending(sequences[ticket], result, None, result.reason if isinstance(result, Failure) else None)

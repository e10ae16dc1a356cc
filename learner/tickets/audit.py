"""Forms the batches to which an archive's results lead, for comparison with those of the run."""

from collections.abc import Iterable, Iterator

from learner.tickets.ledger import Batch, Ledger, Result


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

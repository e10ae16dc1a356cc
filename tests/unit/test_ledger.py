"""The ledger of tickets: order, staleness, filters and balance, over random and hand-made logs."""

import random
from collections.abc import Iterator

import msgpack
import pytest

from learner.tickets.ledger import BalanceError, Ledger
from tests.factories import answer, failure, make_ledger


def settle(ledger: Ledger, group: int, sequence: Iterator[int]) -> None:
    for sample, ticket in enumerate(ledger.tickets(group)):
        assert ledger.accept(next(sequence), answer(ledger, ticket, reward=float(sample % 2))) is None


def test_on_policy_issues_one_batch_at_a_time():
    ledger, sequence = make_ledger(staleness=0), iter(range(1, 1000))
    assert ledger.admit(0) == range(2)
    assert ledger.admit(0) == range(2, 2)
    settle(ledger, 0, sequence)
    assert ledger.ready(0) is None
    settle(ledger, 1, sequence)
    assert ledger.ready(0) == [0, 1]
    ledger.take(0)
    assert ledger.admit(1) == range(2, 4)


def test_a_batch_does_not_leave_more_old_groups_than_later_batches_hold():
    # G = 1, S = 2: groups 0, 1, 2 are issued under version 0 and must be trained by step 2.
    ledger, sequence = make_ledger(groups=1, size=2, staleness=2), iter(range(1, 1000))
    ledger.admit(0)
    settle(ledger, 0, sequence)
    assert ledger.take(0).taken[0][0].group == 0
    ledger.admit(1)
    settle(ledger, 3, sequence)
    # Only group 3 is settled. Taking it would leave groups 1 and 2 for step 2, which holds one.
    assert ledger.ready(1) is None
    settle(ledger, 2, sequence)
    assert ledger.ready(1) == [2]


@pytest.mark.parametrize("seed", range(20))
def test_staleness_is_bounded_and_the_balance_closes_whatever_the_order(seed: int):
    rng = random.Random(seed)
    ledger = make_ledger(groups=rng.randint(1, 4), size=rng.randint(2, 3), staleness=rng.randint(0, 3), steps=25)
    unanswered: list[int] = []
    sequence = 0
    for step in range(25):
        unanswered += [ticket for group in ledger.admit(step) for ticket in ledger.tickets(group)]
        assert ledger.open <= (ledger.max_staleness + 1) * ledger.groups_per_batch * ledger.group_size
        while ledger.ready(step) is None:
            assert unanswered, "the learner would wait for ever"
            # Mostly the youngest first: the worst case for old groups.
            ticket = unanswered.pop(-1 if rng.random() < 0.8 else rng.randrange(len(unanswered)))
            sequence += 1
            failed = rng.random() < 0.1
            version = rng.randint(ledger.issued_under((ticket - 1) // ledger.group_size), step)
            result = failure(ledger, ticket) if failed else answer(ledger, ticket, rng.choice([0.0, 1.0]), version)
            assert ledger.accept(sequence, result) is None
            if rng.random() < 0.2:
                sequence += 1
                assert ledger.accept(sequence, result) == "already answered"
        batch = ledger.take(step)
        for member in (member for group in batch.trained for member in group):
            assert step - member.lowest_version <= ledger.max_staleness
        ledger.balance()
    balance = ledger.balance()
    assert balance["open"] == 0
    assert balance["issued"] == 25 * ledger.groups_per_batch * ledger.group_size


def test_the_reason_of_every_end_is_kept():
    ledger = make_ledger(groups=3, size=2, staleness=0)
    ledger.admit(0)
    ledger.accept(1, answer(ledger, 1, 1.0))
    ledger.accept(2, answer(ledger, 2, 0.0))
    ledger.accept(3, answer(ledger, 3, 0.0))
    ledger.accept(4, answer(ledger, 4, 0.0))
    ledger.accept(5, answer(ledger, 5, 1.0))
    ledger.accept(6, failure(ledger, 6))
    batch = ledger.take(0)
    assert [[member.ticket for member in group] for group in batch.trained] == [[1, 2]]
    assert ledger.filtered == {"no signal": 2, "group too small": 1}
    assert ledger.failed == {"deadline": 1}
    assert ledger.balance() == {"issued": 6, "trained": 2, "filtered": 3, "failed": 1, "open": 0, "ignored": 0}


def test_results_that_must_not_count_are_named():
    ledger = make_ledger(groups=1, size=2, staleness=1)
    ledger.admit(0)
    sequence = iter(range(1, 100))
    settle(ledger, 0, sequence)
    ledger.take(0)
    ledger.admit(1)
    assert ledger.accept(next(sequence), answer(ledger, 1)) == "group already used"
    assert ledger.accept(next(sequence), answer(ledger, 99)) == "never issued"
    assert ledger.issued_under(2) == 1
    assert ledger.accept(next(sequence), answer(ledger, 5, version=0)) == "weights older than the ticket allows"
    wrong_group = answer(ledger, 3).model_copy(update={"group": 2})
    assert ledger.accept(next(sequence), wrong_group) == "ticket of another group"
    assert ledger.position == next(sequence) - 1


def test_a_restored_book_goes_on_exactly():
    ledger, sequence = make_ledger(staleness=2), iter(range(1, 1000))
    ledger.admit(0)
    settle(ledger, 0, sequence)
    ledger.accept(next(sequence), answer(ledger, 3, 1.0))
    again = make_ledger(staleness=2)
    again.restore(msgpack.unpackb(msgpack.packb(ledger.state()), strict_map_key=False))
    for each in (ledger, again):
        after = iter(range(50, 100))
        assert each.accept(next(after), answer(each, 3)) == "already answered"
        assert each.accept(next(after), answer(each, 4, 0.0)) is None
        assert each.ready(0) == [0, 1]
        each.take(0)
    assert again.state() == ledger.state()


def test_a_balance_that_does_not_close_is_an_error():
    ledger = make_ledger()
    ledger.admit(0)
    ledger.trained += 1
    with pytest.raises(BalanceError, match="8 tickets issued, but 1 trained"):
        ledger.balance()

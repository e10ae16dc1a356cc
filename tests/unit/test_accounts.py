"""The balance that people see, and what was left out beside what was trained on."""

import pytest

from bus.messages import Failure, Trajectory
from configs.schema import FiltersConfig
from launch.accounts import account_lines
from learner.step_metrics import batch_metrics
from learner.tickets.filters import Filters
from learner.tickets.ledger import BalanceError, Ledger
from tests import factories


def trajectory(ticket: int, reward: float, length: int) -> Trajectory:
    return factories.trajectory(1, length, ticket=ticket, group=(ticket - 1) // 2, reward=reward)


def step(ledger: Ledger) -> dict[str, float]:
    """Groups: 0 trains, 1 has no signal, 2 lost a member."""
    ledger.admit(0)
    for ticket, reward, length in ((1, 1.0, 10), (2, 0.0, 20), (3, 0.0, 40), (4, 0.0, 60), (5, 1.0, 80)):
        assert ledger.accept(ticket, trajectory(ticket, reward, length)) is None
    failure = Failure(ticket=6, group=2, reason="deadline passed", attempts=3, actor="a", published_at=0.0)
    assert ledger.accept(6, failure) is None
    values = batch_metrics(ledger.take(0), taken_at=30.0)
    return values | {f"tickets_{name}": count for name, count in ledger.balance().items()}


def test_what_was_left_out_is_told_with_its_reasons_and_figures():
    values = step(Ledger(3, 2, 0, 1, Filters(FiltersConfig(), group_relative=True)))
    assert (values["trained_length"], values["trained_reward"]) == (15.0, 0.5)
    assert values["filtered_length"] == (40 + 60 + 80) / 3
    assert (values["filtered_by_no_signal"], values["filtered_by_group_too_small"]) == (2, 1)
    assert (values["failed_by_deadline_passed"], values["failed_attempts"]) == (1, 3.0)
    balance, trained, filtered, failed = account_lines([values])
    assert balance.endswith("6 issued = 2 trained + 3 filtered + 1 failed + 0 open; 0 results changed nothing")
    assert "length 15  reward 0.50" in trained
    assert "length 60  reward 0.33" in filtered
    assert filtered.endswith("[no signal: 2]  [group too small: 1]")
    assert "after 3.0 deliveries" in failed
    assert failed.endswith("[deadline passed: 1]")


def test_steps_weigh_by_their_members():
    base = {f"tickets_{name}": 0 for name in ("issued", "trained", "filtered", "failed", "open", "ignored")}
    steps = [
        base | {"trained_trajectories": 1, "trained_length": 10},
        base | {"trained_trajectories": 3, "trained_length": 50},
    ]
    assert "length 40" in account_lines(steps)[1]


def test_a_balance_that_does_not_close_is_an_error():
    values = step(Ledger(3, 2, 0, 1, Filters(FiltersConfig(), group_relative=True)))
    with pytest.raises(BalanceError, match="6 issued, but 1 trained"):
        account_lines([values | {"tickets_trained": 1}])
    assert account_lines([]) == []

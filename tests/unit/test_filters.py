"""What of a group is trained on: each filter alone, together, and through the ledger of tickets."""

import re
from typing import Any

import numpy as np
import pytest

from bus.codec import decode, encode
from bus.messages import FinishReason, Trajectory
from configs.schema import FiltersConfig
from learner.step_metrics import batch_metrics
from learner.tickets.filters import REASONS, Filters, may_be_chance, why_untrained
from learner.tickets.ledger import Ledger
from tests import factories

NONE = FiltersConfig(no_signal=False)


def trajectory(ticket: int = 1, reward: float = 1.0, **changes: Any) -> Trajectory:
    """Two prompt and three response tokens, the second one inserted."""
    logprobs = np.array([-1.0, 0.0, -2.0], np.float32)
    fields = {"ticket": ticket, "reward": reward, "reward_parts": {"correct": reward}, "logprobs": logprobs}
    return factories.trajectory(2, 3, mask=[1, 0, 1], **(fields | changes))


def applied(filters: Filters, group: list[Trajectory]) -> tuple[tuple[Trajectory, ...], dict[str, int]]:
    kept, dropped = filters.apply(group)
    return kept, {reason: len(left_out) for reason, left_out in dropped.items()}


def logprobs(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


@pytest.mark.parametrize("bad", [np.nan, -np.inf])
def test_behaviour_logprobs_that_are_not_finite_cross_the_bus_and_are_filtered(bad: float):
    broken = decode(encode(trajectory(logprobs=logprobs(-1.0, 0.0, bad))), Trajectory)
    # Nothing reads what stands at an inserted token.
    harmless = trajectory(logprobs=logprobs(-1.0, bad, -2.0), reward=0.0)
    good = trajectory()
    kept, dropped = applied(Filters(FiltersConfig(), group_relative=True), [broken, harmless, good])
    assert kept == (harmless, good)
    assert dropped == {"not finite": 1}


@pytest.mark.parametrize(
    ("field", "changes", "reason"),
    [
        ("overlong", {"finish_reason": FinishReason.LENGTH}, "overlong"),
        ("void_turns", {"void_turns": 1}, "void turn"),
        ("hallucinated_output", {"hallucinated_outputs": 2}, "hallucinated output"),
    ],
)
def test_a_filter_of_trajectories_leaves_the_rest_of_the_group(field: str, changes: dict[str, Any], reason: str):
    marked, others = trajectory(reward=0.0, **changes), [trajectory(), trajectory(reward=0.0)]
    group = [others[0], marked, others[1]]
    on = Filters(FiltersConfig.model_validate({field: True}), group_relative=True)
    assert applied(on, group) == (tuple(others), {reason: 1})
    assert applied(Filters(FiltersConfig(), group_relative=True), group) == (tuple(group), {})


@pytest.mark.parametrize(
    ("correct", "band", "kept"),
    [
        # 1 of 5 is the lower end, 4 of 5 the upper one, both inside the paper's band.
        ([1, 0, 0, 0, 0], (0.2, 0.8), True),
        ([1, 1, 1, 1, 0], (0.2, 0.8), True),
        ([0, 0, 0, 0, 0], (0.2, 0.8), False),
        ([1, 1, 1, 1, 1], (0.2, 0.8), False),
        ([1, 0, 0, 0, 0], (0.3, 0.8), False),
        ([1, 1, 1, 1, 0], (0.2, 0.7), False),
    ],
)
def test_the_accuracy_band_keeps_its_ends(correct: list[int], band: tuple[float, float], kept: bool):
    # Being correct is a part of the reward, absent where there was nothing to grade; a penalty makes it no less correct.
    group = [trajectory(reward=each - 0.5, reward_parts={"correct": 1.0} if each else {}) for each in correct]
    config = FiltersConfig(no_signal=False, accuracy_band=band)
    expected = (tuple(group), {}) if kept else ((), {"accuracy band": 5})
    for relative in (True, False):
        assert applied(Filters(config, group_relative=relative), group) == expected


def test_the_accuracy_of_a_group_counts_what_other_filters_leave_out():
    # Half of the group is right; of what is left after the overlong ones, everything.
    group = [trajectory(), trajectory(), *[trajectory(reward=0.0, finish_reason=FinishReason.LENGTH)] * 2]
    config = FiltersConfig(no_signal=False, overlong=True, accuracy_band=(0.4, 0.6))
    kept, dropped = applied(Filters(config, group_relative=True), group)
    assert kept == tuple(group[:2])
    assert dropped == {"overlong": 2}


def test_signal_and_size_matter_where_advantages_are_relative_to_the_group():
    alone, equal = [trajectory()], [trajectory(), trajectory()]
    relative = Filters(FiltersConfig(), group_relative=True)
    assert applied(relative, alone) == ((), {"group too small": 1})
    assert applied(relative, equal) == ((), {"no signal": 2})
    # A critic or the batch's mean is baseline enough.
    for group in (alone, equal):
        assert applied(Filters(FiltersConfig(), group_relative=False), group) == (tuple(group), {})
    assert applied(relative, []) == ((), {})


def test_size_and_signal_are_judged_on_what_is_left():
    filters = Filters(FiltersConfig(void_turns=True), group_relative=True)
    kept, dropped = applied(filters, [trajectory(), trajectory(reward=0.0, void_turns=1)])
    assert kept == ()
    assert dropped == {"void turn": 1, "group too small": 1}
    group = [trajectory(), trajectory(), trajectory(reward=0.0, void_turns=1)]
    kept, dropped = applied(filters, group)
    assert kept == ()
    assert dropped == {"void turn": 1, "no signal": 2}
    # Two wrong answers differ where one is penalised.
    group = [trajectory(reward=reward, reward_parts={"correct": 0.0}) for reward in (0.0, -0.5)]
    assert applied(filters, group) == (tuple(group), {})


def test_every_reason_is_counted_in_the_book_and_reported_and_the_balance_closes():
    config = FiltersConfig(overlong=True, void_turns=True, hallucinated_output=True)
    ledger = Ledger(1, 6, 0, 2, Filters(config, group_relative=True))
    ledger.admit(0)
    # The first reason that applies counts.
    members = [
        trajectory(1),
        trajectory(2, reward=0.0),
        trajectory(3, finish_reason=FinishReason.LENGTH, void_turns=1),
        trajectory(4, void_turns=3, hallucinated_outputs=1),
        trajectory(5, hallucinated_outputs=1),
        trajectory(6, logprobs=logprobs(np.nan, 0.0, -1.0), finish_reason=FinishReason.LENGTH),
    ]
    for sequence, member in enumerate(members, start=1):
        assert ledger.accept(sequence, member) is None
    batch = ledger.take(0)
    assert batch.trained == (tuple(members[:2]),)
    assert ledger.filtered == {"overlong": 1, "void turn": 1, "hallucinated output": 1, "not finite": 1}
    assert ledger.balance() == {"issued": 6, "trained": 2, "filtered": 4, "failed": 0, "open": 0, "ignored": 0}
    metrics = batch_metrics(batch, taken_at=0.0)
    assert metrics["filtered"] == 4
    assert metrics["incomplete_groups"] == 1
    assert {reason: metrics.get(f"filtered_by_{reason.replace(' ', '_')}", 0) for reason in REASONS} == {
        reason: ledger.filtered[reason] for reason in REASONS
    }


@pytest.mark.parametrize(
    ("counts", "chance", "text"),
    [
        ({"no signal": 3, "deadline passed": 1}, True, "no signal 75%, deadline passed 25%: .*all right or all wrong"),
        (
            {"accuracy band": 2, "no signal": 1, "overlong": 2},
            True,
            r"accuracy band 40%.*learner\.filters\.accuracy_band",
        ),
        ({"no signal": 2, "overlong": 2}, False, "no signal 50%, overlong 50%. .*learner.filters.*actors' logs"),
        ({"prompt too long": 8}, False, "prompt too long 100%. .*actors' logs"),
    ],
)
def test_why_nothing_was_trained_on_comes_with_what_to_do(counts: dict[str, float], chance: bool, text: str):
    assert may_be_chance(counts) is chance
    assert re.match(text, why_untrained(counts))

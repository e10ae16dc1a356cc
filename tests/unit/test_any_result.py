"""Whatever passes the door does no harm behind it: any valid result, through a whole step, its metrics and the archive."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bus.codec import MessageError, decode, encode
from bus.messages import Failure, Metrics, Trajectory
from bus.metrics import measured, measured_by, metrics_line
from bus.streams import Names
from configs.algorithm import AlgorithmConfig
from configs.schema import FiltersConfig, RolloutConfig
from learner.algorithm.correction import importance_weights, log_ratio, sequence_ratios
from learner.algorithm.objective import batch_advantages
from learner.step_metrics import batch_metrics
from learner.tickets.archive import Archive, read_archive
from learner.tickets.filters import Filters
from learner.tickets.ledger import Ledger
from learner.tickets.result_log import require_usable
from learner.training.batches import micro_batches
from tests.bad_results import good, packed
from tests.messages import messages, trajectories

RUN = "here"
VOCABULARY = 2**31
LIMITS = RolloutConfig(max_prompt_tokens=20, max_response_tokens=40)
GROUPS, SAMPLES = 2, 3
POISON: dict[str, dict[str, Any]] = {
    "a reward": {"reward": 1e308},
    "a part": {"reward_parts": {"correct": -1e308}},
    "a part's name": {"reward_parts": {"a\nstep": 1.0}},
    "a time": {"published_at": 1e308},
    "a time before all": {"started_at": -1e308},
    "a kind of error": {"tool_calls": ({"error": "x y\x1b[2J"},)},
    "a call's seconds": {"tool_calls": ({"seconds": 1e308},)},
    "an actor's name": {"actor": "a.b\n"},
    "a count": {"void_turns": 2**63},
}


def results() -> st.SearchStrategy[list[Trajectory | Failure]]:
    """One result for each ticket, of a run and within its limits; everything else is as it comes."""

    def of(ticket: int) -> st.SearchStrategy[Trajectory | Failure]:
        fields = {"ticket": ticket, "group": (ticket - 1) // SAMPLES, "run": RUN}
        whole = trajectories(**fields, temperature=LIMITS.temperature)
        failures = messages(Failure).map(
            lambda failure: failure.model_copy(
                update=fields | {"response_length": min(failure.response_length, LIMITS.max_response_tokens)}
            )
        )
        return st.one_of(whole, whole, failures)

    return st.tuples(*(of(ticket) for ticket in range(1, GROUPS * SAMPLES + 1))).map(list)


@settings(max_examples=150, deadline=None)
@given(results(), st.floats(0, 2e9))
def test_any_valid_results_make_a_step_whose_numbers_are_finite(tmp_path_factory, given: Any, now: float):
    folder: Path = tmp_path_factory.mktemp("archive")
    archive = Archive(folder)
    ledger = Ledger(GROUPS, SAMPLES, 0, 1, Filters(FiltersConfig(no_signal=False), group_relative=False))
    ledger.admit(0)
    for sequence, sent in enumerate(given, start=1):
        result = decode(encode(sent), Trajectory, Failure)
        require_usable(result, RUN, LIMITS, VOCABULARY)
        assert ledger.accept(sequence, result) is None
        archive.append(0, sequence, result)
    assert [encode(result) for _, result in read_archive(folder)] == [encode(sent) for sent in given]
    batch = ledger.take(0)
    values = batch_metrics(batch, now)
    assert all(math.isfinite(value) for value in values.values())
    # They are stored, read and recorded.
    line = metrics_line(decode(encode(measured("learner", "l", values, 0, now)), Metrics), 1, RUN)
    assert json.loads(line)["step"] == 0
    members = [member for group in batch.trained for member in group]
    if members:
        _train(members)


def _train(members: list[Trajectory]) -> None:
    rewards = torch.tensor([member.reward for member in members], dtype=torch.float64)
    groups = torch.tensor([member.group for member in members])
    lengths = [int(member.loss_mask.sum()) for member in members]
    critic = [torch.zeros(length) for length in lengths]
    for advantage in ("reinforce++-baseline", "reinforce++", "grpo", "gae", "vtrace"):
        algorithm = AlgorithmConfig.model_construct(**(vars(AlgorithmConfig()) | {"advantage": advantage}))
        advantages, returns = batch_advantages(algorithm, rewards, groups, critic, critic, lengths)
        assert all(torch.isfinite(each).all() for each in [*advantages, *(returns or [])])
    for micro in micro_batches(members, rewards.float(), budget=256):
        ours = torch.full_like(micro.behaviour_logprobs, -5.0)
        weights, metrics = importance_weights(ours, micro.behaviour_logprobs, cap=2.0)
        assert torch.isfinite(weights).all()
        assert all(math.isfinite(value) for value in metrics.values())
        assert torch.isfinite(log_ratio(ours, micro.behaviour_logprobs).exp()).all()
        assert torch.isfinite(sequence_ratios(ours, micro.behaviour_logprobs, micro.sequences)).all()


def test_no_result_makes_more_metrics_than_a_message_takes():
    """Names that actors make up become names of metrics."""
    call = vars(good()["tool_calls"][0]) | {"success": False}
    kinds = [f"{'A' * (n // 26)}x{chr(65 + n % 26)}" for n in range(1100)]
    fields = {"ticket": 1, "group": 0, "run": RUN}
    calls = tuple(call | {"error": kind} for kind in kinds)
    poisoned = decode(packed(good(**fields, tool_calls=calls)), Trajectory)
    with pytest.raises(MessageError, match="1100 tool calls, the limit is 4"):
        require_usable(poisoned, RUN, LIMITS, VOCABULARY)
    others = [
        poisoned.model_copy(update={"ticket": n, "reward_parts": {f"p{n}_{part}": 0.0 for part in range(48)}})
        for n in range(1, 100)
    ]
    failures = [
        Failure(ticket=n, group=1, reason=f"reason {n}", attempts=1, actor="a", published_at=0.0, run=RUN)
        for n in range(100, 199)
    ]
    ledger = Ledger(2, 99, 0, 1, Filters(FiltersConfig(no_signal=False), group_relative=False))
    ledger.admit(0)
    results: list[Trajectory | Failure] = [*others, *failures]
    for sequence, result in enumerate(results, start=1):
        assert ledger.accept(sequence, result) is None
    values = batch_metrics(ledger.take(0), 0.0)
    measured("learner", "l", values, 0, 0.0)
    assert sum(name.startswith("call_error_") for name in values) == 40


def test_a_refusal_is_short_whatever_the_message_was():
    data = encode(Metrics.model_construct(role="a", id="b", time=0.0, step=None, values={"x" * 10**6: 1.0}))
    with pytest.raises(MessageError) as refused:
        decode(data, Metrics)
    assert len(str(refused.value)) < 600


def test_a_call_begins_within_the_response_and_a_late_length_within_the_limits():
    call = vars(good()["tool_calls"][0]) | {"start": 5}
    with pytest.raises(MessageError, match="begins after the response's end"):
        decode(packed(good(tool_calls=(call,))), Trajectory)
    failure = Failure(
        ticket=1, group=0, reason="r", attempts=1, actor="a", published_at=0.0, run=RUN, response_length=41
    )
    with pytest.raises(MessageError, match="41 response tokens, the limit is 40"):
        require_usable(failure, RUN, LIMITS, VOCABULARY)


@pytest.mark.parametrize("what", POISON)
def test_poison_stops_at_the_door(what: str):
    changes = dict(POISON[what])
    if calls := changes.get("tool_calls"):
        call = vars(good()["tool_calls"][0])
        changes["tool_calls"] = tuple(call | change for change in calls)
    with pytest.raises(MessageError, match=next(iter(changes))):
        require_usable(decode(packed(good(run=RUN, **changes)), Trajectory), RUN, LIMITS, VOCABULARY)


@pytest.mark.parametrize("name", ["run", "seq", "time", "role", "id", "step", "a\nb", "", "x" * 200])
def test_no_metric_is_called_as_a_field_of_its_line(name: str):
    with pytest.raises(ValueError, match=r"name of a metric|pattern"):
        measured("actor", "a", {name: 1.0}, None, 0.0)


def test_metrics_are_their_subject_s():
    data = encode(measured("learner", "learner", {"accuracy": 0.99}, 1, 0.0))
    names = Names(RUN)
    assert measured_by(names, f"{names.metrics}.learner.learner", data).step == 1
    for subject in (f"{names.metrics}.sandbox.learner", f"{names.metrics}.learner.other", names.metrics):
        with pytest.raises(MessageError, match="metrics of learner"):
            measured_by(names, subject, data)

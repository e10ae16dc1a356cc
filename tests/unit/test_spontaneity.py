"""Who calls, when, with what errors, and whether it had to do with the answer."""

import pytest

from bus.messages import Failure, Outcome, ToolCall, Trajectory
from grading.spontaneity import code_unused
from learner.code_metrics import spontaneity_metrics
from learner.step_metrics import batch_metrics
from learner.tickets.ledger import Batch
from tests import factories

CODE = "```python\nprint(6*7)\n```"


@pytest.mark.parametrize(
    ("turns", "outputs", "answer", "unused"),
    [
        (["Multiply. " + CODE, r"So \boxed{42}."], ["42"], "42", False),
        (["Multiply. " + CODE, r"So \boxed{42}."], ["42.0"], "42", False),
        (["Multiply. " + CODE, r"So \boxed{42}."], ["41", "it is 42"], "42", False),
        # It was there before.
        (["It is 42; to be sure: " + CODE, r"So \boxed{42}."], ["42"], "42", True),
        # No output holds it.
        (["Multiply. " + CODE, r"So \boxed{42}."], ["NameError: name 'x'"], "42", True),
        (["Multiply. " + CODE, r"So \boxed{42}."], ["142 420 4.2"], "42", True),
        # What stands in code or in made-up output is not the model's own text.
        (["```python\nprint(42)\n```", r"So \boxed{42}."], ["42"], "42", False),
        (["```output\n42\n``` " + CODE, r"So \boxed{42}."], ["42"], "42", False),
        # Later turns are after the first call.
        (["Multiply. " + CODE, "It is 42. " + CODE, r"\boxed{42}"], ["1", "42"], "42", False),
        (["x " + CODE, "y"], ["1/3"], r"\frac{1}{3}", False),
        (["x " + CODE, "y"], ["11/3"], r"\frac{1}{3}", True),
        (["x " + CODE, "y"], ["0.5"], r"\frac{1}{2}", False),
        (["x " + CODE, "y"], ["x**2 + 1"], "x^2+1", False),
        (["x " + CODE, "y"], ["x**2 - 1"], "x^2+1", True),
        (["x " + CODE, "y"], ["1,234 in all"], "1{,}234", False),
    ],
)
def test_code_unused(turns: list[str], outputs: list[str], answer: str, unused: bool):
    assert code_unused(turns, outputs, answer) is unused


def call(start: int, error: str = "") -> ToolCall:
    outcome = Outcome.TIMEOUT if error == "timeout" else Outcome.EXITED
    return ToolCall(code="1", output="1", outcome=outcome, success=not error, error=error, start=start, seconds=0.5)


def trajectory(*calls: ToolCall, correct: bool = False, answered: bool = True, **marks) -> Trajectory:
    parts = {"correct": float(correct), "answered": float(answered)}
    return factories.trajectory(1, 100, reward=float(correct), reward_parts=parts, tool_calls=calls, **marks)


def test_metrics():
    values = spontaneity_metrics(
        [
            trajectory(call(20), call(60, "NameError"), correct=True),
            trajectory(call(40, "timeout"), call(90, "NameError"), correct=True, code_unused=True),
            trajectory(correct=True, void_turns=2),
            trajectory(call(30), answered=False, hallucinated_outputs=3, void_turns=1),
            trajectory(answered=False),
        ]
    )
    assert values == pytest.approx(
        {
            "code_ratio_right": 2 / 3,
            "code_ratio_wrong": 1 / 2,
            "first_call_position": 30,
            "first_call_share": 0.3,
            "call_error_NameError": 2 / 5,
            "call_error_timeout": 1 / 5,
            "hallucinated_output_ratio": 1 / 5,
            "void_turn_ratio": 2 / 5,
            "code_unused_ratio": 1 / 2,
        }
    )


def test_means_over_nothing_are_left_out():
    assert set(spontaneity_metrics([trajectory()])) == {
        "hallucinated_output_ratio",
        "void_turn_ratio",
        "code_ratio_wrong",
    }


def test_they_are_part_of_a_batchs_metrics_and_lost_lengths_too():
    def failure(length: int) -> Failure:
        return Failure(
            ticket=2, group=0, reason="r", response_length=length, attempts=1, actor="a", published_at=0.0
        )  # fmt: skip

    taken = ((trajectory(call(20)), failure(300), failure(0), failure(500)),)
    values = batch_metrics(Batch(version=0, trained=(), taken=taken, filtered={}), taken_at=0.0)
    assert values["first_call_position"] == 20
    assert values["late_length"] == 400
    assert values["failures"] == 3

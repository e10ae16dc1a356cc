"""Rows against numbers worked out by hand; the files that are made of them."""

import json
import re
from pathlib import Path

import pytest

from bus.messages import FinishReason, Outcome, ToolCall
from configs.schema import RolloutConfig
from configs.tasks import GradingConfig, PromptConfig
from evaluation.evaluator import LeftOut
from evaluation.plan import DataSet, Plan
from evaluation.records import Sample
from evaluation.results import write_report
from evaluation.summary import Row, summarise
from tasks.problems import Problem
from tests.unit.samples import sample

PROBLEMS = tuple(Problem(f"p{number}", "1 + 1?", "2") for number in range(3))
PLAN = Plan(
    data=(DataSet("set", PROBLEMS, GradingConfig(), "d"),),
    max_tool_calls=(0, 2),
    samples=2,
    prompt=PromptConfig(template="plain", chat=True),
    template="{problem}",
    rollout=RolloutConfig(temperature=0.7),
)


def call(success: bool) -> ToolCall:
    return ToolCall(code="x", output="", outcome=Outcome.EXITED, success=success, start=3, seconds=1.0)


def graded(problem: int, budget: int, verdicts: str, **changes) -> list[Sample]:
    """Samples of a problem; `+` is a right one."""
    return [
        sample(number, problem=f"p{problem}", max_tool_calls=budget, correct=verdict == "+", **changes)
        for number, verdict in enumerate(verdicts)
    ]


def rows(*groups: list[Sample], left_out: tuple[tuple[str, str], ...] = ()) -> list[Row]:
    return summarise(PLAN, {each.key: each for group in groups for each in group}, set(left_out))


def test_a_row_is_what_one_counts_by_hand():
    first, second = rows(
        graded(0, 0, "--"),
        graded(1, 0, "+-"),
        graded(2, 0, "--", finish_reason=FinishReason.LENGTH, response_tokens=39),
        graded(0, 2, "+-", tool_calls=(call(True), call(False)), refused_calls=3),
        graded(1, 2, "++", tool_calls=(call(True),), attempts=2),
        graded(2, 2, "--"),
    )
    # (0 + 1/2 + 0) / 3, and pass@2 of 0, 1 and 0 right of two: 0, 1, 0.
    assert (first.max_tool_calls, first.samples, first.missing, first.retries) == (0, 6, 0, 0)
    assert first.accuracy.value == pytest.approx(1 / 6)
    assert {k: each.value for k, each in first.pass_at.items()} == pytest.approx({1: 1 / 6, 2: 1 / 3})
    assert first.difference is None
    assert (first.code_ratio.value, first.calls_per_response, first.successful_call_ratio) == (0, 0, None)
    assert (first.accuracy_with_code, first.accuracy_without_code) == (None, pytest.approx(1 / 6))
    assert first.response_length == pytest.approx((4 * 9 + 2 * 39) / 6)
    assert (first.longest_response, first.truncated_ratio) == (39, pytest.approx(1 / 3))

    assert (second.max_tool_calls, second.retries) == (2, 2)
    assert second.accuracy.value == pytest.approx((0.5 + 1 + 0) / 3)
    assert second.pass_at[2].value == pytest.approx(2 / 3)
    # Problem by problem: +1/2, +1/2, 0.
    assert second.difference is not None
    assert second.difference.value == pytest.approx(1 / 3)
    assert -1 <= second.difference.low < 1 / 3 < second.difference.high <= 1
    # Two calls in each of two responses, one in each of two others, none in the last two.
    assert second.calls_per_response == 1
    assert second.code_ratio.value == pytest.approx(4 / 6)
    assert second.successful_call_ratio == pytest.approx(4 / 6)
    assert second.refused_calls_per_response == 1
    assert (second.accuracy_with_code, second.accuracy_without_code) == (0.75, 0)


def test_missing_samples_count_as_nothing():
    [row] = rows(graded(0, 0, "+"), graded(1, 0, "--"))
    assert (row.samples, row.missing) == (3, 3)
    assert (row.accuracy.value, row.accuracy.problems) == (0.5, 2)
    # Of p0 there is one sample, too few for pass@2.
    assert (row.pass_at[2].value, row.pass_at[2].problems) == (0, 1)


def test_problems_that_are_left_out_are_not_missing():
    [row] = rows(graded(0, 0, "++"), graded(1, 0, "--"), left_out=(("set", "p2"),))
    assert (row.samples, row.missing) == (4, 0)


def test_samples_of_other_evaluations_in_the_folder_are_not_counted():
    [row] = rows(graded(0, 0, "++++"), graded(1, 7, "++"), graded(9, 0, "++"))
    assert (row.max_tool_calls, row.samples) == (0, 2)


def test_every_metric_of_the_evaluator_is_documented():
    [*_, row] = rows(graded(0, 0, "+-"), graded(0, 2, "+-", tool_calls=(call(True),)), graded(1, 2, "-"))
    text = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    section = text.partition("## Evaluator")[2].partition("\n## ")[0]
    values = row.metrics()
    assert set(values) <= set(re.findall(r"`([a-z0-9_]+)`", section))
    assert all(isinstance(value, float | int) for value in values.values())


def test_the_files_say_what_is_missing_and_what_was_left_out(tmp_path: Path):
    samples = {each.key: each for each in graded(0, 0, "+-") + graded(1, 0, "-", attempts=3)}
    write_report(tmp_path, "A | B", PLAN, {"weights": "w"}, samples, [LeftOut("set", "p2", "too long")])
    results = json.loads((tmp_path / "results.json").read_text())
    assert (results["complete"], results["settings"]) == (False, {"weights": "w"})
    assert results["left_out"] == [{"data": "set", "problem": "p2", "reason": "too long"}]
    assert results["rows"][0]["pass_at"]["2"]["problems"] == 1
    text = (tmp_path / "results.md").read_text()
    # One of p1 without calls, and all four with two calls, which have no row.
    assert "INCOMPLETE: 5 samples are missing" in text
    assert "2 rollouts were lost to infrastructure and done again." in text
    assert "1 problems were left out, see left_out in results.json: set/p2." in text
    assert "temperature 0.7, top-p 1, at most 4096 tokens, prompt plain in the chat template" in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1
    assert "@2: 0.0 %" not in lines[2]
    assert lines[2].startswith("| set | 2 | 0 | @2: 25.0 % [")


@pytest.mark.parametrize(("budgets", "complete"), [((), False), ((0,), False), ((0, 2), True)])
def test_an_evaluation_is_complete_once_every_sample_is_there(tmp_path: Path, budgets: tuple[int, ...], complete: bool):
    samples = {each.key: each for budget in budgets for problem in range(3) for each in graded(problem, budget, "+-")}
    write_report(tmp_path, "title", PLAN, {}, samples, [])
    assert json.loads((tmp_path / "results.json").read_text())["complete"] is complete
    assert ("INCOMPLETE" in (tmp_path / "results.md").read_text()) is not complete

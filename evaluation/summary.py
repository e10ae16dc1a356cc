"""Turns graded samples into the numbers that are reported: one row for each data set and limit of tool calls."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from bus.messages import FinishReason
from evaluation.plan import DataSet, Plan
from evaluation.records import Key, Sample
from evaluation.statistics import Estimate, estimate, pass_at_k

GRADED = {"correct", "answered", "ungradable", "unevaluated"}
"""Parts that every grade has."""


@dataclass(frozen=True)
class Row:
    """Says what one data set came to under one limit of tool calls; shares and means are over samples, if not noted."""

    data: str
    max_tool_calls: int
    """The limit of tool calls."""
    samples: int
    missing: int
    """Samples of the plan that are not there: interrupted, or lost to infrastructure. They count as nothing."""
    retries: int
    """Rollouts that infrastructure failed and that were done again."""
    accuracy: Estimate
    """avg@k: each problem's share of right samples."""
    pass_at: dict[int, Estimate]
    """pass@k for k = 1, 2, 4 and so on up to the number of samples, over the problems that have so many."""
    difference: Estimate | None
    """Difference of avg@k to the same data set's lowest limit, problem by problem; None for that limit itself."""
    code_ratio: Estimate
    """Share of responses that had code executed."""
    accuracy_with_code: float | None
    accuracy_without_code: float | None
    calls_per_response: float
    successful_call_ratio: float | None
    """Share of calls whose program exited with 0; None without any."""
    refused_calls_per_response: float
    answered_ratio: float
    ungradable_ratio: float
    unevaluated_ratio: float
    """Share whose answer equals the gold answer and is no result (`grading.results`)."""
    reward: float | None
    """Mean of what the user's reward function gave; None where a rule judged."""
    reward_parts: dict[str, float]
    """Means of the function's own parts; empty where a rule judged."""
    response_length: float
    """Tokens, inserted ones included."""
    sampled_length: float
    longest_response: int
    truncated_ratio: float
    """Share that hit the length limit."""
    rollout_seconds: float

    def metrics(self) -> dict[str, float]:
        """Returns the row as it travels in a run's metrics log."""
        values = {
            "accuracy": self.accuracy.value,
            "accuracy_low": self.accuracy.low,
            "accuracy_high": self.accuracy.high,
            "pass_at_k": self.pass_at[max(self.pass_at)].value,
            "samples_per_problem": max(self.pass_at),
            "problems": self.accuracy.problems,
            "code_ratio": self.code_ratio.value,
            "max_tool_calls": self.max_tool_calls,
        }
        for name in (
            "samples",
            "missing",
            "retries",
            "calls_per_response",
            "successful_call_ratio",
            "accuracy_with_code",
            "accuracy_without_code",
            "response_length",
            "sampled_length",
            "truncated_ratio",
            "rollout_seconds",
            "reward",
        ):
            if (value := getattr(self, name)) is not None:
                values[name] = value
        return values | {f"reward_{part}": value for part, value in self.reward_parts.items()}


def summarise(plan: Plan, samples: Mapping[Key, Sample], left_out: set[tuple[str, str]]) -> list[Row]:
    """Returns the rows of `plan`, by data set and limit of tool calls; one without any sample is absent.

    `left_out`: (data set, problem) of those that are not asked.
    """
    rows = []
    for data in plan.data:
        asked = [problem.id for problem in data.problems if (data.name, problem.id) not in left_out]
        lowest: dict[str, float] | None = None
        for limit in plan.max_tool_calls:
            taken = {
                problem: [s for n in range(plan.samples) if (s := samples.get((data.name, problem, limit, n)))]
                for problem in asked
            }
            taken = {problem: found for problem, found in taken.items() if found}
            if not taken:
                continue
            row, scores = _row(data, limit, taken, len(asked) * plan.samples, plan.samples, lowest)
            rows.append(row)
            lowest = lowest or scores
    return rows


def _row(
    data: DataSet,
    limit: int,
    taken: dict[str, list[Sample]],
    planned: int,
    k: int,
    lowest: dict[str, float] | None,
) -> tuple[Row, dict[str, float]]:
    every = [sample for found in taken.values() for sample in found]
    calls = [call for sample in every for call in sample.tool_calls]
    scores = {problem: fmean(sample.correct for sample in found) for problem, found in taken.items()}
    shared = [problem for problem in scores if lowest and problem in lowest]
    difference = None
    if lowest is not None and shared:
        difference = estimate(np.array([scores[problem] - lowest[problem] for problem in shared]), least=-1.0)
    row = Row(
        data=data.name,
        max_tool_calls=limit,
        samples=len(every),
        missing=planned - len(every),
        retries=sum(sample.attempts - 1 for sample in every),
        accuracy=estimate(np.array(list(scores.values()))),
        pass_at=_pass_at(list(taken.values()), k),
        difference=difference,
        code_ratio=estimate(np.array([fmean(bool(s.tool_calls) for s in found) for found in taken.values()])),
        accuracy_with_code=_mean([sample.correct for sample in every if sample.tool_calls]),
        accuracy_without_code=_mean([sample.correct for sample in every if not sample.tool_calls]),
        calls_per_response=len(calls) / len(every),
        successful_call_ratio=_mean([call.success for call in calls]),
        refused_calls_per_response=fmean(sample.refused_calls for sample in every),
        answered_ratio=fmean(sample.parts["answered"] for sample in every),
        ungradable_ratio=fmean(sample.parts["ungradable"] for sample in every),
        unevaluated_ratio=fmean(sample.parts["unevaluated"] for sample in every),
        reward=fmean(sample.reward for sample in every) if data.grading.reward_function else None,
        reward_parts=_own_parts(every) if data.grading.reward_function else {},
        response_length=fmean(sample.response_tokens for sample in every),
        sampled_length=fmean(sample.sampled_tokens for sample in every),
        longest_response=max(sample.response_tokens for sample in every),
        truncated_ratio=fmean(sample.finish_reason is FinishReason.LENGTH for sample in every),
        rollout_seconds=fmean(sample.seconds for sample in every),
    )
    return row, scores


def _own_parts(samples: Sequence[Sample]) -> dict[str, float]:
    """Returns the means of the parts that a reward function named; one that a sample lacks counts as 0."""
    names = {part for sample in samples for part in sample.parts} - GRADED
    return {name: fmean(sample.parts.get(name, 0.0) for sample in samples) for name in sorted(names)}


def _pass_at(problems: Sequence[Sequence[Sample]], most: int) -> dict[int, Estimate]:
    """Returns pass@k for powers of two up to `most`, and for `most`, without a k that no problem has enough samples for."""
    wanted = sorted({2**i for i in range(most.bit_length())} | {most})
    found = {}
    for k in wanted:
        values = [
            pass_at_k(len(samples), sum(sample.correct for sample in samples), k)
            for samples in problems
            if len(samples) >= k
        ]
        if values:
            found[k] = estimate(np.array(values))
    return found


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None

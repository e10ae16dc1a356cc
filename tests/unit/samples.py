"""A graded sample of an evaluation, made by hand."""

from typing import Any

from bus.messages import FinishReason
from evaluation.records import Sample
from transcripts.passages import Passage


def sample(number: int = 0, *, text: str = "fine", problem: str = "p0", correct: bool = True, **changes) -> Sample:
    values: dict[str, Any] = {
        "data": "set", "problem": problem, "max_tool_calls": 1, "number": number, "reward": 1.0,
        "parts": {"correct": float(correct), "answered": 1.0, "ungradable": 0.0, "unevaluated": 0.0},
        "answer": "42",
        "passages": (Passage(sampled=True, start=0, text=text),), "tool_calls": (), "refused_calls": 0,
        "finish_reason": FinishReason.STOP, "prompt_tokens": 5, "response_tokens": 9, "sampled_tokens": 9,
        "seconds": 1.0, "attempts": 1,
    }  # fmt: skip
    return Sample(**(values | changes))

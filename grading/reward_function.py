"""The user's own reward function, `tasks.grading.reward_function`: what it is given, and what it may return.

    (problem, gold answer, turns, calls)  -->  a number, or named parts of which one is `reward`

It runs in the processes that grade alone (`grading.worker`), within their bounds. Whatever goes wrong in it is a
`RewardFunctionError` and never a reward.
"""

import math
import re
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grading.errors import RewardFunctionError

MAX_PARTS = 32
MAX_VALUE = 1e6
"""Largest absolute value of a reward or a part of it."""
TAKEN = {"ungradable", "unevaluated", "overlong_penalty"}
"""Parts that the grader names itself."""
_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")

RewardFunction = Callable[[str, str, list[str], "list[Call]"], Any]


@dataclass(frozen=True)
class Call:
    """One tool call of a response, as a reward function sees it."""

    code: str
    output: str
    """The text that the model was shown."""
    outcome: str
    """A value of `bus.messages.Outcome`."""
    success: bool
    """The program exited with 0."""
    error: str
    """The kind of its error; empty for a success."""
    seconds: float


@dataclass(frozen=True)
class Reward:
    """What a reward function returned, checked."""

    reward: float
    parts: dict[str, float]
    """The other parts; `correct`, 0 or 1, is always there."""


def reward(
    function: RewardFunction, problem: str, answer: str, turns: Sequence[str], calls: Sequence[Mapping[str, Any]]
) -> Reward:
    """Calls the function and checks what it returns; `calls` hold the fields of `Call`. Raises RewardFunctionError."""
    try:
        return checked(function(problem, answer, list(turns), [Call(**call) for call in calls]))
    except RewardFunctionError:
        raise
    except BaseException as error:
        traceback.print_exc()
        code = getattr(function, "__code__", None)
        raise RewardFunctionError(f"the reward function raised {told(error, code and code.co_filename)}") from error


def checked(value: object) -> Reward:
    """Returns what a reward function returned, with numbers as floats. Raises RewardFunctionError for what is no reward."""
    given = dict(value) if isinstance(value, Mapping) else {"reward": value}
    if "reward" not in given:
        raise RewardFunctionError(f"the reward function returned parts without `reward`: {_cut(list(given))}")
    if len(given) > MAX_PARTS:
        raise RewardFunctionError(f"the reward function returned {len(given)} parts, {MAX_PARTS} is the most")
    parts = {_part(name): _number(name, number) for name, number in given.items()}
    total = parts.pop("reward")
    if parts.setdefault("correct", float(total > 0)) not in (0.0, 1.0):
        raise RewardFunctionError(f"the reward function returned {parts['correct']:g} as `correct`, which is 0 or 1")
    return Reward(total, parts)


def _part(name: object) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name in TAKEN:
        raise RewardFunctionError(
            f"the reward function returned a part of the name {_cut(name)}: names are small letters, digits and _, and not "
            f"{', '.join(sorted(TAKEN))}"
        )
    return name


def _number(name: str, value: Any) -> float:
    try:
        number = math.nan if isinstance(value, str | bytes) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not abs(number) <= MAX_VALUE:
        raise RewardFunctionError(
            f"the reward function returned {_cut(value)} as `{name}`: no number from {-MAX_VALUE:g} to {MAX_VALUE:g}"
        )
    return number


def told(error: BaseException, file: str | None) -> str:
    """Returns an exception in one line, with the last place in `file` that led to it."""
    text = " ".join("".join(traceback.format_exception_only(error)).split())
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f"{text[:300]} ({Path(str(file)).name}, line {lines[-1]})" if lines else text[:300]


def _cut(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."

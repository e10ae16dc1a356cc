"""The user's own reward function, `tasks.grading.reward_function`: what it is given, and what it may return.

    (problem, answer, turns, calls)  -->  a number, or named parts of which one is `reward`

It runs in the processes that grade alone (`grading.worker`), within their bounds. Whatever goes wrong in it is a
`NoRewardError` and never a reward.
"""

import contextlib
import math
import os
import re
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from numbers import Real
from pathlib import Path
from typing import Any

from grading.errors import NoRewardError

MAX_PARTS = 32
MAX_VALUE = 1e6
"""Largest absolute value of a reward or a part of it."""
SWITCHES = ("correct", "answered")
"""Parts that are 0 or 1."""
TAKEN = {"ungradable", "unevaluated", "overlong_penalty"}
"""Parts that the grader names itself."""
_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")


@dataclass(frozen=True)
class RewardFunction:
    """A function that was loaded (`grading.reward_source`)."""

    function: Callable[..., Any]
    """It takes `problem`, `answer`, `turns` and `calls` by name."""
    file: str
    """File that holds it."""


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
    loaded: RewardFunction, problem: str, answer: str, turns: Sequence[str], calls: Sequence[Mapping[str, Any]]
) -> Reward:
    """Calls the function and checks what it returns; `calls` hold the fields of `Call`. Raises NoRewardError."""
    process = os.getpid()
    try:
        given = {"problem": problem, "answer": answer, "turns": list(turns), "calls": [Call(**call) for call in calls]}
        return checked(loaded.function(**given))
    except NoRewardError:
        raise
    except BaseException as error:
        with contextlib.suppress(Exception):  # The function may have closed stderr.
            traceback.print_exc()
        raise NoRewardError(f"raised {told(error, loaded.file)}") from error
    finally:
        if os.getpid() != process:
            # The function forked, and this is the child: it must not answer.
            os._exit(1)


def checked(value: object) -> Reward:
    """Returns what a reward function returned, with numbers as floats. Raises NoRewardError for what is no reward."""
    given = dict(value) if isinstance(value, Mapping) else {"reward": value}
    if "reward" not in given:
        raise NoRewardError(f"returned parts without `reward`: {_shown(list(given))}")
    if len(own := given.keys() - {"reward", *SWITCHES}) > MAX_PARTS:
        raise NoRewardError(f"returned {len(own)} parts of its own, {MAX_PARTS} is the most")
    parts = {_part(name): _number(name, number) for name, number in given.items()}
    total = parts.pop("reward")
    parts.setdefault("correct", float(total > 0))
    for switch in SWITCHES:
        if parts.get(switch, 0.0) not in (0.0, 1.0):
            raise NoRewardError(f"returned {parts[switch]:g} as `{switch}`, which is 0 or 1")
    return Reward(total, parts)


def _part(name: object) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name in TAKEN:
        raise NoRewardError(
            f"returned a part of the name {_shown(name)}: names are small letters, digits and _, and not "
            f"{', '.join(sorted(TAKEN))}"
        )
    return name


def _number(name: str, value: Any) -> float:
    # Scalars of numpy and torch are no numbers of Python's, and arrays of one element are none at all.
    plain = value.item() if callable(getattr(value, "item", None)) else value
    try:
        number = float(plain) if isinstance(plain, Real | Decimal) else math.nan
    except (OverflowError, ValueError):
        number = math.nan
    if not abs(number) <= MAX_VALUE:
        raise NoRewardError(
            f"returned {_shown(value)} as `{name}`, which is no number from {-MAX_VALUE:g} to {MAX_VALUE:g}"
        )
    return number


def told(error: BaseException, file: str) -> str:
    """Returns an exception in one line, with the last place in `file` that led to it."""
    text = " ".join("".join(traceback.format_exception_only(error)).split())
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f"{text[:300]} ({Path(file).name}, line {lines[-1]})" if lines else text[:300]


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 (whatever the user's class does)
        text = f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."

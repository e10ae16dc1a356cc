"""Grading: whether the model's answer equals the gold answer.

Guarantees: only text that the model sampled, outside code and output blocks, can be the answer. An answer that chokes
math-verify is graded 0, with the part `ungradable`; only where grading the gold answer against itself fails as well is
it an error, and never a reward.
"""

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import structlog

from configs.schema import GradingConfig
from tasks.text import as_number, last_boxed, last_number, last_tagged, own_text
from tasks.verifier import GradingError, NoVerdict, Verifier

__all__ = ["Grade", "Grader", "GradingError"]

log = structlog.get_logger()

MAX_ANSWER_LENGTH = 1000
"""Characters of a box beyond which it is not handed to math-verify."""

# Numbers that no answer needs written out and that take math-verify minutes: 10000000!!, 9^{9^{9^{9}}}, 2^{10000000}.
_CHOKING = re.compile(r"[0-9]{5,}[\s)}\]]*!|[0-9](?:\s*\^\s*[{(]*\s*[0-9]+){3}|\^\s*[{(]*\s*[-+]?[0-9]{6,}")


@dataclass(frozen=True)
class Grade:
    """The judgement of one response."""

    reward: float
    parts: dict[str, float]
    """Each 0 or 1. `correct`; `answered`: there was an answer; `ungradable`: math-verify choked on it."""


class Grader:
    """Grades responses; an asynchronous context manager that owns up to `workers` math-verify processes.

    The processes start when the rule `boxed` first needs them and are gone when the context is left. A call waits while
    all of them are busy, each for at most three comparisons' time.
    """

    def __init__(self, workers: int = 1) -> None:
        self._verifiers = [Verifier() for _ in range(workers)]
        # Last in, first out: a second process starts only when the first is busy.
        self._idle: asyncio.LifoQueue[Verifier] = asyncio.LifoQueue(workers)
        for verifier in self._verifiers:
            self._idle.put_nowait(verifier)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for verifier in self._verifiers:
            await verifier.close()

    async def grade(self, turns: Sequence[str], answer: str, config: GradingConfig) -> Grade:
        """Judges the response that consists of `turns`, the texts that the model sampled, against the gold `answer`.

        Raises GradingError when the gold answer can't be graded by the rule, or math-verify can't be run.
        """
        text: str | None = own_text(turns)
        if config.answer_tag:
            text = last_tagged(text or "")
        if config.rule == "last_number":
            return _grade_number(text or "", answer)
        box = last_boxed(text or "")
        if not box:
            return _grade(answered=False)
        if len(box) > MAX_ANSWER_LENGTH or (_CHOKING.search(box) and not _CHOKING.search(answer)):
            return _grade(ungradable=True)
        verifier = await self._idle.get()
        try:
            return await _grade_boxed(verifier, box, answer, config.timeout_s)
        finally:
            self._idle.put_nowait(verifier)


def _grade(*, answered: bool = True, correct: bool = False, ungradable: bool = False) -> Grade:
    parts = {"correct": float(correct), "answered": float(answered), "ungradable": float(ungradable)}
    return Grade(reward=float(correct), parts=parts)


def _grade_number(text: str, gold: str) -> Grade:
    expected = as_number(gold)
    if expected is None:
        raise GradingError(f"the gold answer {gold[:80]!r} is not a number: grade these problems by the rule `boxed`")
    number = last_number(text)
    return _grade(answered=number is not None, correct=number == expected)


async def _grade_boxed(verifier: Verifier, box: str, gold: str, timeout_s: float) -> Grade:
    # The answer is blamed only if it fails twice, the second time in a fresh process: a child that something else
    # killed costs nobody a reward.
    for attempt in (1, 2):
        try:
            return _grade(correct=await verifier.equal(gold, box, timeout_s))
        except NoVerdict as error:
            log.info("no verdict on an answer", answer=box[:80], attempt=attempt, reason=str(error))
    try:
        gradable = await verifier.equal(gold, gold, timeout_s)
    except NoVerdict as error:
        raise GradingError(f"grading the gold answer {gold[:80]!r} against itself fails as well: {error}") from error
    if not gradable:
        raise GradingError(f"math-verify does not find the gold answer {gold[:80]!r} equal to itself: mend the problem")
    return _grade(ungradable=True)

"""Grading: whether the model's answer equals the gold answer.

Only text that the model sampled, outside code and output blocks, can be the answer. An answer that chokes math-verify is
graded 0, with the part `ungradable`. If math-verify cannot compare the gold answer with itself either, that is an error and
never a reward. The reward is the part `correct` plus the penalties that the configuration names, each a part of its own.
"""

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from types import TracebackType
from typing import Self

import structlog

from configs.tasks import GradingConfig
from grading.answers import plain
from grading.blocks import find_blocks
from grading.text import as_number, last_boxed, last_boxes, last_number, last_tagged, own_text
from grading.verifier import GradingError, NoVerdict, UngradableError, Verifier

__all__ = ["Grade", "Grader", "GradingError", "UngradableError", "void_turns"]

log = structlog.get_logger()

MAX_ANSWER_LENGTH = 1000
"""Characters of a box beyond which it is neither made plain nor handed to math-verify."""

# Numbers that no answer needs written out and that take math-verify minutes: 10000000!!, 9^{9^{9^{9}}}, 2^{10000000}.
_CHOKING = re.compile(r"[0-9]{5,}[\s)}\]]*!|[0-9](?:\s*\^\s*[{(]*\s*[0-9]+){3}|\^\s*[{(]*\s*[-+]?[0-9]{6,}")

_FORM = re.compile(r"</think>\s*<answer>[^\0]*</answer>\s*(?:<\|[^|]*\|>|</s>)?\s*\Z")
"""How a response in the paper's form ends; the end of the sequence may be spelled out."""


@dataclass(frozen=True)
class Grade:
    """The judgement of one response."""

    parts: dict[str, float]
    """0 or 1: `correct`; `answered`: there was an answer; `ungradable`: math-verify choked on it. Not positive, where the
    configuration has them: `format_penalty`, `unparsable_penalty`, `overlong_penalty`."""
    answer: str | None
    """What was taken for the answer."""

    @property
    def reward(self) -> float:
        """Returns the reward: 1 for a right answer, less the penalties."""
        return self.parts["correct"] + sum(value for part, value in self.parts.items() if part.endswith("_penalty"))

    def with_length(self, length: int, limit: int, truncated: bool, config: GradingConfig) -> "Grade":
        """Returns the grade with the penalty for `length` of at most `limit` tokens (DAPO, arXiv 2503.14476, eq. 13)."""
        if not config.overlong_penalty:
            return self
        excess = length - (limit - config.overlong_tokens)
        share = 1.0 if truncated else min(max(excess / max(config.overlong_tokens, 1), 0.0), 1.0)
        return replace(self, parts={**self.parts, "overlong_penalty": -config.overlong_penalty * share})


class Grader:
    """Grades responses; an asynchronous context manager that owns up to `workers` math-verify processes.

    The processes start when the rule `boxed` first needs them and are gone when the context is left. A call waits while
    all of them are busy, each for at most three comparisons' time.
    """

    def __init__(self, workers: int = 1) -> None:
        self._verifiers = [Verifier() for _ in range(workers)]
        # Last in, first out: a second process starts only when the first is busy.
        self._idle: asyncio.LifoQueue[Verifier] = asyncio.LifoQueue(workers)
        self._gradable: set[tuple[str, str]] = set()
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

        Raises UngradableError when the gold answer can't be graded by the rule, GradingError when math-verify can't be run.
        """
        own = own_text(turns)
        text = last_tagged(own) or "" if config.answer_tag else own
        if config.rule == "last_number":
            grade, parsed = _grade_number(text, answer)
        else:
            grade, parsed = await self._grade_box(last_boxed(text), answer, config.timeout_s)
        penalties = {
            "format_penalty": config.format_penalty * (not _well_formed(own, grade, config)),
            "unparsable_penalty": config.unparsable_penalty * (not parsed),
        }
        parts = {part: -value for part, value in penalties.items() if getattr(config, part)}
        return replace(grade, parts=grade.parts | parts)

    async def require_gradable(self, gold: str, config: GradingConfig) -> None:
        """Raises UngradableError where the gold answer itself would not be graded right, GradingError as `grade` does.

        One comparison for each gold answer, however often it is asked for.
        """
        if (gold, config.rule) in self._gradable:
            return
        answer = f"\\boxed{{{gold}}}"
        grade = await self.grade([f"<answer>{answer}</answer>" if config.answer_tag else answer], gold, config)
        if not grade.parts["correct"]:
            raise UngradableError(f"the gold answer {gold[:80]!r} is not graded equal to itself: fix the problem")
        self._gradable.add((gold, config.rule))

    async def _grade_box(self, box: str | None, gold: str, timeout_s: float) -> tuple[Grade, bool]:
        """Returns the grade, and whether the box could be read."""
        if not box:
            return _grade(None), False
        if len(box) > MAX_ANSWER_LENGTH or (_CHOKING.search(box) and not _CHOKING.search(gold)):
            return _grade(box, ungradable=True), True
        verifier = await self._idle.get()
        try:
            return await _compare(verifier, box, gold, timeout_s)
        finally:
            self._idle.put_nowait(verifier)


def void_turns(turns: Sequence[str], config: GradingConfig) -> int:
    """Counts the turns that close no code block and hold no answer, tagged or not (SimpleTIR, arXiv 2509.02479)."""

    def void(turn: str) -> bool:
        text = own_text([turn])
        answer = _stated_number(text) if config.rule == "last_number" else last_boxed(text)
        return answer is None and not any(block.kind == "python" and block.closed for block in find_blocks(turn))

    return sum(map(void, turns))


def _well_formed(own: str, grade: Grade, config: GradingConfig) -> bool:
    if grade.answer is None:
        return False
    return not config.answer_tag or (
        own.count("<answer>") == 1 and own.count("</think>") == 1 and bool(_FORM.search(own))
    )


def _grade(answer: str | None, *, correct: bool = False, ungradable: bool = False) -> Grade:
    parts = {"correct": float(correct), "answered": float(answer is not None), "ungradable": float(ungradable)}
    return Grade(parts, answer)


def _grade_number(text: str, gold: str) -> tuple[Grade, bool]:
    expected = as_number(gold)
    if expected is None:
        raise UngradableError(
            f"the gold answer {gold[:80]!r} is not a number: grade these problems by the rule `boxed`"
        )
    number = _stated_number(text)
    answer = None if number is None else str(number)
    return _grade(answer, correct=number == expected), number is not None


def _stated_number(text: str) -> Decimal | None:
    """Returns the last number of the last box, if that is whole; of the text where it is not or there is none."""
    boxes = last_boxes(text)
    if not boxes:
        return last_number(text)
    box = boxes[-1]
    return last_number(plain(box) if len(box) <= MAX_ANSWER_LENGTH else box)


async def _compare(verifier: Verifier, box: str, gold: str, timeout_s: float) -> tuple[Grade, bool]:
    # The answer is blamed only if it fails twice, the second time in a fresh process: a child that something else
    # killed costs nobody a reward.
    for attempt in (1, 2):
        try:
            verdict = await verifier.compare(gold, box, timeout_s)
            return _grade(box, correct=verdict.equal), verdict.parsed
        except NoVerdict as error:
            log.info("no verdict on an answer", answer=box[:80], attempt=attempt, reason=str(error))
    try:
        gradable = (await verifier.compare(gold, gold, timeout_s)).equal
    except NoVerdict as error:
        raise GradingError(f"grading the gold answer {gold[:80]!r} against itself fails as well: {error}") from error
    if not gradable:
        raise UngradableError(
            f"math-verify does not find the gold answer {gold[:80]!r} equal to itself: fix the problem"
        )
    return _grade(box, ungradable=True), True

"""Judges one response: finds the model's answer in its own text, and compares it with the gold answer.

This runs in a process of its own (`grading.worker`): math-verify may take for ever on an answer. First the text is read,
then the answer compared, so that a comparison that does not end costs the verdict alone.
"""

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from configs.tasks import GradingConfig
from grading.answers import equal_at_sight, plain
from grading.blocks import find_blocks
from grading.choking import may_choke
from grading.spontaneity import code_unused
from grading.text import BREAK, as_number, last_boxed, last_boxes, last_number, last_tagged, own_text

MAX_ANSWER_LENGTH = 1000
"""Characters of a box beyond which it is neither made plain nor handed to math-verify."""
_END = re.compile(r"\s*+(?:<\|[^|]*\|>|</s>)?\s*+")
"""Matches what may follow the answer in the paper's form; the end of the sequence may be spelled out."""


@dataclass(frozen=True)
class Reading:
    """Says what the text of a response holds."""

    answer: str | None
    """Holds what is taken for the answer; None without one."""
    well_formed: bool
    """There is an answer and, with `answer_tag`, the response ends with one `</think>` and one `<answer> </answer>`."""
    void_turns: int
    """Turns that close no code block and hold no answer, tagged or not (SimpleTIR, arXiv 2509.02479)."""
    code_unused: bool
    """There are calls and an answer, and the answer is not seen to come from a call (`grading.spontaneity`)."""


@dataclass(frozen=True)
class Verdict:
    """Says what came of a comparison."""

    equal: bool
    parsed: bool
    """The answer could be read as mathematics, or is the gold answer's text."""
    refused: bool = False
    """It was not compared: it is too long, or would take too long."""


def read(turns: Sequence[str], outputs: Sequence[str], config: GradingConfig) -> Reading:
    """Reads a response: `turns` are the texts that the model sampled, `outputs` what its calls gave.

    Takes time linear in the text.
    """
    own = own_text(turns)
    text = last_tagged(own) or "" if config.answer_tag else own
    if config.rule == "last_number":
        number = _stated_number(text)
        answer = None if number is None else str(number)
    else:
        answer = last_boxed(text) or None
    unused = bool(outputs and answer) and len(answer or "") <= MAX_ANSWER_LENGTH
    return Reading(
        answer=answer,
        well_formed=answer is not None and (not config.answer_tag or _ends_in_tags(own)),
        void_turns=sum(_is_void(turn, config) for turn in turns),
        code_unused=unused and code_unused(turns, outputs, answer or ""),
    )


def compare(answer: str | None, gold: str, rule: str) -> Verdict:
    """Returns whether an answer equals the gold answer, by a rule of `GradingConfig`. Has no time limit.

    By `last_number` nothing equals a gold answer that is no number.
    """
    if answer is None:
        return Verdict(equal=False, parsed=False)
    if rule == "last_number":
        return Verdict(equal=as_number(answer) == as_number(gold), parsed=True)
    if len(answer) > MAX_ANSWER_LENGTH or (may_choke(answer) and not may_choke(gold)):
        return Verdict(equal=False, parsed=True, refused=True)
    gold, answer = plain(gold), plain(answer)
    sight = equal_at_sight(gold, answer)
    if sight is not None:
        return Verdict(equal=sight, parsed=True)
    parse, verify, target = math_verify()
    gold_values, answer_values = (
        parse(f"\\boxed{{{text}}}", target, extraction_mode="first_match", parsing_timeout=None)
        for text in (gold, answer)
    )
    equal = bool(verify(gold_values, answer_values, timeout_seconds=None))
    # What can't be parsed stays text, which may still be the gold answer, such as a name.
    return Verdict(equal=equal, parsed=equal or any(not isinstance(value, str) for value in answer_values))


@functools.cache
def math_verify() -> tuple[Callable[..., Any], Callable[..., Any], tuple[Any, ...]]:
    """Imports math-verify, which takes seconds; returns its functions and extraction settings."""
    from math_verify import LatexExtractionConfig, grader, parse, verify

    from grading.equality import strictly

    grader.sympy_numeric_eq = strictly(grader.sympy_numeric_eq)
    # Only the box as a whole counts: with other targets, math-verify would fish for numbers inside what it can't parse.
    return parse, verify, (LatexExtractionConfig(boxed_match_priority=0),)


def _ends_in_tags(own: str) -> bool:
    """Returns whether own text ends in the paper's form: one `</think>`, then one answer in tags and in one piece."""
    if own.count("<answer>") != 1 or own.count("</think>") != 1:
        return False
    thought, begin, end = own.find("</think>") + len("</think>"), own.find("<answer>"), own.rfind("</answer>")
    return (
        thought <= begin < end
        and not own[thought:begin].strip()
        and BREAK not in own[begin:end]
        and _END.fullmatch(own, end + len("</answer>")) is not None
    )


def _is_void(turn: str, config: GradingConfig) -> bool:
    text = own_text([turn])
    answer = _stated_number(text) if config.rule == "last_number" else last_boxed(text)
    return answer is None and not any(block.kind == "python" and block.closed for block in find_blocks(turn))


def _stated_number(text: str) -> Decimal | None:
    """Returns the last number of the last box, if that is whole; of the text where it is not or there is none."""
    boxes = last_boxes(text)
    if not boxes:
        return last_number(text)
    box = boxes[-1]
    return last_number(plain(box) if len(box) <= MAX_ANSWER_LENGTH else box)

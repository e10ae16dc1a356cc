"""Reads one response: finds the model's answer in its own text, and what else the text shows.

This takes time linear in the text. The answer is compared afterwards (`grading.comparison`), so that a comparison that does
not end costs the verdict alone. Both run in a process of their own (`grading.worker`).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from configs.tasks import GradingConfig
from grading.answers import MAX_ANSWER_LENGTH, plain, plain_number
from grading.blocks import find_blocks
from grading.numerals import numeral
from grading.spontaneity import code_unused
from grading.text import BREAK, last_boxed, last_boxes, last_number, last_tagged, own_text

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


def read(turns: Sequence[str], outputs: Sequence[str], config: GradingConfig) -> Reading:
    """Reads a response: `turns` are the texts that the model sampled, `outputs` what its calls gave.

    Takes time linear in the text.
    """
    own = own_text(turns)
    text = last_tagged(own) or "" if config.answer_tag else own
    answer = _stated_number(text) if config.rule == "last_number" else last_boxed(text) or None
    unused = bool(outputs and answer) and len(answer or "") <= MAX_ANSWER_LENGTH
    return Reading(
        answer=answer,
        well_formed=answer is not None and (not config.answer_tag or _ends_in_tags(own)),
        void_turns=sum(_is_void(turn, config) for turn in turns),
        code_unused=unused and code_unused(turns, outputs, answer or ""),
    )


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


def _stated_number(text: str) -> str | None:
    """Returns the number that the last box is, if that is whole; the last number of the text where there is no such box.

    None where the box or the end of the text holds a formula that is no written-out number.
    """
    boxes = last_boxes(text)
    if not boxes:
        number = last_number(text)
        return None if number is None else str(number)
    box = boxes[-1]
    stated = plain_number(plain(box)) if len(box) <= MAX_ANSWER_LENGTH else ""
    return stated if numeral(stated) is not None else None

"""The model's own text, and the answer in it.

A response is a list of turns: the runs of text that the model sampled, without the tool output between them. Blocks are
not its own text: code, output that the model made up, and whatever else Markdown calls a fenced block. Pieces stay apart:
nothing that begins before a block or the end of a turn continues after it. All scans take time linear in the text: in the
regular expressions here no part takes what the part before it has given back (`*+`).
"""

import re
from collections.abc import Sequence
from decimal import Decimal
from typing import NamedTuple

from grading.blocks import own_pieces

BREAK = "\0"
"""Stands between pieces of own text that do not touch."""

_BRACE = re.compile(r"\\(?:boxed|fbox)[ \t\n]*\{|\\[{}]|[{}]|\0")
_SPACING = r"(?:[\s$]|\\[,; ()]|\\q?quad(?![A-Za-z]))*+"
_WORD = r"(?:(?:and|or)\b|\\text\s*\{\s*(?:and|or)\s*\})"
_BETWEEN = re.compile(rf"{_SPACING}(?:[,;]{_SPACING}{_WORD}?|{_WORD}){_SPACING}")
"""What joins boxes to one answer of several parts."""
_NUMBER = re.compile(
    r"(?P<minus>(?<![\w)\]}.])[-−])?(?P<digits>[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])(?:\.[0-9]+)?"
    r"|[0-9]+(?:\.[0-9]+)?|(?<![0-9.])\.[0-9]+)(?P<exponent>[eE][-+]?[0-9]{1,3}(?![0-9]|\.[0-9]))?",
    re.ASCII,
)
_FORMULA_BEFORE = re.compile(
    r"(?:[\^_/÷×·]\s*\{?|\}\s*\{|[\w)}]\s*\*{1,2}\s?|sqrt\s*[({]|\\(?:cdot|times|div)\s*)\s*[-−+]?\Z"
)
_FORMULA_AFTER = re.compile(r"\s*(?:[\^²³⁰¹⁴-⁹]|/\s*[0-9\\]|(?:hundred|thousand|[mbt]r?illion)|[kMi]\b)")


def strip_code(text: str) -> str:
    """Returns `text` with each block, closed or not, replaced by a line break."""
    return "\n".join(own_pieces(text))


def own_text(turns: Sequence[str]) -> str:
    """Returns the model's own text of all turns, its pieces separated by `BREAK`."""
    return BREAK.join(piece for turn in turns for piece in own_pieces(turn))


def last_tagged(text: str) -> str | None:
    """Returns what stands inside the last complete `<answer> </answer>`; None without one."""
    end = text.rfind("</answer>")
    start = text.rfind("<answer>", 0, max(end, 0))
    return text[start + len("<answer>") : end] if start >= 0 else None


class _Box(NamedTuple):
    begin: int
    start: int
    """Where its content begins."""
    stop: int
    """Where its content ends."""
    end: int


def last_boxed(text: str) -> str | None:
    """Returns the model's boxed answer: the contents of `last_boxes`, joined by commas; None without one."""
    boxes = last_boxes(text)
    return ", ".join(boxes) if boxes else None


def last_boxes(text: str) -> list[str]:
    """Returns the content of the box (`\\boxed{}` or `\\fbox{}`) that begins last; nothing if there is none, or it is open.

    Before it, in order, the contents of boxes that only a comma, a semicolon, "and" or "or" stand between. Escaped braces do
    not count.
    """
    opened: list[tuple[int, int] | None] = []
    """For each open brace: begin and content's start, if it is a box's."""
    boxes: list[_Box] = []
    last = -1
    for match in _BRACE.finditer(text):
        piece = match.group()
        if piece == BREAK:
            opened.clear()
        elif piece == "{":
            opened.append(None)
        elif piece == "}":
            box = opened.pop() if opened else None
            if box is not None:
                boxes.append(_Box(*box, match.start(), match.end()))
        elif piece.startswith((r"\boxed", r"\fbox")):
            last = match.start()
            opened.append((match.start(), match.end()))
    boxes.sort()
    if not boxes or boxes[-1].begin != last:
        # What the model wrote before is not its answer: it had begun another.
        return []
    parts = [boxes.pop()]
    while boxes and boxes[-1].end <= parts[-1].begin and _BETWEEN.fullmatch(text, boxes[-1].end, parts[-1].begin):
        parts.append(boxes.pop())
    return [text[box.start : box.stop].strip() for box in reversed(parts)]


def last_number(text: str) -> Decimal | None:
    """Returns the last number, such as -5, 1,234 or 0.5, exactly; None without one.

    A minus sign belongs to the number only where it can't be a subtraction, the full stop of a sentence never does. None
    also where it is a part of a formula, such as an exponent, a factor or the lower part of a fraction, and where a word
    behind it makes another number of it.
    """
    matches = list(_NUMBER.finditer(text))
    if not matches:
        return None
    last = matches[-1]
    before = text[max(last.start() - 12, 0) : last.start()]
    if _FORMULA_BEFORE.search(before) or _FORMULA_AFTER.match(text, last.end(), last.end() + 12):
        return None
    return _decimal(last)


def numbers_in(text: str) -> set[Decimal]:
    """Returns all numbers of `text`, as `last_number` reads them."""
    return {_decimal(match) for match in _NUMBER.finditer(text)}


def as_number(text: str) -> Decimal | None:
    """Returns the number that the whole of `text` is; None if it is not one."""
    match = _NUMBER.fullmatch(text.strip())
    return _decimal(match) if match else None


def _decimal(match: re.Match[str]) -> Decimal:
    value = Decimal(match["digits"].replace(",", "") + (match["exponent"] or ""))
    return value.copy_negate() if match["minus"] else value

"""What the model itself wrote, and the answer in it.

A response is a list of turns: the runs of text that the model sampled, without the tool output that stood between them.
Code blocks, and output blocks that the model made up, are no part of its own text. Pieces that were apart stay apart:
nothing that begins before a block or the end of a turn continues after it. All scans take time linear in the text.
"""

import re
from collections.abc import Iterator, Sequence
from decimal import Decimal

from tasks.blocks import find_blocks

BREAK = "\0"
"""Stands between pieces of own text that do not touch."""

_BRACE = re.compile(r"\\boxed[ \t\n]*\{|\\[{}]|[{}]|\0")
_NUMBER = re.compile(
    r"(?P<minus>(?<![\w)\]}.])[-−])?(?P<digits>[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])(?:\.[0-9]+)?"
    r"|[0-9]+(?:\.[0-9]+)?|(?<![0-9.])\.[0-9]+)",
    re.ASCII,
)


def strip_code(text: str) -> str:
    """`text` with each python or output block, closed or not, replaced by a line break."""
    return "\n".join(_own_pieces(text))


def own_text(turns: Sequence[str]) -> str:
    """The model's own text of all turns, its pieces separated by `BREAK`."""
    return BREAK.join(piece for turn in turns for piece in _own_pieces(turn))


def _own_pieces(text: str) -> Iterator[str]:
    end = 0
    for block in find_blocks(text):
        yield text[end : block.start]
        end = block.end
    yield text[end:]


def last_tagged(text: str) -> str | None:
    """What stands inside the last complete `<answer> </answer>`; None without one."""
    end = text.rfind("</answer>")
    start = text.rfind("<answer>", 0, max(end, 0))
    return text[start + len("<answer>") : end] if start >= 0 else None


def last_boxed(text: str) -> str | None:
    """The content of the complete `\\boxed{}` that begins last; None without one. Escaped braces do not count."""
    opened: list[int | None] = []
    """Of each open brace: where its content begins if it is a box's."""
    last: tuple[int, int] | None = None
    for match in _BRACE.finditer(text):
        piece = match.group()
        if piece == BREAK:
            opened.clear()
        elif piece == "{":
            opened.append(None)
        elif piece == "}":
            start = opened.pop() if opened else None
            if start is not None and (last is None or start > last[0]):
                last = (start, match.start())
        elif piece.startswith(r"\boxed"):
            opened.append(match.end())
    return text[last[0] : last[1]].strip() if last else None


def last_number(text: str) -> Decimal | None:
    """The last number, such as -5, 1,234 or 0.5, exactly; None without one.

    A minus sign belongs to the number only where it can't be a subtraction, the full stop of a sentence never does.
    """
    matches = list(_NUMBER.finditer(text))
    return _decimal(matches[-1]) if matches else None


def numbers_in(text: str) -> set[Decimal]:
    """All numbers of `text`, as `last_number` reads them."""
    return {_decimal(match) for match in _NUMBER.finditer(text)}


def as_number(text: str) -> Decimal | None:
    """The number that the whole of `text` is; None if it is not one."""
    match = _NUMBER.fullmatch(text.strip())
    return _decimal(match) if match else None


def _decimal(match: re.Match[str]) -> Decimal:
    value = Decimal(match["digits"].replace(",", ""))
    return value.copy_negate() if match["minus"] else value

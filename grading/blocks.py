"""Finds blocks in what the model wrote.

There is one reading for all who need it: the rollout runs a block of code, the grader looks for answers outside of all
blocks. A fence inside a string literal or a comment of Python is part of the program. Whatever else Markdown calls a
fenced block is neither run nor searched for answers. The scans take time linear in the text.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from textwrap import dedent
from typing import Literal

CLOSING_FENCE = "```"
OPENING_FENCES = ("```python", "```Python", "```PYTHON", "```py\n")
"""What begins code that is run: strings at which an engine can stop."""

_OPENING = re.compile(r"```(?:(?P<python>python|Python|PYTHON|py(?=\n))|(?i:output))")
# What can hide a fence comes before the fence: comments, literals in three quotes and in one. Unclosed literals reach as far
# as Python would read them. Written without nested choices, so that nothing is tried twice.
_CODE_PIECE = re.compile(
    r"#[^\n]*"
    r'|"""[^"\\]*(?:(?:\\.|"(?!""))[^"\\]*)*(?:""")?'
    r"|'''[^'\\]*(?:(?:\\.|'(?!''))[^'\\]*)*(?:''')?"
    r'|"[^"\\\n]*(?:\\.[^"\\\n]*)*"?'
    r"|'[^'\\\n]*(?:\\.[^'\\\n]*)*'?"
    r"|(?P<fence>```)",
    re.DOTALL,
)
_INFO_STRING = re.compile(r"^[ \t]*+[0-9.]*+[ \t]*+\n")
_CONTAINER = r"^(?:[ \t>]|[-*+][ \t]|[0-9]{1,9}[.)][ \t])*+"
"""Matches what a line inside lists and quotations begins with."""
_MARKDOWN_OPENING = re.compile(rf"{_CONTAINER}(?P<fence>`{{3,}}(?=[^`\n]*+$)|~{{3,}})", re.MULTILINE)
_MARKDOWN_CLOSING = re.compile(rf"{_CONTAINER}(?P<fence>`{{3,}}+|~{{3,}}+)[ \t]*+$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A block of code, or of output that the model made up."""

    kind: Literal["python", "output"]
    start: int
    """Where its opening fence begins."""
    content: str
    end: int
    """Where the text after it begins."""
    closed: bool

    @property
    def program(self) -> str:
        """Returns the code without the rest of the opening line (`3` of `python3`) and without empty lines around it.

        Where its first line is indented, as a block in a list is, that indentation is taken off every line.
        """
        code = _INFO_STRING.sub("", self.content, count=1).strip("\n")
        return dedent(code).strip("\n") if code[:1].isspace() else code


def find_blocks(text: str, start: int = 0) -> Iterator[Block]:
    """Yields the blocks of code and output in `text`, in order, from position `start` on.

    A block ends behind its closing fence, before a fence that opens the next block, or unclosed with the text.
    """
    opening = _OPENING.search(text, start)
    while opening is not None:
        kind: Literal["python", "output"] = "python" if opening["python"] else "output"
        fence = _closing_fence(text, opening.end(), kind)
        if fence < 0:
            yield Block(kind, opening.start(), text[opening.end() :], len(text), closed=False)
            return
        # The fence that closes it may be the one that opens the next.
        end = fence if _OPENING.match(text, fence) else fence + len(CLOSING_FENCE)
        yield Block(kind, opening.start(), text[opening.end() : fence], end, closed=True)
        opening = _OPENING.search(text, end)


def own_pieces(text: str) -> Iterator[str]:
    """Yields what stands before, between and behind the blocks of `text`, also those that only Markdown calls one.

    Such a block begins with a line of at least three backticks or tildes, whatever they are followed by, and ends with a
    line of as many of the same, or with the text (CommonMark 0.31, section 4.5).
    """
    end = 0
    run, other = _OPENING.search(text), _MARKDOWN_OPENING.search(text)
    while run is not None or other is not None:
        if other is None or (run is not None and run.start() <= other.start("fence")):
            block = next(find_blocks(text, end))
            start, stop = block.start, block.end
        else:
            start, stop = other.start(), _markdown_end(text, other)
        yield text[end:start]
        end = stop
        # One that was found already is not searched for again: it may be far.
        if run is not None and run.start() < end:
            run = _OPENING.search(text, end)
        if other is not None and other.start("fence") < end:
            other = _MARKDOWN_OPENING.search(text, end)
    yield text[end:]


def _markdown_end(text: str, opening: re.Match[str]) -> int:
    fence = opening["fence"]
    for closing in _MARKDOWN_CLOSING.finditer(text, opening.end()):
        if closing["fence"].startswith(fence):
            return closing.end()
    return len(text)


def _closing_fence(text: str, start: int, kind: Literal["python", "output"]) -> int:
    if kind == "output":
        return text.find(CLOSING_FENCE, start)
    fences = (piece.start() for piece in _CODE_PIECE.finditer(text, start) if piece["fence"])
    return next(fences, -1)

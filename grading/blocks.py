"""Finds code and output blocks in what the model wrote.

There is one reading for all who need it: the rollout runs a block of code, the grader looks for answers outside of all
blocks. A fence inside a string literal or a comment of Python is part of the program. The scan takes time linear in the
text.
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
_INFO_STRING = re.compile(r"^[ \t]*[0-9.]*[ \t]*\n")


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


def find_blocks(text: str) -> Iterator[Block]:
    """Yields the blocks of `text` in order.

    A block ends behind its closing fence, before a fence that opens the next block, or unclosed with the text.
    """
    opening = _OPENING.search(text)
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


def _closing_fence(text: str, start: int, kind: Literal["python", "output"]) -> int:
    if kind == "output":
        return text.find(CLOSING_FENCE, start)
    fences = (piece.start() for piece in _CODE_PIECE.finditer(text, start) if piece["fence"])
    return next(fences, -1)

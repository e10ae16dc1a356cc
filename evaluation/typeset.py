r"""Marks in a transcript what the page draws in another way: programs in colours, formulas as formulas.

A mark is (begin, end, what) of a text, in the units in which JavaScript counts. `what` is the class of a stretch of a
program, or a formula as a tree of MathML: [tag, attributes, child or text, ...]. The page makes elements of these and text
nodes of everything else, so only tags and attributes that are listed here may stand in a tree.

Formulas: `$x$`, `$$x$$`, `\(x\)`, `\[x\]`. One that cannot be drawn whole stays as it was written.
"""

import re
from collections.abc import Iterator
from html import unescape
from typing import Any
from xml.etree.ElementTree import Element

from latex2mathml import exceptions
from latex2mathml.converter import convert_to_element
from pygments.lexers import PythonLexer
from pygments.token import Comment, Keyword, Name, Number, Operator, String, _TokenType

Mark = tuple[int, int, Any]

LONGEST_PROGRAM = 20_000
"""Characters of a program that is coloured: the text is hostile, and a lexer's time may grow faster than with its length."""
LONGEST_FORMULA = 1_000
DEEPEST_FORMULA = 50

CLASSES = (
    (Keyword, "keyword"),
    (Operator.Word, "keyword"),
    (Comment, "comment"),
    (String, "string"),
    (Number, "number"),
    (Name.Builtin, "name"),
    (Name.Function, "name"),
    (Name.Class, "name"),
    (Name.Namespace, "name"),
)
# As pandoc has it: no space inside the dollars and no digit behind them, so that prices are none.
_FORMULA = re.compile(
    r"\$\$(?P<display>[^$]{1,1000})\$\$|\\\[(?P<bracket>.{1,1000}?)\\\]|\\\((?P<inline>.{1,1000}?)\\\)"
    r"|\$(?P<dollar>(?![\s$])[^$\n]{0,999}[^\s$\\])\$(?!\d)",
    re.DOTALL,
)
TAGS = frozenset(
    (
        *("math", "mrow", "mi", "mn", "mo", "mtext", "mspace", "mfrac", "msqrt", "mroot", "msub", "msup", "msubsup"),
        *("munder", "mover", "munderover", "mtable", "mtr", "mtd", "mstyle", "mpadded", "mphantom", "menclose"),
    )
)
ATTRIBUTES = frozenset(
    (
        *(
            "accent",
            "columnalign",
            "columnlines",
            "display",
            "displaystyle",
            "fence",
            "form",
            "linethickness",
            "lspace",
        ),
        *("mathvariant", "maxsize", "minsize", "movablelimits", "notation", "rowlines", "rspace", "scriptlevel"),
        *("separator", "stretchy", "width"),
    )
)


class _UndrawableError(Exception):
    """The formula has something that no page could draw."""


_FAILURES: tuple[type[Exception], ...] = (
    *(_UndrawableError, RecursionError, IndexError, KeyError, TypeError, ValueError),
    *(error for error in vars(exceptions).values() if isinstance(error, type) and issubclass(error, Exception)),
)
"""What `latex2mathml` raises at what a model wrote, or broke off in the middle of."""


def highlights(program: str) -> list[Mark]:
    """Returns the marks of Python source, or of what a model took for it; none where it is too long."""
    if len(program) > LONGEST_PROGRAM:
        return []
    marks = []
    place = 0
    # It would otherwise leave out blank lines at the edges.
    for kind, text in PythonLexer(stripnl=False, ensurenl=False).get_tokens(program):
        end = place + _units(text)
        if name := _class_of(kind):
            marks.append((place, end, name))
        place = end
    return marks


def _class_of(kind: _TokenType) -> str:
    return next((name for above, name in CLASSES if kind in above), "")


def formulas(text: str) -> list[Mark]:
    """Returns the marks of the formulas in a text that can be drawn."""
    return list(_formulas(text))


def _formulas(text: str) -> Iterator[Mark]:
    place = before = 0
    for found in _FORMULA.finditer(text):
        kind = str(found.lastgroup)
        display = "block" if kind in ("display", "bracket") else "inline"
        begin = place + _units(text[before : found.start()])
        place, before = begin + _units(found[0]), found.end()
        try:
            tree = _tree(convert_to_element(found[kind].strip(), display=display), 0)
        except _FAILURES:
            continue
        yield begin, place, tree


def _tree(element: Element, depth: int) -> list[Any]:
    tag, text = element.tag, unescape(element.text or "")
    # What it does not know, it shows as it was written.
    unknown = tag == "mi" and (text.startswith("\\") or text in ("&", "{", "}"))
    if tag not in TAGS or depth > DEEPEST_FORMULA or unknown:
        raise _UndrawableError
    attributes = {name: value for name, value in element.attrib.items() if name in ATTRIBUTES}
    return [tag, attributes, *([text] if text else []), *(_tree(child, depth + 1) for child in element)]


def _units(text: str) -> int:
    """Returns the length of a text as JavaScript counts it."""
    return len(text) if text.isascii() else len(text.encode("utf-16-le", errors="surrogatepass")) // 2

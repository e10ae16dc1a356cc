r"""Marks what the page of transcripts draws in another way than as text: programs in colours, formulas as formulas.

A mark is (begin, end, what) of a text, in the units in which JavaScript counts. `what` is the class of a stretch of a
program, or a formula as a tree of MathML: [tag, attributes, child or text, ...]. The page makes elements of these and text
nodes of everything else, so only tags and attributes that are listed here may stand in a tree.

Formulas: `$x$`, `$$x$$`, `\(x\)`, `\[x\]`. A reader takes what is drawn for what the model wrote: a formula with a command
that is not listed here, or with what TeX would read in another way than `latex2mathml` does, stays as it was written.
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

LONGEST_PROGRAM = 10_000
"""Characters of a program that is coloured: the text is hostile, and a lexer's time may grow faster than with its length."""
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
# The lexer looks for a docstring behind each of them.
_MUCH_SPACE = re.compile(r"\s{100}")

# As pandoc has it: no space inside the dollars and no digit behind them, so that prices are none.
# Of at most 1,000 characters.
_FORMULA = re.compile(
    r"\$\$(?P<display>[^$]{1,1000})\$\$|\\\[(?P<bracket>.{1,1000}?)\\\]|\\\((?P<inline>.{1,1000}?)\\\)"
    r"|(?<!\\)\$(?P<dollar>(?![\s$])[^$\n]{0,999}[^\s$\\])\$(?!\d)",
    re.DOTALL,
)
_NAMES = """
alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi pi rho sigma tau upsilon phi
varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega ell infty partial nabla emptyset
frac dfrac tfrac binom sqrt boxed overline underline hat bar vec dot tilde mathbb mathbf mathcal mathrm mathit text
cdot times div pm mp ast star circ cup cap setminus wedge vee oplus otimes le leq ge geq lt gt ne neq approx equiv cong sim
simeq propto in notin ni subset subseteq supset supseteq mid nmid parallel perp angle triangle forall exists neg to
rightarrow leftarrow Rightarrow Leftarrow leftrightarrow Leftrightarrow implies iff mapsto prime degree
sum prod int oint lim log ln exp sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh min max sup inf gcd det
left right lfloor rfloor lceil rceil langle rangle vert ldots cdots dots vdots ddots quad qquad begin end
"""
"""Letters; what takes arguments; operators and relations; sums and functions; brackets, dots, spaces."""
COMMANDS = frozenset(_NAMES.split()) | frozenset(r"{}|,;:!%\ ")
"""Those that are drawn, without their backslash; of one character: brackets, spaces, a per cent, a new row."""
_ENVIRONMENTS = frozenset(("matrix", "pmatrix", "bmatrix", "Bmatrix", "vmatrix", "Vmatrix", "cases"))
_ENVIRONMENT = re.compile(r"\\(?:begin|end)(?:\{([^}]*)\})?")
_COMMAND = re.compile(r"\\([a-zA-Z]+|.)", re.DOTALL)
# TeX takes one sign where the library takes the whole number, or none where it finds one; what is behind a % is gone; the
# text of a \text is read by nobody.
_READ_IN_ANOTHER_WAY = re.compile(
    r"\\(?:[dt]?frac|binom|boxed|overline|underline|hat|bar|vec|dot|tilde|text|math[a-z]+)(?![a-zA-Z]|\s*\{)|\\sqrt(?!\s*[\[{])"
    r"|[\^_]\s*(?:\d[\d.]|\.)|[}\]]\s*\.?\d|(?<!\\)(?:\\\\)*%|\\\\\s*[\[*]|&(?=\w+;)"
    r"|\\text\{[^{}]*[\\&<>$#][^{}]*\}|(?:[\^_]\s*(?:[^{}\s]|\{[^{}]*\})\s*){3}"
)
CHILDREN = {"mfrac": 2, "msub": 2, "msup": 2, "munder": 2, "mover": 2, "mroot": 2, "msubsup": 3, "munderover": 3}
"""Says how many a tag must have to be drawn."""
TAGS = frozenset(
    ("math", "mrow", "mi", "mn", "mo", "mtext", "mspace", "msqrt", "mtable", "mtr", "mtd", "mstyle", "menclose")
)
TAGS |= CHILDREN.keys()
ATTRIBUTES = frozenset(
    (
        *(
            "accent",
            "columnalign",
            "display",
            "displaystyle",
            "fence",
            "form",
            "linethickness",
            "lspace",
            "mathvariant",
        ),
        *("maxsize", "minsize", "movablelimits", "notation", "rspace", "scriptlevel", "separator", "stretchy", "width"),
    )
)


class _UndrawableError(Exception):
    """The formula has something that would not be drawn as it was meant."""


_FAILURES: tuple[type[Exception], ...] = (
    *(_UndrawableError, RecursionError, IndexError, KeyError, TypeError, ValueError),
    *(error for error in vars(exceptions).values() if isinstance(error, type) and issubclass(error, Exception)),
)
"""What `latex2mathml` raises at what a model wrote, or broke off in the middle of."""


def highlights(program: str) -> list[Mark]:
    """Returns the marks of Python source, or of what a model took for it; none where it takes too long to read."""
    if len(program) > LONGEST_PROGRAM or _MUCH_SPACE.search(program):
        return []
    found = []
    place = before = 0
    # The other method reads the text without the ends of its lines and its first mark.
    for index, kind, text in PythonLexer().get_tokens_unprocessed(program):
        place += units(program[before:index])
        before = index + len(text)
        begin, place = place, place + units(text)
        if name := _class_of(kind):
            found.append((begin, place, name))
    return found


def _class_of(kind: _TokenType) -> str:
    return next((name for above, name in CLASSES if kind in above), "")


def marks(kind: str, text: str) -> list[Mark]:
    """Returns the marks of a piece of a response, see `transcripts.passages.pieces`."""
    return highlights(text) if kind == "code" else formulas(text) if kind == "text" else []


def formulas(text: str) -> list[Mark]:
    """Returns the marks of the formulas in a text that can be drawn."""
    return list(_formulas(text))


def _formulas(text: str) -> Iterator[Mark]:
    place = before = 0
    for found in _FORMULA.finditer(text):
        kind = str(found.lastgroup)
        display = "block" if kind in ("display", "bracket") else "inline"
        begin = place + units(text[before : found.start()])
        place, before = begin + units(found[0]), found.end()
        try:
            yield begin, place, _drawn(found[kind].strip(), display)
        except _FAILURES:
            continue


def _drawn(formula: str, display: str) -> list[Any]:
    commands = set(_COMMAND.findall(formula))
    environments = set(_ENVIRONMENT.findall(formula))
    inside = _ENVIRONMENT.sub(" ", formula)
    rows = bool(environments) and environments <= _ENVIRONMENTS
    if not formula.replace("\n", " ").replace("\t", " ").isprintable() or not _is_closed(formula):
        raise _UndrawableError
    if not commands <= COMMANDS or (environments and not rows) or _READ_IN_ANOTHER_WAY.search(inside):
        raise _UndrawableError
    if not rows and ("\\" in commands or "&" in formula):
        raise _UndrawableError
    return _tree(convert_to_element(formula, display=display), 0)


def _is_closed(formula: str) -> bool:
    """Returns whether every brace that is opened is closed."""
    depth = 0
    for brace in re.findall(r"\\.|[{}]", formula, re.DOTALL):
        depth += {"{": 1, "}": -1}.get(brace, 0)
        if depth < 0:
            return False
    return depth == 0


def _tree(element: Element, depth: int) -> list[Any]:
    tag, text = element.tag, unescape(element.text or "")
    wrong = CHILDREN.get(tag, len(element)) != len(element) or "linebreak" in element.attrib
    # Browsers know one variant alone, and would draw a plain letter.
    wrong = wrong or element.attrib.get("mathvariant", "normal") != "normal"
    # What it does not know, it shows as it was written.
    unknown = tag == "mi" and (text.startswith("\\") or text in ("&", "{", "}"))
    if tag not in TAGS or depth > DEEPEST_FORMULA or wrong or unknown:
        raise _UndrawableError
    attributes = {name: value for name, value in element.attrib.items() if name in ATTRIBUTES}
    return [tag, attributes, *([text] if text else []), *(_tree(child, depth + 1) for child in element)]


def units(text: str) -> int:
    """Returns the length of a text as JavaScript counts it."""
    return len(text) if text.isascii() else len(text.encode("utf-16-le", errors="surrogatepass")) // 2

r"""Simplifies answers before they are compared: takes off what does not change a value.

Taken off are styles (`\mathbf`, a box in the box), dollar signs, thin spaces, a full stop, `x =` before a number and
units in words after it. Two written-out numbers are compared exactly, numerals with a base by their digits. math-verify
compares everything else.
"""

import re
from fractions import Fraction

_STYLE = re.compile(r"\\(?:mathbf|textbf|mathrm|boldsymbol|bm|mathit|textit|mathsf|mathtt|emph|boxed|fbox)\s*\{")
_TEXT = re.compile(r"\\(?:text|mbox)\s*\{\s*([-.,\d]+)\s*\}")
# Two backslashes are a line break of a matrix, whatever follows.
_NO_SPACE = re.compile(r"(?<!\\)\\!\s*|(?<=\d)\\,(?=\d{3}(?!\d))")
_SPACE = re.compile(r"(?<!\\)\\[,;: ]|\\q?quad(?![A-Za-z])|\\displaystyle(?![A-Za-z])|~")
_THOUSANDS = re.compile(r"([-+]?\d{1,3}(?:(?:,|\{,\})\d{3})+(?:\.\d+)?)(?![^,]*[,\d])")
_NAMED = re.compile(r"[A-Za-z]\s*=\s*(.+)")
# Two letters may be variables: only units are taken for words.
_WORD = r"(?:[A-Za-z]{3,}|[ckm]m|[km]g|ml|ft|in|lb|oz|mi|sq|hr)"
_UNIT = re.compile(rf"(?P<number>[-+]?(?:\d+(?:\.\d+)?|\.\d+))(?:\s+{_WORD}){{1,3}}(?:\^\{{?\d\}}?)?")
_NO_UNIT = re.compile(
    r"\b(?:and|not|infinity|percent|dozens?|hundreds?|thousands?|[mbt]r?illions?|sin|cos|tan|cot|sec|csc|log|exp|sqrt|mod"
    r"|theta|alpha|beta|gamma|phi)\b",
    re.IGNORECASE,
)
_NUMBER = re.compile(
    r"(?P<sign>[-+]?)\s*(?:\\[dt]?frac\s*(?:\{\s*(?P<a>\d+)\s*\}|(?P<b>\d))\s*(?:\{\s*(?P<c>\d+)\s*\}|(?P<d>\d))"
    r"|(?P<e>\d+)\s*/\s*(?P<f>\d+)|(?P<g>\d+(?:\.\d*)?|\.\d+))"
)
_BASED = re.compile(r"(\d+)\s*_\s*(?:\{\s*(\d+)\s*\}|(\d+))")


def plain(answer: str) -> str:
    """Returns `answer` without what does not change its value."""
    text = answer.replace(r"\$", "").replace("$", "")
    text = _SPACE.sub(" ", _NO_SPACE.sub("", text))
    text = _TEXT.sub(r"\1", _unwrapped(text)).strip()
    thousands = _THOUSANDS.match(text)
    if thousands:
        text = re.sub(r"[{},]", "", thousands[1]) + text[thousands.end() :]
    text = text[:-1].rstrip() if text.endswith(".") else text
    named = _NAMED.fullmatch(text)
    if named and number(named[1]) is not None:
        text = named[1]
    unit = _UNIT.fullmatch(text)
    return unit["number"] if unit and not _NO_UNIT.search(text) else text


def equal_at_sight(gold: str, answer: str) -> bool | None:
    """Returns whether two plain answers are equal; None where that takes algebra.

    Numbers that are written out are equal exactly.
    """
    base = _BASED.fullmatch(gold)
    if base:
        # Problems name the base that they ask for, so the digits alone will do.
        other = _BASED.fullmatch(answer)
        digits, written = (other[1], other[2] or other[3]) if other else (answer, base[2] or base[3])
        return (digits, written) == (base[1], base[2] or base[3])
    numbers = number(gold), number(answer)
    if numbers[0] is None or numbers[1] is None:
        return None
    return numbers[0] == numbers[1]


def _unwrapped(text: str) -> str:
    """Returns `text` without the commands of style and their braces."""
    pieces: list[str] = []
    styles: list[bool] = []
    """For each open brace: whether it is a style's."""
    position = 0
    while position < len(text):
        style = _STYLE.match(text, position) if text[position] == "\\" else None
        if style:
            styles.append(True)
            position = style.end()
            continue
        character = text[position : position + 2] if text[position] == "\\" else text[position]
        if character == "{":
            styles.append(False)
        if not (character == "}" and styles and styles.pop()):
            pieces.append(character)
        position += len(character)
    return "".join(pieces)


def number(text: str) -> Fraction | None:
    """Returns the decimal or fraction that the whole of `text` is; None if it is neither."""
    match = _NUMBER.fullmatch(text)
    if match is None:
        return None
    above = next(match[name] for name in ("a", "b", "e", "g") if match[name])
    below = next((match[name] for name in ("c", "d", "f") if match[name]), "1")
    if int(below) == 0:
        return None
    value = Fraction(above) / int(below)
    return -value if match["sign"] == "-" else value

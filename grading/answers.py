r"""Simplifies answers before they are compared: takes off what does not change a value.

Taken off are styles (`\mathbf`, a box in the box), dollar signs, thin spaces, a full stop, `x =` before a number and
units after it. What Python prints is rewritten as LaTeX. Some answers are compared at sight: numbers that are written out,
exactly; numerals with a base, by their digits; dates and the like, by their text. math-verify compares everything else.
"""

import re

from grading.numerals import numeral
from grading.printed import as_latex

MAX_ANSWER_LENGTH = 1000
"""Characters of a box beyond which it is neither made plain nor compared."""
_STYLE = re.compile(r"\\(?:mathbf|textbf|mathrm|boldsymbol|bm|mathit|textit|mathsf|mathtt|emph|boxed|fbox)\s*\{")
_UPRIGHT = re.compile(r"\\mathrm\s*(?=\{\s*(?![eidT]\s*\}|[-.,\d]))")
r"""`\mathrm` around words and units, and not around e, i, d or the T of a transpose."""
_CURRENCY = re.compile(r"\\?\$|[£€¥]")
_TEXT = re.compile(r"\\(?:text|mbox)\s*\{\s*([-.,\d]+)\s*\}")
# Two backslashes are a line break of a matrix, whatever follows.
_NO_SPACE = re.compile(r"(?<!\\)\\!\s*|(?<=\d)\\,(?=\d{3}(?!\d))")
_SPACE = re.compile(r"(?<!\\)\\[,;: ]|\\q?quad(?![A-Za-z])|\\displaystyle(?![A-Za-z])|~")
_THOUSANDS = re.compile(r"([-+]?\d{1,3}(?:(?:,|\{,\})\d{3})+(?:\.\d+)?)(?![^,]*[,\d])")
_SPACED = re.compile(r"[-+]?\d{1,3}(?: \d{3})+(?:\.\d+)?")
_NAMED = re.compile(r"(?:[A-Za-z]\s*)?=\s*(.+)", re.DOTALL)
_EMPTY = re.compile(r"\\varnothing(?![A-Za-z])|∅")
# Two letters may be variables: only units are taken for words.
_WORD = r"(?:[A-Za-z]{3,}|[ckm]m|[km]g|ml|ft|in|lb|oz|mi|sq|hr|(?:[kc]?m|mi|ft)/(?:s|h|hr|min|sec))"
_UNIT = re.compile(
    rf"(?P<rest>.*?\S)(?:\s*\\(?:text|mbox|textrm|operatorname)\s*\{{(?P<words>[^{{}}]*)\}}"
    rf"|(?P<bare>(?:\s+{_WORD}){{1,3}})|\s*\^\s*\{{?\s*\\circ\s*\}}?|\s*°|\s*\\degree(?![A-Za-z]))"
    r"\s*(?:\^\s*\{?\s*-?\d\s*\}?|[²³])?",
    re.DOTALL,
)
_LETTER = re.compile(r"(.*[\d}])\s+[A-Za-z](?:\^\{?\d\}?|[²³])?")
_SINGLE = re.compile(r"(?:\\left\s*)?(?:\[|\\\{)\s*(.*?)\s*(?:\\right\s*)?(?:\]|\\\})", re.DOTALL)
_NO_UNIT = re.compile(
    r"\b(?:and|or|not|more|less|than|least|most|infinity|percent|dozens?|hundreds?|thousands?|[mbt]r?illions?"
    r"|sin|cos|tan|cot|sec|csc|log|exp|sqrt|mod|theta|alpha|beta|gamma|phi)\b|[^A-Za-z\s./^0-9·²³-]|(?<![A-Za-z^-])\d",
    re.IGNORECASE,
)
_UNITS = 4
"""Units that a number may have, as in `9.8 \\text{ m}/\\text{s}^2`."""
_ENCLOSED = re.compile(r"(?:\\left\s*)?\(\s*(.*?)\s*(?:\\right\s*)?\)|\{\s*(.*?)\s*\}", re.DOTALL)
_BASED = re.compile(r"(\w+)\s*_\s*(?:\{\s*(?:\\text\s*\{)?\s*(\w+)\s*\}?\s*\}|(\d+))")
_BASES = {
    "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10",
    "eleven": "11", "twelve": "12", "sixteen": "16",
}  # fmt: skip
_VERBATIM = re.compile(r"\d+([-:/.])\d+(?:\1\d+)+|\d+-\d+")
"""Dates, times, telephone numbers, versions: no arithmetic."""


_NAME = re.compile(r"\\text\s*\{([A-Za-z ]{2,})\}|([A-Za-z ]{2,})")
"""Words, or a product of variables."""
_CHOICE = re.compile(r"\\text\s*\{\s*\(?([A-Za-z])\)?\s*\}|\(\s*([A-Za-z])\s*\)")
_SPOKEN = ("true", "false", "none", "yes", "no")


def plain(answer: str) -> str:
    """Returns `answer` without what does not change its value."""
    text = re.sub(r"\s+", " ", _CURRENCY.sub("", answer))
    text = _SPACE.sub(" ", _NO_SPACE.sub("", text))
    text = _TEXT.sub(r"\1", _unwrapped(_UPRIGHT.sub(r"\\text", text))).strip()
    text = _EMPTY.sub(r"\\emptyset", as_latex(text))
    if thousands := _THOUSANDS.match(text):
        text = re.sub(r"[{},]", "", thousands[1]) + text[thousands.end() :]
    text = text[:-1].rstrip() if text.endswith(".") else text
    named = _NAMED.fullmatch(text)
    if named and _as_number(named[1]) is not None:
        text = named[1]
    return _as_number(text) or _without_unit(text)


def plain_number(answer: str) -> str:
    """Returns the number that a plain answer states where the gold answer is one; the answer where it states none.

    That is the right-hand side of an equation such as `f(2) = 42`, what stands before a unit of one letter, or the only
    element of a set or list.
    """
    sides = _sides(answer)
    text = sides[-1].strip() if not re.search(r"[<>]|\\[lg]eq?(?![A-Za-z])|\\neq?(?![A-Za-z])", answer) else answer
    inner = _LETTER.fullmatch(text) or _SINGLE.fullmatch(text)
    return _as_number(text) or (inner and _as_number(inner[1])) or answer


def equal_at_sight(gold: str, answer: str) -> bool | None:
    """Returns whether two plain answers are equal; None where that takes algebra.

    Numbers that are written out are equal exactly.
    """
    if base := _based(gold):
        # Problems name the base that they ask for, so the digits alone will do.
        return (_based(answer) or (answer, base[1])) == base
    if _VERBATIM.fullmatch(gold):
        return gold == answer.replace(" ", "")
    if choice := _CHOICE.fullmatch(gold):
        # A letter in brackets or words is no variable.
        other = _CHOICE.fullmatch(answer) or re.fullmatch(r"([A-Za-z])()", answer)
        return other is not None and (other[1] or other[2]).upper() == (choice[1] or choice[2]).upper()
    if name := _NAME.fullmatch(gold):
        other = _NAME.fullmatch(answer)
        spelled = (other[1] or other[2]) if other else answer
        word = (name[1] or name[2]).strip().casefold()
        if spelled.strip().casefold() == word:
            return True
        if word in _SPOKEN:
            return False
    numbers = numeral(gold), numeral(answer)
    if numbers[0] is None or numbers[1] is None:
        return None
    return numbers[1].equals(numbers[0])


def _based(text: str) -> tuple[str, str] | None:
    """Returns digits and base of a numeral such as `1011_2`; None for anything else."""
    match = _BASED.fullmatch(text)
    if match is None or not match[1][:1].isdigit():
        return None
    base = match[2] or match[3]
    base = _BASES.get(base.lower(), base)
    return (match[1].upper(), base) if base.isdigit() else None


def _sides(text: str) -> list[str]:
    """Returns the sides of an equation or of a chain of them; the text alone where it is none or lists several."""
    depth = 0
    sides = [""]
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if depth == 0 and character in ",;":
            return [text]
        if depth == 0 and character == "=":
            sides.append("")
        else:
            sides[-1] += character
    return [text] if re.search(r"\\text|\b(?:and|or)\b", sides[0]) else sides


def _as_number(text: str) -> str | None:
    """Returns the number in `text`, without brackets around it, spaces in it and units after it; None without one."""
    for _ in range(_UNITS):
        if numeral(text) is not None:
            return text
        if _SPACED.fullmatch(text):
            return text.replace(" ", "")
        if enclosed := _ENCLOSED.fullmatch(text):
            text = enclosed[1] or enclosed[2] or ""
            continue
        unit = _UNIT.fullmatch(text)
        if unit is None or _NO_UNIT.search(unit["words"] or unit["bare"] or ""):
            return None
        text = re.sub(r"\s*(?:/|\\cdot|·)$", "", unit["rest"].rstrip())
    return text if numeral(text) is not None else None


def _without_unit(text: str) -> str:
    """Returns an expression, such as `3\\pi` or `5\\sqrt{2}`, without the unit after it."""
    unit = _UNIT.fullmatch(text)
    if unit is None or r"\text" in unit["rest"] or not re.search(r"(?:[\d})]|\\pi)$", unit["rest"]):
        return text
    words = unit["words"] or unit["bare"]
    return unit["rest"] if words and not _NO_UNIT.search(words) else text


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

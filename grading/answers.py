r"""Simplifies answers before they are compared: takes off what does not change a value.

Taken off are styles (`\mathbf`, a box in the box), dollar signs, thin spaces, a full stop, `x =` before a number and
units after it. What Python prints is rewritten as LaTeX. Some answers are compared at sight: numbers that are written out,
exactly; numerals with a base, by their digits; dates and the like, by their text. math-verify compares everything else.
"""

import re

from grading.numerals import numeral
from grading.printed import as_latex
from grading.sides import sides, stated
from grading.units import without_symbol, without_unit

MAX_ANSWER_LENGTH = 1000
"""Characters of a box beyond which it is neither made plain nor compared."""
_STYLE = re.compile(
    r"\\(?:mathbf|textbf|mathrm|boldsymbol|bm|mathit|textit|mathsf|mathtt|emph|underline|boxed|fbox"
    r"|(?:text)?color\s*\{\w+\})\s*\{"
)
_UPRIGHT = re.compile(r"\\mathrm\s*(?=\{\s*(?![eidT]\s*\}|[-.,\d]))")
r"""`\mathrm` around words and units, and not around e, i, d or the T of a transpose."""
_NOTHING = re.compile(
    r"(?:US)?\\?\$|[£€¥¢]|\b(?:USD|EUR|Rs\.?)\s*(?=\d)|(?<!\\)\\[()]|\\(?:bf|displaystyle|[bB]igg?[lrm]?|large|Large|small|normalsize|checkmark)(?![A-Za-z])|\\hspace\s*\{[^{}]*\}"
    r"|^\s*(?:\\approx(?![A-Za-z])|≈|\\therefore(?![A-Za-z]))|^\s*\*\*(?=[^*]*\*\*\s*$)|\*\*\s*$"
)
"""Currency, delimiters of formulas, fonts, "about"."""
_TEXT = re.compile(r"\\(?:text|mbox)\s*\{\s*([-.,\d]+(?:\s+[A-Za-z]{3,})?|\\%|)\s*\}")
_LIST = re.compile(r"\\text\s*\{\s*,\s*(?:and|or)\s*\}")
# Two backslashes are a line break of a matrix, whatever follows.
_NO_SPACE = re.compile(
    r"(?<!\\)\\!\s*|(?<=\d)\\,(?=\d{3}(?!\d))|(?<=\d,)\\,(?=\d{3}(?!\d))|(?<=\d)\{,\}(?=\d{3}(?!\d))"
)
_SPACE = re.compile(r"(?<!\\)\\[,;: ]|\\q?quad(?![A-Za-z])|~")
_MINUS = re.compile(r"[–−]|\{\s*-\s*\}")
_DEGREE = re.compile(r"\\text\s*\{\s*[°º]\s*\}|[°º]")
_ROW = re.compile(r"(?<=\\\\)\s*\[\s*-?[\d.]+\s*(?:pt|em|ex|mm|cm)\s*\]")
r"""Extra space after the row of a matrix, as in `\\[4pt]`."""
_APPROXIMATELY = re.compile(r"(.*\S)\s*(?:\\approx|≈)\s*\$?[-+]?[\d,]*\.?\d+\s*", re.DOTALL)
"""An exact value and then its decimals."""
_TIMES_TEN = re.compile(r"(?<=\d)\s*x\s*(?=10\s*\^)")
_THOUSANDS = re.compile(r"([-+]?\d{1,3}(?:,\d{3})+(?:\.\d+)?)(?![^,]*[,\d])")
_SPACED = re.compile(r"[-+]?\d{1,3}(?: \d{3})+(?:\.\d+)?")
_NAMED = re.compile(r"(?:[A-Za-z]\s*)?=\s*(.+)", re.DOTALL)
_EMPTY = re.compile(r"\\varnothing(?![A-Za-z])|∅")
_SINGLE = re.compile(r"(?:\\left\s*)?(?:\[|\\\{)\s*(.*?)\s*(?:\\right\s*)?(?:\]|\\\})", re.DOTALL)
_UNITS = 4
"""Units that a number may have, as in `9.8 \\text{ m}/\\text{s}^2`."""
_ENCLOSED = re.compile(r"(-?)\s*(?:(?:\\left\s*)?\(\s*([^()]*?)\s*(?:\\right\s*)?\)|\{\s*([^{}]*)\s*\})", re.DOTALL)
_BASED = re.compile(
    r"\(?(\w+)\)?\s*(?:_\s*(?:\{\s*(?:\\text\s*\{)?\s*(?:base\s*)?(\w+)\s*\}?\s*\}|\\text\s*\{\s*(\w+)\s*\}|(\d+))"
    r"|\\text\s*\{\s*\(?base\s*\}?\s*(\w+)\s*\)?\s*\}?)"
)
_BASES = {
    "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10",
    "eleven": "11", "twelve": "12", "sixteen": "16",
}  # fmt: skip
_VERBATIM = re.compile(r"\d+([-:/.])\d+(?:\1\d+)+|\d+-\d+")
"""Dates, times, telephone numbers, versions: no arithmetic."""
_CLOCK = re.compile(
    r"(?:\\text\s*\{)?\s*0?((?:1?\d|2[0-4]):[0-5]\d)\s*(?:\\text\s*\{)?\s*(?:([apAP])\.?\s*[mM]\.?)?\s*\}?"
)
"""A time of the day; a ratio of two numbers is written like that as well."""
_PLAIN_TEXT = re.compile(r"\\(?:text|mbox)\s*\{([^{}]*)\}")
_LETTERS = re.compile(r"[A-Za-z]{4,}")
"""A word; fewer letters may be a product of variables."""
_LETTER_LIST = re.compile(r"[A-Z](?:\s*,\s*[A-Z])+")
_SPOKEN = ("yes", "no", "Yes", "No")
_CHOICE = re.compile(r"(?:[Oo]ption\s+)?\(?([A-Za-z])\)?[.)]?|\(([A-Z])\)[^A-Z(]*")


def plain(answer: str) -> str:
    """Returns `answer` without what does not change its value."""
    text = _SPACE.sub(" ", _NO_SPACE.sub("", _LIST.sub(", ", _NOTHING.sub("", answer))))
    text = _MINUS.sub("-", re.sub(r"\s+", " ", _ROW.sub("", text))).strip().strip("'\"")
    text = _DEGREE.sub(r"^\\circ ", text)
    if match := _APPROXIMATELY.fullmatch(text):
        text = match[1]
    text = _TEXT.sub(r"\1", _unwrapped(_UPRIGHT.sub(r"\\text", text))).strip()
    text = _EMPTY.sub(r"\\emptyset", _TIMES_TEN.sub(r" \\times ", as_latex(text)))
    if match := _THOUSANDS.match(text):
        text = match[1].replace(",", "") + text[match.end() :]
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
    text = stated(answer)
    if text is None:
        return answer
    single = _SINGLE.fullmatch(text)
    inner = single[1] if single else without_symbol(text)
    return _as_number(text) or (inner and _as_number(inner)) or answer


def equal_at_sight(gold: str, answer: str) -> bool | None:
    """Returns whether two plain answers are equal; None where that takes algebra.

    Numbers that are written out are equal exactly.
    """
    if base := _based(gold):
        # Problems name the base that they ask for, so the digits alone will do.
        return (_based(answer) or (answer, base[1])) == base
    if _VERBATIM.fullmatch(gold):
        return gold == answer.replace(" ", "")
    if clock := _CLOCK.fullmatch(gold):
        return _is_time(clock, _CLOCK.fullmatch(answer))
    equal = _equal_words(gold, answer)
    if equal is not None:
        return equal
    numbers = numeral(gold), numeral(answer)
    if numbers[0] is None or numbers[1] is None:
        return None
    return numbers[1].equals(numbers[0])


def _is_time(gold: re.Match[str], answer: re.Match[str] | None) -> bool:
    """Returns whether two times are the same; either may leave out a.m. or p.m."""
    if answer is None or answer[1] != gold[1]:
        return False
    return None in (answer[2], gold[2]) or answer[2].lower() == gold[2].lower()


def _equal_words(gold: str, answer: str) -> bool | None:
    """Returns whether an answer has the words or letters of the gold answer; None where that is no text."""
    letters = gold.replace(" ", "")
    forms = (_CHOICE.fullmatch(gold), _LETTERS.fullmatch(letters), _LETTER_LIST.fullmatch(gold))
    if r"\text" not in gold and not any(forms) and gold not in _SPOKEN:
        return None
    words = _words(gold)
    if words == _words(answer):
        return True
    # A letter that stands alone may be a variable.
    is_text = bool(words) and not re.search(r"[\d\\^=+]", " ".join(words)) and len(gold) > 1
    return False if is_text else None


def _words(text: str) -> list[str]:
    """Returns the words of an answer in words, or the letters of a choice, in order where a list has several."""
    parts = re.split(r"[,;]|\band\b", _PLAIN_TEXT.sub(r"\1", text).strip(" .!"))
    found = []
    for part in parts:
        choice = _CHOICE.fullmatch(part.strip())
        found.append((choice[1] or choice[2]) if choice else part.strip(" .!"))
    return sorted(" ".join(part.split()).casefold() for part in found if part)


def _based(text: str) -> tuple[str, str] | None:
    """Returns digits and base of a numeral such as `1011_2`; None for anything else."""
    match = _BASED.fullmatch(sides(text)[-1])
    if match is None or not match[1][:1].isdigit():
        return None
    base = next(filter(None, match.groups()[1:]))
    base = _BASES.get(base.lower(), base)
    return (match[1].upper(), base) if base.isdigit() else None


def _as_number(text: str) -> str | None:
    """Returns the number in `text`, without brackets around it, spaces in it and units after it; None without one."""
    for _ in range(_UNITS):
        if numeral(text) is not None:
            return text
        if _SPACED.fullmatch(text):
            return text.replace(" ", "")
        if enclosed := _ENCLOSED.fullmatch(text):
            rest: str | None = enclosed[1] + (enclosed[2] or enclosed[3] or "")
        else:
            rest = without_unit(text)
        if rest is None:
            return None
        text = rest
    return text if numeral(text) is not None else None


def _without_unit(text: str) -> str:
    """Returns an expression, such as `3\\pi` or `5\\sqrt{2}`, without the unit after it."""
    rest = without_unit(text)
    if re.search(r"\\circ|[°º]|\\degree", text):
        return text
    is_formula = rest is not None and r"\text" not in rest and re.search(r"(?:[\d})]|\\pi)$", rest)
    return rest if rest is not None and is_formula else text


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

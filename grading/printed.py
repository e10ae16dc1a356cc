r"""Rewrites what Python and sympy print as LaTeX: what a box around printed output usually holds.

`Fraction(1, 3)` becomes `\frac{1}{3}`, `x**2` becomes `x^{2}`, `[[1, 2], [3, 4]]` a matrix. LaTeX stays as it is.
"""

import re

_NUMPY = re.compile(r"(?:(?:np|numpy)\.)?(?:u?int|float)(?:8|16|32|64)\(([^()]*)\)")
_QUOTED = re.compile(r"(?:Decimal|mpf|Float|Integer|int|float)\(\s*(['\"]?)([-+.\deE]+)\1\s*(?:,\s*precision=\d+)?\)")
_WHOLE = re.compile(r"\b(?:Fraction|Rational)\(\s*(-?\d+)\s*,\s*1\s*\)|\(\s*([-+.\deE]+)\s*(?:,|[-+]0(?:\.0*)?j)\s*\)")
_RATIO = re.compile(r"(-?)\b(?:Fraction|Rational)\(\s*(-?)(\d+)\s*,\s*(\d+)\s*\)")
_GROUPED = re.compile(r"(?<![\w.])(\d{1,3}(?:_\d{3})+)(?![\w])", re.ASCII)
_EXPONENT = re.compile(r"(?<![\w.\\])(\d+(?:\.\d*)?|\.\d+)[eE]([-+]?\d{1,4})(?![\w.^])", re.ASCII)
_IMAGINARY = re.compile(r"(?<![\w.\\])(\d+(?:\.\d*)?)j\b", re.ASCII)
_SYMPY_I = re.compile(r"(?<=\*)I\b|(?<![\w\\])I(?=\*)")
_POWER = re.compile(r"\*\*\s*(-?\d+(?:\.\d+)?|[A-Za-z](?![A-Za-z(]))")
_MATRIX = re.compile(r"(?:(?:Matrix|array|np\.array)\()?\[\s*(\[[^][]*\](?:\s*,\s*\[[^][]*\])*)\s*\]\)?")
_ARRAY = re.compile(r"(?:Matrix|array|np\.array)\((\[[^][]*\])\)")
_WORDS = re.compile(r"(?<![A-Za-z\\])(pi|oo)(?![A-Za-z])")
_CALL = re.compile(r"(?<![A-Za-z\\])(sqrt|exp|[Aa]bs|log|sin|cos|tan|cot|sec|csc|asin|acos|atan)\(")
_AROUND: dict[str, tuple[str, str]] = {
    "sqrt": (r"\sqrt{", "}"),
    "exp": ("e^{", "}"),
    "abs": ("|", "|"),
    "Abs": ("|", "|"),
    "log": (r"\ln(", ")"),
    "asin": (r"\arcsin(", ")"),
    "acos": (r"\arccos(", ")"),
    "atan": (r"\arctan(", ")"),
}


def as_latex(text: str) -> str:
    """Returns `text`, an answer, with what Python prints rewritten as LaTeX."""
    text = _QUOTED.sub(r"\2", _NUMPY.sub(r"\1", text))
    text = _WHOLE.sub(lambda match: match[1] or match[2], text)
    text = _RATIO.sub(r"\1\2\\frac{\3}{\4}", text)
    text = _GROUPED.sub(lambda match: match[1].replace("_", ""), text)
    if _EXPONENT.fullmatch(text.strip().lstrip("-+")) is None:
        text = _EXPONENT.sub(r"\1 \\cdot 10^{\2}", text)
    text = _IMAGINARY.sub(r"\1i", text)
    text = _MATRIX.sub(_matrix, _ARRAY.sub(r"\1", text))
    text = _called(_POWER.sub(r"^{\1}", _SYMPY_I.sub("i", text)).replace("**(", "^("))
    return _WORDS.sub(lambda match: {"pi": r"\pi ", "oo": r"\infty "}[match[1]], text).strip()


def _matrix(match: re.Match[str]) -> str:
    rows = re.findall(r"\[([^][]*)\]", match[1])
    return r"\begin{pmatrix}" + r" \\ ".join(row.replace(",", " & ") for row in rows) + r"\end{pmatrix}"


def _called(text: str) -> str:
    """Returns `text` with Python's calls of functions, and exponents in brackets, written in LaTeX."""
    pieces: list[str] = []
    closing: list[str] = []
    """For each open bracket what closes it."""
    position = 0
    while position < len(text):
        call = _CALL.match(text, position)
        if call:
            opened, closed = _AROUND.get(call[1], (f"\\{call[1]}(", ")"))
            position = call.end()
        elif text.startswith("^(", position):
            opened, closed = "^{", "}"
            position += 2
        else:
            character = text[position]
            position += 1
            if character == "(":
                closing.append(")")
            pieces.append(closing.pop() if character == ")" and closing else character)
            continue
        closing.append(closed)
        pieces.append(opened)
    return "".join(pieces)

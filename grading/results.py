r"""Tells results from what still has to be computed, and from what the problem says already.

An answer is a result. `\sum_{k=1}^{100} k` is none where the gold answer is 5050, nor is `23 \cdot 45`, nor the root that
the problem asks to simplify. Two rules, applied to answers that are equal to the gold answer:

- *Nothing left to compute*: an answer has no kind of operation that could be carried out unless the gold answer has that
  kind too (`operations`). Roots that are irrational, π, e, i and everything that holds a variable are no such operation.
  Where the gold answer is a number that is written out (`grading.numerals`), so is the answer.
- *No copies*: what stands in the problem as it is answers it only where the gold answer stands there too (`is_copy`).
"""

import re
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

from grading.numerals import numeral
from grading.sides import sides

_COMMAND = re.compile(
    r"\\(?:[dt]?binom|choose|gcd|lcm|det|[bp]?mod|operatorname|overset|sum|prod|int|lim|partial)(?![A-Za-z])|[vV]matrix"
)
_QUOTIENT = re.compile(r"\\[dtc]?frac\s*\{\s*(\d{1,9})\s*\}\s*\{\s*(\d{1,9})\s*\}")
_LAYOUT = re.compile(
    r"\\(?:left|right|displaystyle|q?quad|[bB]igg?[lr]?|text(?:bf|it|rm)?|math(?:bf|it|rm))(?![A-Za-z])"
    r"|\\[,;:!]|\s++(?=\{)|\\\{|\\\}"
)
_FRACTION = re.compile(r"\\[dtc]?frac\s*(?:\{([^{}]*)\}\s*\{([^{}]*)\}|(?=\d)(\d)\s*(\d))")
_ROOT = re.compile(r"\\sqrt\s*(\w)")
_GROUP = re.compile(r"(?<!frac)(?<!\})\{([^{}]*)\}")
_NESTED = 4
"""Braces inside one another that are told apart."""
_SINGLE = re.compile(r"(?<![A-Za-z])\((\w+|\w+\.\d+|\\sqrt\(\w+\))\)")
_SLASHED = re.compile(r"(?<![\w.])(\d{1,9})/(\d{1,9})(?![\w.])")
_DRAWING = re.compile(r"\[asy\](?:(?!\[/asy\]).)*+\[/asy\]", re.DOTALL)
_EDGE = re.compile(r"\$|\\[][() ]")
_SPACES = re.compile(r"(?<![\w\s])\s++|\s++(?!\w)")
_FORMULA = re.compile(r"[-+*/^=<>|!(\[.%]|\\[A-Za-z]")
COSTLY = frozenset({"Sum", "Product", "Integral", "Limit", "Derivative"})
"""Kinds of operations that may take for ever: an answer that has them, and should not, is not compared."""
MAX_ROOT = 1000
"""Digits of a number beyond which its root is not looked for."""


def operations(text: str, value: Any) -> frozenset[str]:
    """Returns the kinds of operations in an answer that could be carried out.

    Args:
        text: the plain answer.
        value: what math-verify read of it, not evaluated; text where it read nothing.

    Takes time linear in the text and in the nodes of `value`.
    """
    # Some that math-verify carries out while it reads are in the text alone.
    found = set(_COMMAND.findall(text))
    if any(int(above) % max(int(below), 1) == 0 for above, below in _QUOTIENT.findall(text)):
        found.add("arithmetic")
    if not isinstance(value, str):
        found.update(_carried_out_in(value))
    return frozenset(found)


def is_copy(answer: str, gold: str, problem: str) -> bool:
    """Returns whether a plain answer is a formula of the problem's text, and the gold answer is none.

    Brackets around it, a sign before it, another layout of a fraction or a product make no difference. A number that has the
    gold answer's form is no copy: a decimal number with other zeros, or 1/2 for `\\frac12`. Code that draws a figure is no
    text.
    """
    value = answer if "=" in gold else sides(answer)[-1]
    if not _FORMULA.search(value) or _form(value) == _form(gold) or _is_percentage(value, gold):
        return False
    told, formula = squeeze(_DRAWING.sub(" ", problem)), squeeze(value)
    if not stands_in(formula, told):
        return _is_told(value, gold, told)
    # What stands in the formula alone, as 1 + 2i in a fraction with it, is not told.
    return formula != squeeze(gold) and not stands_in(squeeze(gold), told.replace(formula, " "))


def _is_percentage(answer: str, gold: str) -> bool:
    """Returns whether the answer is the gold answer with a percent sign."""
    written, number = numeral(answer), numeral(gold)
    return bool(written and number and written.percent and written.value == number.value)


def _is_told(answer: str, gold: str, told: str) -> bool:
    """Returns whether an answer that is a fraction equals one in the squeezed problem, where the gold answer is none."""
    written = numeral(answer)
    if (
        written is None
        or not re.search(r"frac|/", answer)
        or re.search(r"frac|/", gold)
        or stands_in(squeeze(gold), told)
    ):
        return False
    fractions = (Fraction(int(above), int(below)) for above, below in _SLASHED.findall(told) if int(below))
    return abs(written.value) in fractions


def _form(text: str) -> str:
    """Returns what tells forms of a number apart: "." for decimals, the digits of a fraction; a text that is no number."""
    written = numeral(text)
    if written is None or written.percent:
        return text
    if "^" in text:
        return squeeze(text)
    return "".join(re.findall(r"\d", text)) if re.search(r"frac|/", text) else "."


def squeeze(text: str) -> str:
    """Returns `text` without what only lays it out, fractions with a slash, products without a sign.

    Spaces stay between words, brackets go where they stand around all of it or around one name or number.
    """
    text = _ROOT.sub(r"\\sqrt{\1}", _LAYOUT.sub("", text))
    for _ in range(_NESTED):
        text = _GROUP.sub(r"(\1)", _FRACTION.sub(r"(\1\3)/(\2\4)", text))
    text = _SINGLE.sub(r"\1", _EDGE.sub(" ", text).replace("**", "^"))
    text = re.sub(r"\s+", " ", re.sub(r"\\cdot(?![A-Za-z])|\\times(?![A-Za-z])|\*", "", text))
    text = _SPACES.sub("", text).strip().lstrip("+")
    while text[:1] == "(" and text[-1:] == ")" and _closes(text) == len(text) - 1:
        text = text[1:-1].lstrip("+")
    return text


def _closes(text: str) -> int:
    """Returns where the bracket that `text` begins with is closed; -1 where it is not."""
    depth = 0
    for position, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return position
    return -1


def stands_in(formula: str, text: str) -> bool:
    """Returns whether squeezed `formula` stands in squeezed `text`, and not as a part of a longer number or name."""
    begin = r"(?<![\w.])" if formula[:1].isalnum() else ""
    end = r"(?!\w|\.\d)" if formula[-1:].isalnum() else ""
    return bool(formula) and re.search(begin + re.escape(formula) + end, text) is not None


def _carried_out_in(value: Any) -> Iterator[str]:
    """Yields the kinds of operations in a sympy value."""
    import sympy
    from sympy.functions.elementary.hyperbolic import HyperbolicFunction
    from sympy.functions.elementary.trigonometric import InverseTrigonometricFunction, TrigonometricFunction

    named = (
        sympy.Sum, sympy.Product, sympy.Integral, sympy.Limit, sympy.Derivative, sympy.factorial, sympy.binomial,
        sympy.Mod, sympy.floor, sympy.ceiling, sympy.Max, sympy.Min, sympy.Determinant, sympy.MatAdd, sympy.MatPow,
    )  # fmt: skip
    constant = (TrigonometricFunction, InverseTrigonometricFunction, HyperbolicFunction, sympy.Abs, sympy.log)
    for node in _nodes(value):
        if isinstance(node, named):
            yield type(node).__name__
        elif isinstance(node, sympy.MatMul):
            # A number before a matrix may stay there.
            if sum(part.is_Matrix for part in node.args) > 1:
                yield "MatMul"
        elif isinstance(node, constant) and not node.free_symbols:
            yield next(kind.__name__ for kind in constant if isinstance(node, kind))
        elif isinstance(node, (sympy.Add, sympy.Mul, sympy.Pow)) and _is_arithmetic(node):
            yield "arithmetic"


def _nodes(value: Any) -> Iterator[Any]:
    import sympy

    if isinstance(value, sympy.MatrixBase):
        for element in value.flat():
            yield from _nodes(element)
    elif isinstance(value, sympy.Basic):
        yield from sympy.preorder_traversal(value)


def _is_arithmetic(node: Any) -> bool:
    """Returns whether a sum, product or power has numbers that could be computed with one another."""
    import sympy

    if isinstance(node, sympy.Pow):
        return _is_power(*node.args)
    if isinstance(node, sympy.Add):
        # Two numbers, two terms that differ in their numbers alone, a zero.
        terms = [_without_numbers(part) for part in node.args]
        return len(set(terms)) < len(terms) or 0 in node.args
    factors = list(_factors(node))
    above = [part for part in factors if _is_number(part) and part != -1]
    below = [part.base for part in factors if _is_denominator(part)]
    if above == [1] and any(isinstance(part, sympy.Pow) and part.exp == -1 for part in factors):
        # The way in which a fraction is read.
        above = []
    exact = [divisor for divisor in below if divisor.is_Rational and divisor != 0]
    whole = any(number % divisor == 0 for number in above if number.is_Rational for divisor in exact)
    return 1 in above or len(above) > 1 or len(below) > 1 or whole


def _without_numbers(term: Any) -> tuple[str, ...]:
    """Returns the factors of a term that are no numbers, as text; none for a number."""
    import sympy

    factors = _factors(term) if isinstance(term, sympy.Mul) else [term]
    return tuple(sorted(str(part) for part in factors if not _is_constant(part)))


def _is_constant(part: Any) -> bool:
    return _is_number(part) or _is_denominator(part) or _is_power_of_ten(part)


def _is_denominator(part: Any) -> bool:
    import sympy

    return isinstance(part, sympy.Pow) and part.exp == -1 and _is_number(part.base)


def _factors(product: Any) -> Iterator[Any]:
    import sympy

    for part in product.args:
        if isinstance(part, sympy.Mul):
            yield from _factors(part)
        else:
            yield part


def _is_power(base: Any, exponent: Any) -> bool:
    """Returns whether a power of numbers could be carried out; a denominator and a power of ten are written like that."""
    import sympy

    if not _is_number(base) or not _is_number(exponent) or exponent == -1 or base == 10:
        return False
    if isinstance(exponent, sympy.Integer) or not isinstance(exponent, sympy.Rational):
        return True
    if not isinstance(base, sympy.Rational):
        return True
    return all(_has_root(int(part), int(exponent.q)) for part in (abs(base.p), base.q))


def _has_root(value: int, degree: int) -> bool:
    from sympy import integer_nthroot

    return value.bit_length() < 4 * MAX_ROOT and integer_nthroot(value, degree)[1]


def _is_number(value: Any) -> bool:
    """Returns whether a value is a written-out number, with or without a sign."""
    import sympy

    if isinstance(value, sympy.Mul) and len(value.args) == 2 and value.args[0] == -1:
        return _is_number(value.args[1])
    return isinstance(value, sympy.Number) and bool(value.is_finite)


def _is_power_of_ten(value: Any) -> bool:
    import sympy

    return isinstance(value, sympy.Pow) and value.base == 10 and isinstance(value.exp, sympy.Integer)

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
from typing import Any

from grading.numerals import numeral

_COMMAND = re.compile(
    r"\\(?:[dt]?binom|choose|gcd|lcm|det|[bp]?mod|operatorname|overset|sum|prod|int|lim|partial)(?![A-Za-z])|[vV]matrix"
)
_LAYOUT = re.compile(
    r"\\(?:left|right|displaystyle|q?quad|[bB]igg?[lr]?|text(?:bf|it|rm)?|math(?:bf|it|rm))(?![A-Za-z])"
    r"|\\[,;:!]|(?<=\\)[dt](?=frac)|\s*+\{|\}"
)
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
    if not isinstance(value, str):
        found.update(_carried_out_in(value))
    return frozenset(found)


def is_copy(answer: str, gold: str, problem: str) -> bool:
    """Returns whether a plain answer is a formula of the problem's text, and the gold answer is none.

    A number that has the gold answer's form is no copy: a decimal number with other zeros, or 1/2 for `\\frac12`. Code that
    draws a figure is no text.
    """
    if not _FORMULA.search(answer) or _form(answer) == _form(gold):
        return False
    squeezed = squeeze(_DRAWING.sub(" ", problem))
    return stands_in(squeeze(answer), squeezed) and not stands_in(squeeze(gold), squeezed)


def _form(text: str) -> str:
    """Returns what tells forms of a number apart: "." for decimals, the digits of a fraction; a text that is no number."""
    written = numeral(text)
    if written is None or written.percent:
        return text
    if "^" in text:
        return squeeze(text)
    return "".join(re.findall(r"\d", text)) if re.search(r"frac|/", text) else "."


def squeeze(text: str) -> str:
    """Returns `text` without what only lays it out: braces, dollar signs, `\\left`, spaces except between words."""
    text = _EDGE.sub(" ", _LAYOUT.sub("", text)).replace("**", "^").replace(r"\cdot", "*").replace(r"\times", "*")
    return _SPACES.sub("", text)


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
        sympy.Mod, sympy.floor, sympy.ceiling, sympy.Max, sympy.Min, sympy.Determinant,
    )  # fmt: skip
    constant = (TrigonometricFunction, InverseTrigonometricFunction, HyperbolicFunction, sympy.Abs, sympy.log)
    for node in _nodes(value):
        if isinstance(node, named):
            yield type(node).__name__
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
        return sum(part != 0 and (_is_number(part) or _is_power_of_ten(part)) for part in node.args) > 1
    factors = list(_factors(node))
    above = [part for part in factors if _is_number(part) and abs(part) != 1]
    below = [part for part in factors if isinstance(part, sympy.Pow) and part.exp == -1 and _is_number(part.base)]
    return len(above) > 1 or len(below) > 1


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

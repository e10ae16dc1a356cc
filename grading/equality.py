"""Refuses expressions that are too far apart to be equal, whatever math-verify says.

math-verify compares a fixed number of decimals, so it takes all small numbers for equal: 1/2^98 and 1/2^99, 1/2004! and
1/2006!. Here the difference is compared with the size of the numbers. An exact gold answer needs an exact answer (decimals
that end are exact). A gold answer in decimals needs one within `DECIMAL_TOLERANCE` of it, relatively.
"""

from collections.abc import Callable
from typing import Any

from math_verify.grader import get_pct_val
from sympy import Basic, Float, N, Rational

DECIMAL_TOLERANCE = 1e-6
"""Relative, where the gold answer is in decimals."""
EXACT_DECIMALS = 1e-14
"""Relative, where the gold answer is exact and the answer in decimals: what a decimal number is read with."""
EXACT = 1e-30
"""Relative, where both are exact: what 50 digits leave of a difference that is none."""

Comparison = Callable[[Any, Any, int, int], bool]


def far_apart(gold: Any, answer: Any) -> bool:
    """Returns whether two numbers, or expressions of the same symbols, differ by more than the gold answer's form allows.

    False also where that cannot be told. Symbols are given values, so a difference that only some values have may be missed.
    """
    if not isinstance(gold, Basic) or not isinstance(answer, Basic) or gold.free_symbols != answer.free_symbols:
        return False
    names = sorted(gold.free_symbols, key=str)
    values = {name: Rational(2 * index + 3, 7 * index + 5) for index, name in enumerate(names)}
    try:
        difference, size = (abs(N(value.subs(values).doit(), 50)) for value in (gold - answer, gold))
        if not size.is_positive or not difference.is_finite:
            return False
        tolerance = DECIMAL_TOLERANCE if gold.has(Float) else EXACT_DECIMALS if answer.has(Float) else EXACT
        return bool(difference > tolerance * size)
    except (ArithmeticError, AttributeError, TypeError, ValueError):
        return False


def strictly(compare: Comparison) -> Comparison:
    """Returns math-verify's comparison of two numbers, made to refuse those that are far apart."""

    def strict(gold: Any, answer: Any, float_rounding: int, numeric_precision: int) -> bool:
        # A percent sign may be left out on either side.
        return compare(gold, answer, float_rounding, numeric_precision) and not far_apart(
            get_pct_val(gold, gold), get_pct_val(answer, answer)
        )

    return strict

r"""Compares an answer with the gold answer: at sight where both are written-out numbers, else by math-verify.

math-verify reads LaTeX into sympy and is taught here what it does not know: degrees under a trigonometric function, the
imaginary unit, inequalities against intervals, printed lists. What it finds equal counts only if it is a result
(`grading.results`). May take for ever on an answer.
"""

import functools
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from grading.answers import MAX_ANSWER_LENGTH, equal_at_sight, plain, plain_number
from grading.choking import may_choke
from grading.intervals import as_range, without_variable
from grading.numerals import numeral
from grading.results import COSTLY, is_copy, operations, squeeze, stands_in
from grading.sides import assigned, sides, stated
from grading.text import as_number

_TRIGONOMETRIC = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])")
_DEGREES = re.compile(r"(\d+(?:\.\d+)?)\s*\^\s*(?:\{\s*\\circ\s*\}|\\circ)")
_EXPONENT = re.compile(r"[eE]\+?(-?\d+)$")
_SPELLINGS = (
    (re.compile(r"\\frac\s*(\\[A-Za-z]+)\s*(\d)"), r"\\frac{\1}{\2}"),
    (re.compile(r"\\log_\s*(?:\{\s*e\s*\}|e(?![A-Za-z]))"), r"\\ln "),
    (re.compile(r"\\langle(?![A-Za-z])\s*"), "("),
    (re.compile(r"\\rangle(?![A-Za-z])\s*"), ")"),
    (re.compile(r"√\s*(\d+)"), r"\\sqrt{\1}"),
    (re.compile(r"\\lbrace(?![A-Za-z])\s*"), r"\\{"),
    (re.compile(r"\\rbrace(?![A-Za-z])\s*"), r"\\}"),
    (re.compile(r"\\\{\s*\\\}"), r"\\emptyset"),
)
"""Pairs of what math-verify does not read and the same in words that it does."""
_LIST = re.compile(r"\[([^][()]*)\]")
_LISTED = re.compile(r"(?!(?:\\left\s*)?[\[(])[^<>]*(?:,|\\pm|\band\b)[^<>]*")
_BRACES = re.compile(r"(?:\\left\s*)?\\\{[^<>|:]*(?:\\right\s*)?\\\}")
_BRACKETS = re.compile(r"(?:\\left\s*)?([\[(])([^][()]*),([^][()]*?)(?:\\right\s*)?([\])])", re.DOTALL)
_GROUPS = re.compile(r"-?\d{1,3}(?:,\d{3})+")
_VAGUE = re.compile(r"\\[lc]?dots(?![A-Za-z])|\.\.\.|…"), re.compile(r"\\approx(?![A-Za-z])|≈")
"""A list that goes on, and a value that is about another."""
_POINT = re.compile(r"^[A-Z]\s*(?=(?:\\left\s*)?\()")
_WORDS = re.compile(r"\\(?:text|mbox)(?![A-Za-z])|(?<![\\A-Za-z{])[A-Za-z]{3,}")


@dataclass(frozen=True)
class Verdict:
    """Says what came of a comparison."""

    equal: bool
    parsed: bool
    """The answer could be read as mathematics, or is the gold answer's text."""
    refused: bool = False
    """It was not compared: it is too long, or would take too long."""
    unevaluated: bool = False
    """It is no result (`grading.results`) and equals the gold answer, or was not even computed; `equal` is false."""


def compare(answer: str | None, gold: str, rule: str, problem: str = "") -> Verdict:
    """Returns whether an answer equals the gold answer, by a rule of `GradingConfig`. Has no time limit.

    By `last_number` nothing equals a gold answer that is no number. `problem` is the problem's text.
    """
    if answer is None:
        return Verdict(equal=False, parsed=False)
    if rule == "last_number":
        return _compare_numbers(answer, gold, problem)
    if len(answer) > MAX_ANSWER_LENGTH or (may_choke(answer) and not may_choke(gold)):
        return Verdict(equal=False, parsed=True, refused=True)
    # "Enter all solutions, separated by commas": 70,110 are two of them.
    gold = plain(_listed(gold) if "comma" in problem.lower() else gold)
    answer = plain(_listed(answer) if "," in gold else answer)
    written = numeral(gold)
    answer = _asked(answer, problem)
    value = plain_number(answer) if written is not None else _stated(answer, gold)
    if value is None:
        return Verdict(equal=False, parsed=True)
    answer = value
    is_other = _other_brackets(gold, answer) or any(sign.search(answer) and not sign.search(gold) for sign in _VAGUE)
    equal = False if is_other else equal_at_sight(gold, answer)
    if equal is None:
        verdict = _by_algebra(answer, gold)
    else:
        found = numeral(answer)
        verdict = _verdict(equal, is_result=not (written and found and found.divided and not written.divided))
    return _verdict(True, is_result=False) if verdict.equal and is_copy(answer, gold, problem) else verdict


def _listed(text: str) -> str:
    """Returns numbers that commas separate, apart from one another; any other text as it is."""
    return text.replace(",", ", ") if _GROUPS.fullmatch(text.strip()) else text


def _stated(answer: str, gold: str) -> str | None:
    """Returns what an answer states, without names of values; None where it states nothing.

    Where the gold answer is an equation or text, an answer states all that it says.
    """
    if "=" in gold or re.match(r"\\text|\([A-Za-z]\)$", gold):
        return answer
    values = assigned(answer)
    is_pair = re.match(r"(?:\\left\s*)?[\[(]", gold)
    if values is None:
        text = stated(_POINT.sub("", answer) if is_pair else answer)
        return text if text is None or text == answer else plain(text)
    names = sorted({name for name, _ in values})
    if is_pair and len(names) == len(values):
        return f"({', '.join(dict(values)[name] for name in names)})"
    return ", ".join(value for _, value in values) if len(names) == 1 else None


def _asked(answer: str, problem: str) -> str:
    """Returns the right-hand side of an equation whose left-hand side stands in the problem, which asks for it."""
    first, *others = sides(answer)
    if not others or not problem:
        return answer
    told = squeeze(problem)
    is_asked = stands_in(squeeze(first), told) and not stands_in(squeeze(answer), told)
    return others[-1] if is_asked else answer


def _verdict(equal: bool, *, is_result: bool, parsed: bool = True) -> Verdict:
    return Verdict(equal=equal and is_result, parsed=parsed, unevaluated=equal and not is_result)


def _other_brackets(gold: str, answer: str) -> bool:
    """Returns whether two pairs differ in their brackets: sympy takes all intervals that end before they begin for one.

    Nor is a set of two a pair.
    """
    pairs = _BRACKETS.fullmatch(gold), _BRACKETS.fullmatch(answer)
    if pairs[0] and pairs[1]:
        # An infinite end is open, however it is written.
        return r"\infty" not in gold + answer and pairs[0].group(1, 4) != pairs[1].group(1, 4)
    return pairs[0] is not None and _BRACES.fullmatch(answer) is not None and "\\mid" not in answer


def _compare_numbers(answer: str, gold: str, problem: str) -> Verdict:
    if max(len(answer), len(gold)) > MAX_ANSWER_LENGTH:
        return Verdict(equal=as_number(answer) == as_number(gold), parsed=True)
    gold, answer = plain(gold), plain(answer)
    written, found = numeral(gold), numeral(answer)
    if written is None or found is None:
        return Verdict(equal=False, parsed=True)
    is_result = (written.divided or not found.divided) and not is_copy(answer, gold, problem)
    return _verdict(found.equals(written), is_result=is_result)


def _by_algebra(answer: str, gold: str) -> Verdict:
    """Compares a plain answer by math-verify."""
    parse, verify, target = math_verify()
    (gold_value, *_), (value, *_) = (
        [*parse(f"\\boxed{{{text}}}", target, extraction_mode="first_match", parsing_timeout=None), ""]
        for text in _alike(gold, answer)
    )
    left = operations(answer, value) - operations(gold, gold_value)
    if left & COSTLY:
        return Verdict(equal=False, parsed=True, unevaluated=True)
    equal = bool(verify(gold_value, value, timeout_seconds=None)) or _equal_complex(gold_value, value, verify)
    is_result = isinstance(gold_value, str) or not left
    if equal and numeral(gold) is not None:
        # Words that math-verify leaves out, as in `5 \text{ or more}`, make another answer of it.
        equal, is_result = not _WORDS.search(answer), False
    # What can't be parsed stays text, which may still be the gold answer, such as a name.
    return _verdict(equal, is_result=is_result, parsed=equal or not isinstance(value, str))


def _alike(gold: str, answer: str) -> tuple[str, str]:
    """Returns plain gold answer and answer as math-verify reads them, inequalities and printed lists in the other's form."""
    gold, answer = _readable(gold), _readable(answer)
    ranges = as_range(gold), as_range(answer)
    if ranges[0] and ranges[1]:
        if ranges[0].variable == ranges[1].variable:
            return ranges[0].interval, ranges[1].interval
    elif ranges[0] and _BRACKETS.match(answer):
        return ranges[0].interval, answer
    elif ranges[1] and _BRACKETS.match(gold):
        return gold, ranges[1].interval
    printed = _LIST.fullmatch(answer)
    return gold, printed[1] if printed and _LISTED.fullmatch(gold) else answer


def _readable(text: str) -> str:
    """Returns a plain answer in words that math-verify knows."""
    written = numeral(text)
    if written is not None and not written.percent:
        if written.digits:
            return _EXPONENT.sub(r" \\cdot 10^{\1}", text)
        return rf"\frac{{{written.value.numerator}}}{{{written.value.denominator}}}"
    if _TRIGONOMETRIC.search(text):
        text = _DEGREES.sub(r"(\1 \\cdot \\frac{\\pi}{180})", text)
    for spelling, known in _SPELLINGS:
        text = spelling.sub(known, text)
    return without_variable(text)


def _equal_complex(gold: Any, answer: Any, verify: Callable[..., Any]) -> bool:
    """Returns whether two values are equal with their symbol i as the imaginary unit, which math-verify leaves a symbol."""
    import sympy

    if not isinstance(gold, sympy.Basic) or not isinstance(answer, sympy.Basic):
        return False
    symbols = gold.free_symbols | answer.free_symbols
    if "i" not in {symbol.name for symbol in symbols}:
        return False
    # A text with an i has complex symbols, one without has real ones, which are others.
    values = {symbol: sympy.I if symbol.name == "i" else sympy.Symbol(symbol.name) for symbol in symbols}
    try:
        return bool(verify(gold.subs(values), answer.subs(values), timeout_seconds=None))
    except (TypeError, ValueError):
        # Of complex numbers sympy makes no inequality, interval or maximum.
        return False


@functools.cache
def math_verify() -> tuple[Callable[..., Any], Callable[..., Any], tuple[Any, ...]]:
    """Imports math-verify, which takes seconds; returns its functions and extraction settings."""
    from math_verify import LatexExtractionConfig, grader, parse, parser, verify

    from grading.equality import strictly

    grader.sympy_numeric_eq = strictly(grader.sympy_numeric_eq)
    # Its parser takes R and r for one symbol, so that R - r would be 0.
    conversion = inspect.signature(parser.latex2sympy).parameters["conversion_config"].default
    parser.latex2sympy = functools.partial(
        parser.latex2sympy, conversion_config=replace(conversion, lowercase_symbols=False)
    )
    # Units are taken off already (`grading.answers`): math-verify would take the c of a + c for one.
    normalization = replace(LatexExtractionConfig().normalization_config, units=False)
    # Only the box as a whole counts: with other targets, math-verify would fish for numbers inside what it can't parse.
    return parse, verify, (LatexExtractionConfig(boxed_match_priority=0, normalization_config=normalization),)

r"""Reads numbers that are written out: decimals, fractions, mixed numbers, powers of ten, repeating decimals, percentages.

Python's spellings are among them: `3.2e-05`, `1_000_000`. Their values are exact.
"""

import re
from dataclasses import dataclass
from fractions import Fraction

MAX_EXPONENT = 1000
"""Power of ten beyond which a number counts as no number: it is not worth its digits."""
NOISE = Fraction(1, 10**14)
"""Relative difference that a computation with doubles may leave, as in 0.1 + 0.2."""
NOISE_DIGITS = 15
"""A decimal of at least so many significant digits is what a double prints; a gold answer of more is to be met exactly."""

_SIGN = r"[-+−]?\s*"
_INTEGER = rf"(?:{_SIGN}\d+)"
_DECIMAL = r"(?:\d+(?:\.\d*)?|\.\d+)"
_ARGUMENT = rf"(?:\s*\{{\s*({_INTEGER})\s*\}}|\s*(\d))"
_FRACTION = re.compile(rf"\\[dtc]?frac{_ARGUMENT}{_ARGUMENT}|(\d+)\s*/\s*({_INTEGER})", re.ASCII)
_MIXED = re.compile(rf"(\d+)\s*(?=\\[dtc]?frac)(?:{_FRACTION.pattern})|(\d+)\s+(\d+)\s*/\s*(\d+)", re.ASCII)
_EXPONENT = re.compile(rf"({_DECIMAL})[eE]({_INTEGER})", re.ASCII)
_POWER = re.compile(
    rf"(?:({_DECIMAL})\s*(?:\\cdot|\\times|\*|×|·)\s*)?10\s*\^\s*(?:\{{\s*({_INTEGER})\s*\}}|({_INTEGER}))", re.ASCII
)
_REPEATING = re.compile(
    r"(\d*)\.(\d*)(?:\\overline\s*\{(\d+)\}|\\bar\s*\{(\d+)\}|\\dot\s*\{(\d)\}|\((\d+)\))", re.ASCII
)
_PERCENT = re.compile(r"(.*?)(?:\\?%|\\text\s*\{\s*percent\s*\}|\bpercent)", re.DOTALL)


@dataclass(frozen=True)
class Numeral:
    """A number that is written out."""

    value: Fraction
    """Its value; with a percent sign, what stands before that."""
    percent: bool = False
    divided: bool = False
    """It is a fraction whose value is a whole number: a division that is still to be done."""
    digits: int = 0
    """Significant digits, where it is a decimal number with a point or an exponent; 0 where it is exact."""

    def equals(self, gold: "Numeral") -> bool:
        """Returns whether this number equals the gold one: exactly, but for the noise of doubles.

        A percent sign may be left out, or be written for a hundredth.
        """
        values = {self.value}
        if self.percent != gold.percent:
            values.add(self.value / 100 if self.percent else self.value * 100)
        if gold.value in values:
            return True
        if self.digits < NOISE_DIGITS or _significant(gold.value) > NOISE_DIGITS:
            return False
        return any(abs(value - gold.value) <= NOISE * abs(gold.value) for value in values)


def numeral(text: str) -> Numeral | None:
    """Returns the number that the whole of `text` is; None if it is none."""
    text = text.strip()
    percent = _PERCENT.fullmatch(text)
    body = (percent[1] if percent else text).strip()
    sign = -1 if body[:1] in ("-", "−") else 1
    body = body[1:].lstrip() if body[:1] in ("-", "−", "+") else body
    found = _unsigned(body)
    if found is None:
        return None
    return Numeral(sign * found.value, percent is not None, found.divided, found.digits)


def number(text: str) -> Fraction | None:
    """Returns the value of the number that the whole of `text` is; None if it is none, or a percentage."""
    found = numeral(text)
    return None if found is None or found.percent else found.value


def _unsigned(text: str) -> Numeral | None:
    if match := re.fullmatch(_DECIMAL, text, re.ASCII):
        return Numeral(Fraction(text), digits=_digits(text) if "." in text else 0)
    if match := _EXPONENT.fullmatch(text):
        return _scaled(match[1], match[2])
    if match := _POWER.fullmatch(text):
        return _scaled(match[1] or "1", match[2] or match[3])
    if match := _FRACTION.fullmatch(text):
        return _divided(*(_integer(part) for part in match.groups() if part))
    if match := _MIXED.fullmatch(text):
        whole, above, below = (_integer(part) for part in match.groups() if part)
        part = _divided(above, below)
        return Numeral(whole + part.value) if part and part.value >= 0 else None
    if match := _REPEATING.fullmatch(text):
        start, before, *groups = match.groups()
        group = next(filter(None, groups))
        value = Fraction(int(start + before or "0")) + Fraction(int(group), 10 ** len(group) - 1)
        return Numeral(value / 10 ** len(before))
    return None


def _integer(text: str) -> int:
    return int(re.sub(r"\s", "", text).replace("−", "-"))


def _scaled(text: str, exponent: str) -> Numeral | None:
    power = _integer(exponent)
    return Numeral(Fraction(text) * Fraction(10) ** power, digits=_digits(text)) if abs(power) <= MAX_EXPONENT else None


def _divided(above: int, below: int) -> Numeral | None:
    return Numeral(Fraction(above, below), divided=above % below == 0) if below else None


def _digits(text: str) -> int:
    return len(text.replace(".", "").lstrip("0"))


def _significant(value: Fraction) -> int:
    """Returns the digits of a whole number without the zeros that it ends with; 0 for a fraction."""
    return len(str(abs(value.numerator)).rstrip("0")) if value.denominator == 1 else 0

r"""Recognises answers that would take math-verify minutes or gigabytes, by their text alone.

sympy writes numbers out as it reads them, so `9^{9^{9}}` never ends. No answer needs such a number written out, nor
dozens of brackets inside one another: what is recognised here is refused unless the gold answer is of that kind too. What
is not recognised costs a time limit (`grading.grader`).
"""

import re

MAX_DEPTH = 40
"""Brackets inside one another; answers of the usual data sets have six at most."""
MAX_EXPONENT = 100_000
_FACTORIALS = re.compile(
    # 10000000!, (100!)!, (100!)^{100}
    r"[0-9]{5,}[\s)}\]]*!|[0-9]{2,}\s*![\s)}\]]+[!^]|![\s)}\]]*\^\s*\{?\s*[0-9]{3,}"
    # \binom{10000000}{5000000}
    r"|\\[dt]?binom\s*\{\s*[0-9]{5,}\s*\}\s*\{\s*[0-9]{4,}"
)
_EXPANSION = re.compile(r"[A-Za-z][^()]*\)\s*\}?\s*\^\s*\{?\s*[0-9]{3,}")
"""(x+y+z+w)^{500}."""
_PIECE = re.compile(r"\\[A-Za-z]+|[0-9]+|\S")
_OPEN, _CLOSE = "([{", ")]}"


def may_choke(text: str) -> bool:
    """Returns whether math-verify may choke on `text`, an answer of at most about a thousand characters."""
    text = text.replace(r"\left", "").replace(r"\right", "")
    return (
        _depth(text) > MAX_DEPTH
        or _FACTORIALS.search(text) is not None
        or _EXPANSION.search(text) is not None
        or any(_exceeds(exponent) for exponent in _exponents(_PIECE.findall(text)))
    )


def _depth(text: str) -> int:
    depth = most = 0
    for character in text:
        depth += (character in _OPEN) - (character in _CLOSE)
        most = max(most, depth)
    return most


def _exponents(pieces: list[str]) -> list[list[str]]:
    """Returns the exponents: what stands behind each `^`, with the exponents of its own."""
    found = []
    for position, piece in enumerate(pieces):
        if piece == "^":
            end = _operand(pieces, position + 1)
            # 9^9^9, which LaTeX refuses and math-verify reads.
            while end < len(pieces) and pieces[end] == "^":
                end = _operand(pieces, end + 1)
            found.append(pieces[position + 1 : end])
    return found


def _operand(pieces: list[str], start: int) -> int:
    """Returns where the operand that begins at `start` ends: a signed piece or a group in brackets."""
    if start < len(pieces) and pieces[start] in "+-":
        start += 1
    depth = 0
    for position in range(start, len(pieces)):
        depth += (pieces[position] in _OPEN) - (pieces[position] in _CLOSE)
        if depth <= 0:
            return position + 1
    return len(pieces)


def _exceeds(exponent: list[str]) -> bool:
    """Returns whether the numbers of an exponent, raised to one another as they stand, exceed `MAX_EXPONENT`."""
    value = 1.0
    numbers = [float(piece) for piece in exponent if piece.isdecimal()]
    if "^" in exponent:
        for number in reversed(numbers):
            value = min(number, 1e9) ** min(value, 30.0) if number > 1 else number
        return value > MAX_EXPONENT
    return any(number > MAX_EXPONENT for number in numbers)

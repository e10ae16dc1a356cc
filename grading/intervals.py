"""Writes inequalities of one variable as intervals, so that `1 < x < 3` can be compared with `(1, 3)`."""

import re
from typing import NamedTuple

_RELATION = re.compile(r"\s*(<=|>=|<|>|≤|≥|\\(?:le|ge)(?:q|qslant)?(?![A-Za-z])|\\[lg]t(?![A-Za-z]))\s*")
_VARIABLE = re.compile(r"[A-Za-z]|\\(?:theta|alpha|beta|lambda|mu)")
_OR = re.compile(r"\s*(?:\\text\s*\{\s*or\s*\}|\bor\b|\\lor(?![A-Za-z])|\\vee(?![A-Za-z])|\\cup(?![A-Za-z]))\s*")
_BUILDER = re.compile(r"\\\{\s*([A-Za-z])\s*(?:\\in\s*\\mathbb\s*\{?R\}?\s*)?(?:\\mid|:|\|)\s*(.*?)\s*\\\}", re.DOTALL)
_MEMBER = re.compile(r"[A-Za-z]\s*\\in\s*((?:\\left\s*)?[\[(\\].*)", re.DOTALL)


class Range(NamedTuple):
    """The values that a variable may have."""

    variable: str
    interval: str
    """In LaTeX, such as `(1, 3]`; parts of a union are joined by `\\cup`."""


def as_range(text: str) -> Range | None:
    """Returns what the inequality `text` says of its variable; None if it is none, or of several variables.

    An inequality is one bound or two, such as `x \\ge 2` and `1 < x < 3`, or several of these joined by "or".
    """
    parts = [_one_range(part) for part in _OR.split(text)]
    found = [part for part in parts if part is not None]
    if len(found) < len(parts) or len({part.variable for part in found}) > 1:
        return None
    return Range(found[0].variable, r" \cup ".join(part.interval for part in found))


def without_variable(text: str) -> str:
    """Returns the set in `x \\in [0, 1]`, and the condition in `\\{x \\mid x > 2\\}`; any other text as it is."""
    if builder := _BUILDER.fullmatch(text):
        return builder[2]
    member = _MEMBER.fullmatch(text)
    return member[1] if member else text


def _one_range(text: str) -> Range | None:
    first, *rest = _RELATION.split(text.strip())
    relations, sides = rest[::2], [first, *rest[1::2]]
    less = [relation.startswith(("<", "≤", r"\l")) for relation in relations]
    if not relations or len(relations) > 2 or len(set(less)) > 1 or not all(sides):
        return None
    if not less[0]:
        relations.reverse()
        sides.reverse()
    # Now the sides grow from left to right; a side that is missing is infinite.
    if len(sides) == 2:
        if _VARIABLE.fullmatch(sides[0]):
            relations, sides = ["<", *relations], [r"-\infty", *sides]
        else:
            relations, sides = [*relations, "<"], [*sides, r"\infty"]
    low, variable, high = sides
    bare = not re.search(rf"(?<![A-Za-z\\]){re.escape(variable)}(?![A-Za-z])|=|,", low + " " + high)
    if not _VARIABLE.fullmatch(variable) or not bare:
        return None
    left, right = ("(" if _is_strict(relations[0]) else "["), (")" if _is_strict(relations[1]) else "]")
    return Range(variable, f"{left}{low}, {high}{right}")


def _is_strict(relation: str) -> bool:
    return relation in ("<", ">", r"\lt", r"\gt")

r"""Reads what an answer states: `42` in `f(2) = 42` and in `6 \cdot 7 = 42`, nothing in `2x = 42`, which is not solved."""

import re

_NAME = re.compile(
    r"(?:[A-Za-z]|[A-Z]{2,}|[A-Za-z]{3,}|\\(?:theta|alpha|beta|gamma|lambda|mu|phi|omega|sigma|Delta|delta|ell)"
    r"|m?\s*\\(?:angle|triangle|overline|text|operatorname)\s*\{?[A-Za-z ]+\}?)'*(?:_\s*\{?\w+\}?)?(?:\s*\([^()=]*\))?"
    r"|\(\s*\\?[A-Za-z]+(?:\s*,\s*\\?[A-Za-z]+)+\s*\)|[|\[]\s*[A-Z]{2,}\s*[|\]]|\|[A-Za-z]\|"
)
_JOINT = re.compile(
    r",(?![^()]*\))|;|\\text\s*\{\s*,?\s*(?:and|or)\s*\}|\b(?:and|or)\b|\\lor(?![A-Za-z])|\\vee(?![A-Za-z])"
)
_COMMAND = re.compile(r"\\[A-Za-z]+")
_NO_EQUATION = re.compile(
    r"[<>!≠≤≥]|\\(?:[lg](?:e|eq|t)?|neq?|not|lnot|neg|lor|vee|text|approx|equiv)(?![A-Za-z])|\b(?:and|or)\b"
)


def sides(text: str) -> list[str]:
    """Returns the sides of an equation, or of a chain of them; `text` alone where it is none or lists several."""
    depth = 0
    found = [""]
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if depth == 0 and character in ",;":
            return [text]
        if depth == 0 and character == "=" and found[-1][-1:] not in ("<", ">", "!"):
            found.append("")
        else:
            found[-1] += character
    return [side.strip() for side in found]


def stated(text: str) -> str | None:
    """Returns the value that an answer states: the last side of an equation, the answer itself where it is none.

    The first side is a name (`x`, `f(2)`, `AB`); otherwise no side has variables that the last one has not. None for an
    equation of another kind: it would still have to be solved, or says something else.
    """
    first, *others = sides(text)
    if not others:
        return text
    if _NO_EQUATION.search(_NAME.sub("", first, count=1) + " ".join(others)):
        return None
    rest = others if not first or _NAME.fullmatch(first) else [first, *others]
    variables = _variables(others[-1])
    return others[-1] if all(_variables(side) <= variables for side in rest) else None


def _variables(text: str) -> set[str]:
    """Returns the letters in a formula but for e and i."""
    return set(re.findall(r"[A-Za-z]", _COMMAND.sub("", text))) - {"e", "i"}


def assigned(text: str) -> list[tuple[str, str]] | None:
    """Returns names and values in a list such as `x = 1, y = 2` or `x = 1 \\text{ or } x = 2`; None where it is none."""
    found = []
    for part in _JOINT.split(text):
        match = re.fullmatch(r"\s*([A-Za-z])\s*=\s*([^=]+?)\s*", part)
        if match is None:
            return None
        found.append((match[1], match[2]))
    return found if len(found) > 1 else None

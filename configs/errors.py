"""Errors that the user has to fix, and names as an error lists them."""

import difflib
from collections.abc import Iterable, Sequence

LISTED = 20
"""Most names that a hint lists."""
NAMED = 3
"""Most names that an error gives as examples."""


class UserError(Exception):
    """Trying again does not help: a process that ends with it exits with status 2. The text says what to do."""


def closest(name: str, valid: Iterable[str]) -> str | None:
    """Returns the valid name that an unknown one was meant to be; None where none is like it."""
    return next(iter(difflib.get_close_matches(name, list(valid), n=1, cutoff=0.5)), None)


def nearest(name: str, valid: Iterable[str]) -> str:
    """Returns the end of an error message about an unknown name: the valid one that was meant, or the valid ones."""
    names = list(valid)
    if close := closest(name, names):
        return f": did you mean {close}?"
    if not names:
        return ""
    left = f", ... ({len(names)} in all)" if len(names) > LISTED else ""
    return f": valid are {', '.join(names[:LISTED])}{left}"


def some(names: Sequence[str]) -> str:
    """Returns the first few names, and how many more there are."""
    rest = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {rest} more" if rest > 0 else "")

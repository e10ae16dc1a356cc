"""Makes text fit for a terminal: nothing that others wrote may move its cursor, hide text, or begin a line of its own."""

import os
from typing import TextIO


def printable(text: str) -> str:
    """Returns `text` in one line of printable characters; all others are escaped as in Python's strings."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def takes_colours(stream: TextIO) -> bool:
    """Returns whether `stream` is a terminal that shows colours, and whose user wants them (`NO_COLOR`)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"

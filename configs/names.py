"""The rule for names of runs and processes: they become parts of NATS subjects, accounts and files."""

import re
from typing import Annotated

from pydantic import Field

LONGEST = 64
PATTERN = "^[A-Za-z0-9_-]{1,64}$"
RULE = "letters (a to z), digits, - and _, 64 at most"

Name = Annotated[str, Field(pattern=PATTERN)]


def to_name(text: str) -> str:
    """Returns the name that is nearest to `text`: with - for what cannot be in it, and without the middle of a long one."""
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", text)
    return name if len(name) <= LONGEST else f"{name[: LONGEST // 2]}-{name[-(LONGEST // 2 - 1) :]}"


def is_name(text: str) -> bool:
    """Returns whether `text` keeps the rule."""
    return re.fullmatch(PATTERN[1:-1], text) is not None

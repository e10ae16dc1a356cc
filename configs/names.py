"""The rule for names of runs and processes: they become parts of NATS subjects, accounts and files."""

import re
from typing import Annotated

from pydantic import Field

PATTERN = "^[A-Za-z0-9_-]{1,64}$"
RULE = "letters (a to z), digits, - and _, 64 at most"

Name = Annotated[str, Field(pattern=PATTERN)]


def is_name(text: str) -> bool:
    """Returns whether `text` keeps the rule."""
    return re.fullmatch(PATTERN[1:-1], text) is not None

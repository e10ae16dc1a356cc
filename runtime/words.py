"""Puts numbers and lengths of time into words."""

import re


def how_long(seconds: float) -> str:
    """Returns a length of time in its two largest units."""
    left = max(0, round(seconds))
    parts: list[str] = []
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s")):
        count, left = divmod(left, size)
        if count or parts or unit == "s":
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2])


def time_left(seconds: float) -> str:
    """Returns what a task is estimated to take yet, no more exact than estimates are."""
    if seconds < 8:
        return "a few seconds left"
    if seconds < 115:
        return f"about {round(seconds / 10) * 10} s left"
    # The second unit is left out where there is none of it.
    return f"about {re.sub(' 0 [a-z]+$', '', how_long(round(seconds / 60) * 60))} left"


def counted(number: int, what: str) -> str:
    """Returns how many of something there are, such as `1 step` and `2 steps`."""
    return f"{number} {what}{'' if number == 1 else 's'}"

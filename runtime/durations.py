"""Lengths of time for people."""


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
    if seconds < 115:
        return f"about {max(10, round(seconds / 10) * 10)} s left"
    return f"about {how_long(round(seconds / 60) * 60).removesuffix(' 0 s')} left"

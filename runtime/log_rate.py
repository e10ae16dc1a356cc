"""Bounds how often one event is logged: what others send must fill no disk and hide nothing else.

The first lines of an event within a minute are logged, all others of that minute are counted. The last line that is logged
says that others are left out, and the next minute's first one how many. What a library says in texts that vary is one event
where the texts begin alike.
"""

import copy
import logging
import time

MOST_WARNINGS = 60
MOST = 600
"""Lines of one event in a period, of warnings and errors, and below: a role's own progress is no flood."""
PERIOD_S = 60.0
BEGINNING = 40
"""Characters by which events are told apart."""
MOST_EVENTS = 10_000
"""Events that are told apart; with more of them in one period, all counts begin anew."""


class RateFilter(logging.Filter):
    """Bounds the lines of each event in `PERIOD_S` seconds; a handler has one of its own, which counts what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self._periods: dict[tuple[str, str], tuple[float, int]] = {}
        """When the period of an event began and how many lines it has."""

    def filter(self, record: logging.LogRecord) -> bool | logging.LogRecord:
        """Returns whether the line is logged, or the line with what is to be said of others."""
        # Ours carry their event and its values; a library's text comes before its values are put in.
        event = record.msg.get("event") if isinstance(record.msg, dict) else record.msg
        key = (record.name, event[:BEGINNING] if isinstance(event, str) else type(event).__name__)
        most = MOST_WARNINGS if record.levelno >= logging.WARNING else MOST
        now = time.monotonic()
        begin, lines = self._periods.get(key, (now, 0))
        left_out = 0
        if now - begin >= PERIOD_S:
            begin, lines, left_out = now, 0, max(0, lines - most)
        if len(self._periods) >= MOST_EVENTS:
            self._forget(now)
        self._periods[key] = (begin, lines + 1)
        if lines >= most:
            return False
        if left_out:
            return _with(record, left_out=left_out)
        if lines == most - 1:
            return _with(record, left_out="any more like this, for up to a minute")
        return True

    def _forget(self, now: float) -> None:
        self._periods = {key: period for key, period in self._periods.items() if now - period[0] < PERIOD_S}
        if len(self._periods) >= MOST_EVENTS:
            self._periods.clear()


def _with(record: logging.LogRecord, **values: object) -> logging.LogRecord:
    record = copy.copy(record)
    if isinstance(record.msg, dict):
        record.msg = {**record.msg, **values}
    else:
        record.msg = f"{record.msg} {values}"
    return record

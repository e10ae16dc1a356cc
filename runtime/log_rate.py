"""Bounds how often one event is logged: what others send must fill no disk and hide nothing else.

The first `MOST` lines of an event within a minute are logged, all others of that minute are counted. The last line that is
logged says that others are left out, and the next minute's first one how many.
"""

import copy
import logging
import time

MOST = 60
PERIOD_S = 60.0
MOST_EVENTS = 10_000
"""Events that are told apart; with more of them, which only texts that vary can be, all counts begin anew."""


class RateFilter(logging.Filter):
    """Lets `MOST` lines of each event pass in `PERIOD_S` seconds; one of a handler's own, since it counts what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self._periods: dict[tuple[str, str], tuple[float, int]] = {}
        """When the period of an event began and how many lines it has."""

    def filter(self, record: logging.LogRecord) -> bool | logging.LogRecord:
        """Returns whether the line is logged, or the line with what is to be said of others."""
        # Ours carry their event and its values; a library's text comes before its values are put in.
        event = record.msg.get("event") if isinstance(record.msg, dict) else record.msg
        key = (record.name, str(event))
        now = time.monotonic()
        begin, lines = self._periods.get(key, (now, 0))
        left_out = 0
        if now - begin >= PERIOD_S:
            begin, lines, left_out = now, 0, max(0, lines - MOST)
        if len(self._periods) >= MOST_EVENTS:
            self._periods.clear()
        self._periods[key] = (begin, lines + 1)
        if lines >= MOST:
            return False
        if left_out:
            return _with(record, left_out=left_out)
        if lines == MOST - 1:
            return _with(record, left_out="more like this, for up to a minute")
        return True


def _with(record: logging.LogRecord, **values: object) -> logging.LogRecord:
    record = copy.copy(record)
    if isinstance(record.msg, dict):
        record.msg = {**record.msg, **values}
    else:
        record.msg = f"{record.msg} {values}"
    return record

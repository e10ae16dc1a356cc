"""Measures which share of its time an actor has work."""

import time


class BusyClock:
    """Share of the time since the last question in which there was work."""

    def __init__(self) -> None:
        self._asked = self._since = time.monotonic()
        self._busy = False
        self._total = 0.0

    def set(self, busy: bool) -> None:
        """Starts or ends a stretch of work."""
        now = time.monotonic()
        if self._busy:
            self._total += now - self._since
        self._since, self._busy = now, busy

    def share(self) -> float:
        """Returns the busy share of the period, between 0 and 1; starts a new period."""
        self.set(self._busy)
        now = time.monotonic()
        share = self._total / max(now - self._asked, 1e-9)
        self._asked, self._total = now, 0.0
        return min(share, 1.0)

"""Pauses between attempts, restarts of what died, and when to give up."""

import asyncio
import random
import time

GOOD_LIFE_S = 600.0
"""Ten minutes: longer than any start takes, shorter than what is worth losing a run for."""


class Backoff:
    """Pauses that double from `first_s` to `longest_s` seconds, until `patience_s` seconds have passed since the start.

    backoff = Backoff(patience_s)
    while True:
        try:
            return await attempt()
        except TRANSIENT_ERRORS as error:
            if backoff.over:
                raise BusError(...) from error
        await backoff.pause()
    """

    def __init__(self, patience_s: float, first_s: float = 0.5, longest_s: float = 0.5) -> None:
        self.patience_s = patience_s
        self._deadline = time.monotonic() + patience_s
        self._pause_s = first_s
        self._longest_s = longest_s

    @property
    def over(self) -> bool:
        """Says whether the patience has run out: the attempt that failed was the last."""
        return time.monotonic() > self._deadline

    async def pause(self) -> None:
        """Waits before the next attempt: for half of the pause at least, so that many who fail together come back apart."""
        await asyncio.sleep(random.uniform(self._pause_s / 2, self._pause_s))
        self._pause_s = min(2 * self._pause_s, self._longest_s)


class Restarts:
    """Counts the deaths in a row of one process: the one after a good life is the first again.

    A life was good that lasted `GOOD_LIFE_S` seconds, or in which the run made progress without it or with it: what comes to
    life, works and dies now and then never uses up its restarts, what dies again and again without anything done does.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.count = 0
        self._since = time.monotonic()

    def died(self, *, progress: bool = False) -> bool:
        """Counts a death; returns whether it may be started again, which it then is from now on."""
        now = time.monotonic()
        self.count = 1 if progress or now - self._since >= GOOD_LIFE_S else self.count + 1
        self._since = now
        return self.count <= self.most

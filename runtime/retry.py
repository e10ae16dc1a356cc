"""Pauses between attempts, restarts of what died, and when to give up."""

import asyncio
import random
import time


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

    A life was good that lasted `good_life_s` seconds, longer than anything that it may wait for in vain, or in which the run
    made progress, with it or without: what works and dies now and then never uses up its restarts, what dies again and
    again with nothing done does.
    """

    def __init__(self, most: int, good_life_s: float) -> None:
        self.most = most
        self._good_life_s = good_life_s
        self.count = 0
        self._since = time.monotonic()

    def died(self, *, progress: bool = False) -> bool:
        """Counts a death; returns whether it may be started again, which it then is from now on."""
        now = time.monotonic()
        self.count = 1 if progress or now - self._since >= self._good_life_s else self.count + 1
        self._since = now
        return self.count <= self.most

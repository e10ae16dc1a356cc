"""Admission: how many rollouts the engine's key-value cache holds at once.

The length of a response is not known before it ends. If each rollout had space for its whole budget, most of the cache
would stay empty. So a rollout counts with its prompt's bound and the length that 19 of 20 recent responses stayed within;
while there are too few of those, it counts with its whole budget. If that is too little, vLLM preempts requests and
computes them again: this costs time and changes no result.
"""

from collections import deque

from configs.schema import RolloutConfig

REMEMBERED = 256
ENOUGH = 32
"""Responses from which a length is guessed."""


class Admission:
    """Counts slots for rollouts in a cache of `capacity` tokens, never more than `limit`."""

    def __init__(self, capacity: int, limit: int, config: RolloutConfig) -> None:
        self._capacity = capacity
        self._limit = limit
        self._config = config
        self._lengths: deque[int] = deque(maxlen=REMEMBERED)

    def ended(self, length: int) -> None:
        """Learns from a response of `length` tokens, finished or late."""
        self._lengths.append(length)

    @property
    def slots(self) -> int:
        """Returns the number of rollouts that may run at once; at least one."""
        length = self._config.max_response_tokens
        if len(self._lengths) >= ENOUGH:
            length = sorted(self._lengths)[int(0.95 * len(self._lengths))]
        return max(1, min(self._limit, self._capacity // (self._config.max_prompt_tokens + length)))

"""Admission: how many rollouts run at once, by what they occupy in the engine's key-value cache, now and later.

How long a response gets is not known before it ends. If each had room for its limit, most of the cache would stay empty;
with room for what nearly all of them stay within it still would, since few are near their end at once. So it is foreseen
what the cache will hold: from how long each running response is by now, and from how often responses of that length
ended. A rollout is let in if the cache, at its fullest, then still has room for chance (the idea of the past-future
scheduler, arXiv 2507.10150). Where responses get longer than they did, the engine preempts some and computes them again,
which costs time and changes no result.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from actors.engine import DeadlineError
from configs.schema import RolloutConfig

REMEMBERED = 256
"""Ended responses after which one weighs a third (1/e) of a new one."""
STEPS = 128
"""Parts of the longest response: lengths are told apart to one of them."""
CHANCE = 2.0
"""Room for chance, in standard deviations."""
LATER = np.minimum(np.arange(STEPS)[:, None] + np.arange(STEPS + 1), STEPS)
"""The step that a response of step b reaches h steps later: [STEPS, STEPS + 1]."""


@dataclass(eq=False)
class Running:
    """A rollout that runs: its prompt's tokens, its response's tokens so far, and those that were learned from."""

    prompt: int
    response: Callable[[], int]
    seen: int = 0


class Admission:
    """Lets rollouts into a cache of `capacity` tokens, never more than `limit`."""

    def __init__(self, capacity: int, limit: int, config: RolloutConfig) -> None:
        self._capacity = capacity
        self._limit = limit
        self._tokens_per_step = -(-config.max_response_tokens // STEPS)
        self._running: set[Running] = set()
        self._prompt = float(config.max_prompt_tokens)
        """Tokens of a prompt, the mean of recent ones."""
        self._ends = np.zeros(STEPS)
        self._exposure = np.zeros(STEPS)
        """Responses that ended in each step, and those that went through it, parts of it included; old ones weigh less."""

    @contextmanager
    def running(self, prompt: int, response: Callable[[], int]) -> Iterator[None]:
        """Counts a rollout while it runs, by its prompt's tokens and a function that returns its response's so far.

        Learns from its length if it ends or meets its deadline.
        """
        rollout = Running(prompt, response)
        self._running.add(rollout)
        try:
            yield
            self._ended(rollout)
        except DeadlineError:
            self._ended(rollout)
            raise
        finally:
            self._running.remove(rollout)

    def room(self, held: int) -> int:
        """Returns how many rollouts may begin beside the `held` ones, those among them that do not run yet included.

        One may always run. Takes about the same time for any number of rollouts.
        """
        rollouts = list(self._running)
        self._follow(rollouts)
        sizes = np.array([rollout.prompt + rollout.seen for rollout in rollouts], dtype=float)
        steps = self._steps([rollout.seen for rollout in rollouts]).astype(int)
        hazard = self._hazard()
        # The probability that a response of step b goes on for h steps: [STEPS, STEPS + 1].
        stays = np.exp(hazard[:STEPS, None] - hazard[LATER])
        count, size, square = (
            np.bincount(steps, weights=weights, minlength=STEPS)[:, None]
            for weights in (np.ones(len(sizes)), sizes, sizes**2)
        )
        # By then it has grown so much. What each of them will occupy has a mean and a variance, and these add up.
        growth = self._tokens_per_step * np.arange(STEPS + 1.0)
        mean = (stays * (size + count * growth)).sum(0)
        variance = (stays * (1 - stays) * (square + 2 * size * growth + count * growth**2)).sum(0)
        new_mean = stays[0] * (self._prompt + growth)
        new_variance = stays[0] * (1 - stays[0]) * (self._prompt + growth) ** 2

        def overflows(new: int) -> bool:
            fullest = mean + new * new_mean + CHANCE * np.sqrt(variance + new * new_variance)
            return bool((fullest > self._capacity).any())

        new = bisect_left(range(1, self._limit - len(rollouts) + 1), True, key=overflows)
        return max(new - (held - len(rollouts)), 1 - held, 0)

    def _steps(self, lengths: list[int]) -> np.ndarray:
        """Returns lengths in steps; the last has no end."""
        return np.minimum(np.array(lengths) / self._tokens_per_step, STEPS - 1e-6)

    def _gone_through(self, lengths: list[int]) -> np.ndarray:
        """Returns how many responses have gone through each step, one within it with the part behind it: [STEPS]."""
        part, step = np.modf(self._steps(lengths))
        count = np.bincount(step.astype(int), minlength=STEPS)
        return len(lengths) - np.cumsum(count) + np.bincount(step.astype(int), weights=part, minlength=STEPS)

    def _follow(self, rollouts: list[Running]) -> None:
        """Learns through which steps responses went since they were last seen."""
        before = [rollout.seen for rollout in rollouts]
        for rollout in rollouts:
            rollout.seen = max(rollout.seen, rollout.response())
        self._exposure += self._gone_through([rollout.seen for rollout in rollouts]) - self._gone_through(before)

    def _ended(self, rollout: Running) -> None:
        self._follow([rollout])
        forgotten = 1 / REMEMBERED
        self._ends *= 1 - forgotten
        self._exposure *= 1 - forgotten
        self._ends[int(self._steps([rollout.seen])[0])] += 1
        self._prompt += (rollout.prompt - self._prompt) * forgotten

    def _hazard(self) -> np.ndarray:
        """Returns the cumulative hazard of a response's end up to the beginning of each step: [STEPS + 1].

        It is the sum of ends over exposure, so that responses which still run count for what they have gone through: those
        that end first would make all look short. One more response, which ended anywhere, stands for what was not seen. None
        goes on behind the last step.
        """
        ends = self._ends + 1 / STEPS
        exposure = self._exposure + (np.arange(STEPS, 0, -1) - 0.5) / STEPS
        return np.concatenate([[0.0], np.cumsum(ends / exposure)[:-1], [np.inf]])

"""The engine protocol: tokens in, tokens out, weights exchanged with requests in flight.

A request comes back as the sampled token ids, the log-probability of each under the distribution that it was really drawn
from, and the weight version that each came from. A failure of the engine is an `EngineError`, never data.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from bus.messages import TensorEntry, VersionSpan, WeightVersion


class EngineError(RuntimeError):
    """The engine did not start, died, or did not answer: infrastructure."""


class DeadlineError(TimeoutError):
    """A response was not done by its deadline: the engine was slower than the slowest allowed rate."""

    def __init__(self, length: int) -> None:
        super().__init__(f"a response of {length} tokens was not done")
        self.length = length
        """Response tokens that were there."""


@dataclass
class Progress:
    """Tells how far a request is; the engine that has it fills this in."""

    sampled: Callable[[], int] = int
    """Returns the number of tokens sampled so far; 0 where nothing runs."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Says how one request is sampled, and what ends it."""

    max_tokens: int
    stop: Sequence[str]
    """Strings that end it; the one that does is part of its tokens."""
    temperature: float
    top_p: float
    top_k: int
    deadline_s: float
    """Most seconds of sampling. Seconds in a queue, or in a load of weights, do not count."""
    seed: int | None = None
    progress: Progress = field(default_factory=Progress)


@dataclass(frozen=True)
class Completion:
    """Says what an engine sampled for one request of n tokens."""

    tokens: list[int]
    logprobs: list[float]
    """[n] under the sampling distribution (temperature and truncation applied)."""
    versions: list[VersionSpan]
    """Cover [0, n) in order."""
    finish_reason: str
    """`stop` or `length`."""
    stop: str | None
    """The stop string that ended it; None for the end of the sequence or of the budget."""
    first_token_s: float
    """Seconds from the request to the first token."""
    seconds: float
    """Seconds of sampling, as `Sampling.deadline_s` counts them."""


class Engine(Protocol):
    """Generates with the weights that were loaded last: vLLM's engine, the emulated one, scripted ones in tests."""

    tokenizer: Any
    cache_tokens: int
    """Tokens whose keys and values fit into the cache."""
    failed: bool
    """The engine cannot go on: its actor hands its tickets back and ends."""
    generated_tokens: int
    """Since the start."""

    @property
    def preemptions(self) -> int:
        """Returns how often, since the start, a request lost its place in the cache and was computed again."""
        ...

    @property
    def cache_use(self) -> float:
        """Returns the share of the cache that running requests occupy, 0 to 1."""
        ...

    @property
    def version(self) -> WeightVersion | None:
        """Returns the newest version that was loaded; None before the first."""
        ...

    async def generate(self, tokens: list[int], sampling: Sampling) -> Completion:
        """Continues `tokens` by at least one. The last may reach past the stop string that it completes.

        Cancelling the caller aborts the request. Raises EngineError, also before the first weights, and DeadlineError after
        `sampling.deadline_s` seconds of sampling.
        """
        ...

    async def load(
        self, version: WeightVersion, tensors: Sequence[TensorEntry], path: str, *, recompute: bool = False
    ) -> float:
        """Loads the host copy at `path`; returns the seconds for which generation paused. Raises EngineError.

        Requests in flight are kept; tokens that they sample later carry the new version. Their keys and values stay those of
        the old weights, or are computed anew from their tokens (`recompute`).
        """
        ...

    async def stop(self) -> None:
        """Ends the engine and whatever processes it has."""
        ...

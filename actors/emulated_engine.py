"""An engine without a model: paced, made-up tokens for load tests, fault tests and capacity planning.

It replaces vLLM; tickets, sandbox, grading, weights and results are the real ones. The text of request n follows from the
seed, n and its own tokens. A turn is filler of log-normal length, then a program that the sandbox runs, or an answer that
is rarely right. The cache fills, evicts and preempts as `actors.emulated_scheduler` says. Log-probabilities are those of
a uniform distribution over the vocabulary, whatever the weights are, so nothing can be learned from them. Each token
carries the version that was loaded when it was due.
"""

import asyncio
import itertools
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any, Self

import structlog

from actors.emulated_scheduler import Request, Scheduler
from actors.engine import Completion, DeadlineError, EngineError, Sampling
from bus.messages import TensorEntry, VersionSpan, WeightVersion
from configs.schema import EngineConfig
from grading.blocks import CLOSING_FENCE, OPENING_FENCES

log = structlog.get_logger()

WORDS = ("so", "then", "we", "add", "the", "digits", "and", "look", "again", "at", "what", "is", "left")


class PlainTokenizer:
    """A model's tokenizer by the library `tokenizers` alone: transformers takes seconds of CPU to import.

    It has what prompts and rollouts ask of a Hugging Face tokenizer. Chat templates are not filled in: a chat prompt is the
    text of its turns.
    """

    chat_template = ""
    all_special_tokens: Sequence[str] = ()

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        end = json.loads((folder / "config.json").read_text())["eos_token_id"]
        self.eos_token_id: int = end[0] if isinstance(end, list) else end

    def __len__(self) -> int:
        return self._tokenizer.get_vocab_size()

    @property
    def added_tokens_decoder(self) -> dict[int, Any]:
        """Returns the tokens that were added to the vocabulary, special ones among them, by their ids."""
        return self._tokenizer.get_added_tokens_decoder()

    def __call__(
        self, text: str, *, add_special_tokens: bool = True, split_special_tokens: bool = False
    ) -> dict[str, list[int]]:
        tokens = self.encode(text, add_special_tokens=add_special_tokens, split_special_tokens=split_special_tokens)
        return {"input_ids": tokens}

    def apply_chat_template(self, turns: list[dict[str, str]], **_: bool) -> str:
        return "".join(turn["content"] for turn in turns)

    def encode(self, text: str, *, add_special_tokens: bool, split_special_tokens: bool = False) -> list[int]:
        self._tokenizer.encode_special_tokens = split_special_tokens
        return self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(self, token_ids: list[int], **_: bool) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=False)


class EmulatedEngine:
    """Makes its tokens up, as an `Engine`."""

    def __init__(self, tokenizer: PlainTokenizer, config: EngineConfig, seed: int) -> None:
        self._config = config.emulation
        self._scheduler = Scheduler(config.emulation.cache_tokens, config.max_running)
        self._started = time.monotonic()
        self._ends: dict[Request, asyncio.Future[None]] = {}
        self._timer: asyncio.TimerHandle | None = None
        """Goes off at the scheduler's next event."""
        self._seed = seed
        self._requests = itertools.count()
        self._words = [self._encode(f"{word} ", tokenizer) for word in WORDS]
        self._logprob = -math.log(len(tokenizer))
        self.version: WeightVersion | None = None
        self.tokenizer: Any = tokenizer
        self.cache_tokens = config.emulation.cache_tokens
        self.failed = False
        self.generated_tokens = 0

    @classmethod
    async def start(cls, folder: Path, config: EngineConfig, seed: int) -> Self:
        """Loads the tokenizer alone."""
        log.warning("this engine is emulated: its tokens are made up", **config.emulation.model_dump())
        return cls(PlainTokenizer(folder), config, seed)

    @property
    def preemptions(self) -> int:
        """Returns how often a request was preempted."""
        return self._scheduler.preemptions

    @property
    def cache_use(self) -> float:
        """Returns the share of the cache that running requests occupy."""
        self._move_on()
        return self._scheduler.occupied / self.cache_tokens

    async def generate(self, tokens: list[int], sampling: Sampling) -> Completion:
        """Continues `tokens` at the configured pace, see `Engine.generate`."""
        if self.version is None:
            raise EngineError("no weights loaded yet: an actor never generates with unknown weights")
        random = Random(f"{self._seed} {next(self._requests)} {tokens}")
        written, stopped_by = self._turn(random, sampling.stop)
        cut = len(written) > sampling.max_tokens
        written = written[: sampling.max_tokens]
        rate = self._config.tokens_per_s
        in_time = min(len(written), int(sampling.deadline_s * rate))
        self._move_on()
        asked_at = self._scheduler.time
        request = Request(tokens, written[:in_time])
        try:
            self._scheduler.ask(request)
        except ValueError as error:
            raise EngineError(str(error)) from error
        self._ends[request] = asyncio.get_running_loop().create_future()
        sampling.progress.sampled = lambda: int(
            self._scheduler.sampled(request, (time.monotonic() - self._started) * rate)
        )
        self._move_on()
        try:
            await self._ends[request]
        finally:
            sampling.progress.sampled = int
            self._move_on()
            self._scheduler.withdraw(request)
            del self._ends[request]
            self._move_on()
        if in_time < len(written):
            raise DeadlineError(in_time)
        self.generated_tokens += len(written)
        return Completion(
            tokens=written,
            logprobs=[self._logprob] * len(written),
            versions=self._spans(request),
            finish_reason="length" if cut else "stop",
            stop=None if cut else stopped_by,
            first_token_s=(request.first_begin - asked_at + 1) / rate,
            seconds=len(written) / rate,
        )

    async def load(
        self, version: WeightVersion, tensors: Sequence[TensorEntry], path: str, *, recompute: bool = False
    ) -> float:
        """Notes the version; the host copy at `path` stays unread and nothing pauses."""
        self._move_on()
        self.version = version
        self._scheduler.load(version)
        return 0.0

    async def stop(self) -> None:
        """Stops its clock: there is no process to end."""
        if self._timer is not None:
            self._timer.cancel()

    def _move_on(self) -> None:
        """Brings the scheduler to the present and sets the timer for what comes next."""
        if self._timer is not None:
            self._timer.cancel()
        rate = self._config.tokens_per_s
        for request in self._scheduler.advance((time.monotonic() - self._started) * rate):
            if not self._ends[request].done():
                self._ends[request].set_result(None)
        wait = (self._scheduler.next_event - self._scheduler.time) / rate
        self._timer = None if math.isinf(wait) else asyncio.get_running_loop().call_later(wait, self._move_on)

    def _turn(self, random: Random, stop: Sequence[str]) -> tuple[list[int], str | None]:
        """Returns what the model would write up to the end or a stop string, and that string."""
        if tuple(stop) == (CLOSING_FENCE,):
            a, b = random.randrange(100), random.randrange(100)
            code = f"\nimport time\ntime.sleep({self._config.call_s:g})\nprint({a} * {b})\n{CLOSING_FENCE}"
            return self._encode(code, self.tokenizer), CLOSING_FENCE
        length = max(1, round(random.lognormvariate(math.log(self._config.median_tokens), self._config.spread)))
        written: list[int] = []
        while len(written) < length:
            written += random.choice(self._words)
        if OPENING_FENCES[0] in stop and random.random() < self._config.call_ratio:
            return written + self._encode(f"\n{OPENING_FENCES[0]}", self.tokenizer), OPENING_FENCES[0]
        answer = self._encode(f"\nThe answer is \\boxed{{{random.randrange(10)}}}", self.tokenizer)
        return [*written, *answer, self.tokenizer.eos_token_id], None

    @staticmethod
    def _spans(request: Request) -> list[VersionSpan]:
        """Returns the version of each token: the newest that was loaded when the token was due."""
        ends = [start for start, _ in request.versions[1:]] + [len(request.written)]
        return [
            VersionSpan(version=version, start=start, end=end)
            for (start, version), end in zip(request.versions, ends, strict=True)
            if end > start
        ]

    @staticmethod
    def _encode(text: str, tokenizer: PlainTokenizer) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False)

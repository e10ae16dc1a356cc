"""The tool-use rollout: a state machine over an engine and a code runner (ZeroTIR, arXiv 2505.07773).

    thinking --"```python"--> coding --"```"--> run, insert the output --> thinking
        |                        |
        +-- end, stop or budget -+--> done

Tokens never pass through text: what the engine sampled is what is trained on, and inserted text is tokenised once. Text
is decoded only to find code and, later, the answer; inserted tokens are never searched for either. Sampled plus inserted
tokens never exceed `max_response_tokens`.
"""

import asyncio
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from bus.messages import ExecutionResult, FinishReason, Outcome, ToolCall, VersionSpan
from configs.schema import RolloutConfig

OPENING_FENCE = "```python"
CLOSING_FENCE = "```"
TRUNCATED = "\n[output truncated]"
_INFO_STRING = re.compile(r"^[ \t]*[0-9.]*[ \t]*\n")


@dataclass(frozen=True)
class Completion:
    """What an engine sampled for one request of n tokens."""

    tokens: list[int]
    logprobs: list[float]
    """[n] under the sampling distribution (temperature and truncation applied)."""
    versions: list[VersionSpan]
    """Cover [0, n) in order."""
    finish_reason: str
    """`stop` or `length`."""
    stop: str | None
    """The stop string that ended it; None for the end of the sequence or of the budget."""
    first_token_at: float


class TokenEngine(Protocol):
    """Continues a token sequence; implemented by the vLLM engine and by a scripted one in tests."""

    async def generate(
        self,
        tokens: list[int],
        *,
        max_tokens: int,
        stop: Sequence[str],
        temperature: float,
        top_p: float,
        top_k: int,
        seed: int | None,
    ) -> Completion: ...


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that a rollout needs."""

    def encode(self, text: str, *, add_special_tokens: bool, split_special_tokens: bool) -> list[int]: ...

    def decode(self, token_ids: list[int]) -> str: ...


class CodeRunner(Protocol):
    """Runs one program in a sandbox; raises on infrastructure failure, never returns one."""

    async def execute(self, code: str, timeout_s: float) -> ExecutionResult: ...


@dataclass
class Response:
    """A response as it grows: R tokens, sampled and inserted, with what training needs of each."""

    tokens: list[int] = field(default_factory=list)
    loss_mask: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    versions: list[VersionSpan] = field(default_factory=list)
    tool_calls: list[ToolCall] = field(default_factory=list)
    turns: list[str] = field(default_factory=list)
    """Text of each run of sampled tokens."""
    refused_calls: int = 0
    """Code blocks that were not run because the calls were used up."""
    finish_reason: FinishReason = FinishReason.STOP
    first_token_at: float = 0.0

    def append_sampled(self, completion: Completion) -> None:
        """Adds sampled tokens; adjacent spans of one version become one."""
        offset = len(self.tokens)
        if not self.tokens:
            self.first_token_at = completion.first_token_at
        for span in completion.versions:
            start, end = span.start + offset, span.end + offset
            if self.versions and self.versions[-1].end == start and self.versions[-1].version == span.version:
                start = self.versions.pop().start
            self.versions.append(VersionSpan(version=span.version, start=start, end=end))
        self.tokens += completion.tokens
        self.loss_mask += [1] * len(completion.tokens)
        self.logprobs += completion.logprobs

    def append_inserted(self, tokens: list[int]) -> None:
        """Adds tokens that the model did not sample."""
        self.tokens += tokens
        self.loss_mask += [0] * len(tokens)
        self.logprobs += [0.0] * len(tokens)

    def arrays(self, prompt: list[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Tokens [P + R] (int32), loss mask [R] (uint8) and log-probabilities [R] (float32), as they travel."""
        return (
            np.array(prompt + self.tokens, dtype=np.int32),
            np.array(self.loss_mask, dtype=np.uint8),
            np.minimum(np.array(self.logprobs, dtype=np.float32), 0.0),
        )


def program_of(turn: str) -> str:
    """The code of a turn that ends with a closed ```python block."""
    code = turn.rpartition(OPENING_FENCE)[2]
    code = code.rpartition(CLOSING_FENCE)[0]
    return _INFO_STRING.sub("", code, count=1).strip("\n")


def output_text(result: ExecutionResult, timeout_s: float) -> str:
    """What the model is shown of an execution: stdout, then one line that names an error or a limit."""
    lines = [result.stdout.rstrip()] if result.stdout.strip() else []
    match result.outcome:
        case Outcome.EXITED:
            if result.exit_code != 0:
                lines.append(result.stderr.rstrip().rpartition("\n")[2] or f"exit status {result.exit_code}")
        case Outcome.TIMEOUT:
            lines.append(f"TimeoutError: the program ran longer than {timeout_s:g} seconds")
        case Outcome.CPU_LIMIT:
            lines.append("TimeoutError: the program used up its CPU time")
        case Outcome.OUT_OF_MEMORY:
            lines.append("MemoryError: the program used up its memory")
        case Outcome.OUTPUT_LIMIT:
            lines.append("OutputLimitError: the program printed too much")
        case Outcome.CRASHED:
            lines.append(f"the program was killed by signal {result.signal}")
        case Outcome.SANDBOX_FAILURE:
            raise ValueError("a failure of the sandbox is never shown to the model")
    return "\n".join(lines)


class Rollout:
    """One ticket's way through the state machine."""

    def __init__(self, engine: TokenEngine, runner: CodeRunner, tokenizer: Tokenizer, config: RolloutConfig) -> None:
        self._engine = engine
        self._runner = runner
        self._tokenizer = tokenizer
        self._config = config
        self.response = Response()

    async def run(self, prompt: list[int]) -> Response:
        """Generates until the response ends. Raises what the engine and the runner raise: never data."""
        config, response = self._config, self.response
        while True:
            turn_start = len(response.tokens)
            may_call = config.max_tool_calls > 0 and response.refused_calls == 0
            stop = (OPENING_FENCE, *config.stop) if may_call else config.stop
            stopped_by = await self._sample(prompt, stop)
            if stopped_by == OPENING_FENCE:
                stopped_by = await self._sample(prompt, (CLOSING_FENCE,))
            turn = self._tokenizer.decode(response.tokens[turn_start:])
            response.turns.append(turn)
            if stopped_by != CLOSING_FENCE or not await self._call(program_of(turn)):
                return response

    @property
    def _room(self) -> int:
        return self._config.max_response_tokens - len(self.response.tokens)

    async def _sample(self, prompt: list[int], stop: Sequence[str]) -> str | None:
        """Samples up to a stop string and returns it; None at the end of the sequence or of the budget."""
        if self._room <= 0:
            self.response.finish_reason = FinishReason.LENGTH
            return None
        completion = await self._engine.generate(
            prompt + self.response.tokens,
            max_tokens=self._room,
            stop=stop,
            temperature=self._config.temperature,
            top_p=self._config.top_p,
            top_k=self._config.top_k,
            seed=None,
        )
        self.response.append_sampled(completion)
        if completion.finish_reason == "length":
            self.response.finish_reason = FinishReason.LENGTH
        return completion.stop

    async def _call(self, code: str) -> bool:
        """Runs code and inserts what came of it; False when the budget is too small for that."""
        config, response = self._config, self.response
        if len(response.tool_calls) >= config.max_tool_calls:
            response.refused_calls += 1
            return self._insert(config.exhausted_message)
        asked_at = time.monotonic()
        result = await self._runner.execute(code, config.tool_timeout_s)
        seconds = time.monotonic() - asked_at
        output = self._cut(output_text(result, config.tool_timeout_s))
        response.tool_calls.append(
            ToolCall(
                code=code,
                output=output,
                outcome=result.outcome,
                success=result.outcome is Outcome.EXITED and result.exit_code == 0,
                start=len(response.tokens),
                seconds=seconds,
            )
        )
        return self._insert(output)

    def _cut(self, output: str) -> str:
        """Output within `max_output_tokens`, with a marker where it was cut."""
        limit = self._config.max_output_tokens
        # No byte-level vocabulary makes more tokens than bytes: text this short needs no count.
        if len(output.encode()) <= limit:
            return output
        # Tokenising a flood costs time for nothing: no vocabulary has tokens of 32 characters on average.
        tokens = self._encode(output[: 32 * limit])
        return output if len(tokens) <= limit else self._tokenizer.decode(tokens[:limit]) + TRUNCATED

    def _insert(self, text: str) -> bool:
        tokens = self._encode(f"\n```output\n{text}\n```\n")
        if len(tokens) >= self._room:
            self.response.finish_reason = FinishReason.LENGTH
            return False
        self.response.append_inserted(tokens)
        return True

    def _encode(self, text: str) -> list[int]:
        # Output that spells a special token must not become one.
        return self._tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)


async def roll_out(
    prompt: list[int], engine: TokenEngine, runner: CodeRunner, tokenizer: Tokenizer, config: RolloutConfig
) -> Response:
    """Runs one rollout within its deadline. Raises TimeoutError past it."""
    async with asyncio.timeout(config.deadline_s):
        return await Rollout(engine, runner, tokenizer, config).run(prompt)

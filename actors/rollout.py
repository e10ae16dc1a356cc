"""The tool-use rollout: a state machine over an engine and a code runner (ZeroTIR, arXiv 2505.07773).

    thinking --"```python"--> coding --"```"--> run, insert the output --> thinking
        |                        |
        +-- end, stop or budget -+--> done

Tokens never pass through text: training sees exactly the tokens that the engine sampled, and inserted text is tokenised
once. Text is decoded only to find code and, later, the answer; inserted tokens are never searched for either. Sampled plus
inserted tokens never exceed `max_response_tokens`, the only thing that ends a response which the model does not end. The
deadline bounds the engine: it counts the seconds in which the engine sampled, and no wait for a turn, a load of weights or a
program. So a loaded machine does not remove long responses from what is trained on.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from actors.engine import Completion, DeadlineError, Engine, EngineError, Progress, Sampling
from actors.tool_output import Shown, error_kind, shown
from bus.messages import ExecutionResult, FinishReason, Outcome, ToolCall, VersionSpan
from configs.schema import RolloutConfig
from grading.blocks import CLOSING_FENCE, OPENING_FENCES, Block, find_blocks
from grading.reward_function import Call

TRUNCATED = "\n[output truncated]"


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that a rollout needs."""

    def encode(self, text: str, *, add_special_tokens: bool, split_special_tokens: bool) -> list[int]: ...

    def decode(self, token_ids: list[int], *, clean_up_tokenization_spaces: bool) -> str: ...


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
    """Code blocks that were answered by the message that the calls are used up; at most one."""
    finish_reason: FinishReason = FinishReason.STOP
    first_token_s: float = 0.0
    """Seconds from the rollout's beginning to its first token."""

    @property
    def lowest_version(self) -> int:
        """Returns the oldest weights in it, as `WeightVersion.n`."""
        return min(span.version.n for span in self.versions)

    @property
    def calls(self) -> list[Call]:
        """Returns the tool calls as the grader takes them."""
        return [
            Call(call.code, call.output, str(call.outcome), call.success, call.error, call.seconds)
            for call in self.tool_calls
        ]

    @property
    def hallucinated_outputs(self) -> int:
        """Returns the number of output blocks that the model wrote itself.

        They are text like any other, never taken for output.
        """
        return sum(block.kind == "output" for turn in self.turns for block in find_blocks(turn))

    def append_sampled(self, completion: Completion) -> None:
        """Adds sampled tokens; adjacent spans of one version become one."""
        offset = len(self.tokens)
        if not self.tokens:
            self.first_token_s = completion.first_token_s
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
        """Returns the tokens [P + R] (int32), loss mask [R] (uint8) and log-probabilities [R] (float32), as they travel."""
        return (
            np.array(prompt + self.tokens, dtype=np.int32),
            np.array(self.loss_mask, dtype=np.uint8),
            np.minimum(np.array(self.logprobs, dtype=np.float32), 0.0),
        )


class Rollout:
    """One ticket's way through the state machine."""

    def __init__(self, engine: Engine, runner: CodeRunner, tokenizer: Tokenizer, config: RolloutConfig) -> None:
        self._engine = engine
        self._runner = runner
        self._tokenizer = tokenizer
        self._config = config
        self._seconds = 0.0
        """That the engine took for it so far."""
        self._progress = Progress()
        self.response = Response()

    def length(self) -> int:
        """Returns the response's tokens so far, those of the turn that is being sampled included."""
        return len(self.response.tokens) + self._progress.sampled()

    async def run(self, prompt: list[int]) -> Response:
        """Generates until the response ends.

        Raises what the engine and the runner raise (never data), and DeadlineError with the whole response's length.
        """
        response = self.response
        while True:
            start = len(response.tokens)
            stopped_by = await self._sample(prompt, self._thinking_stops())
            block = await self._finish_block(prompt, start) if stopped_by in OPENING_FENCES else None
            response.turns.append(self._text(start))
            if block is None or not await self._call(block.program):
                return response

    def _thinking_stops(self) -> tuple[str, ...]:
        config, response = self._config, self.response
        left = len(response.tool_calls) < config.max_tool_calls
        # One block more than allowed is stopped at, to be answered by the message.
        to_refuse = bool(config.max_tool_calls and config.exhausted_message and not response.refused_calls)
        return (*OPENING_FENCES, *config.stop) if left or to_refuse else config.stop

    async def _finish_block(self, prompt: list[int], start: int) -> Block | None:
        """Samples the rest of the code block that the turn from `start` on has opened; returns it.

        Returns None where the block stays open.
        """
        while True:
            turn = self._text(start)
            # The engine stopped at the turn's first block; a token that closes it may reach into another.
            block = next((block for block in find_blocks(turn) if block.kind == "python"), None)
            if block is not None and block.closed:
                return block
            # A fence inside a literal or a comment has stopped the engine, but closes nothing.
            if await self._sample(prompt, (CLOSING_FENCE,)) != CLOSING_FENCE:
                return None

    @property
    def _tokens_left(self) -> int:
        return self._config.max_response_tokens - len(self.response.tokens)

    async def _sample(self, prompt: list[int], stop: Sequence[str]) -> str | None:
        """Samples up to a stop string and returns it; None at the end of the sequence or of the budget."""
        if self._tokens_left <= 0:
            self.response.finish_reason = FinishReason.LENGTH
            return None
        sampling = Sampling(
            max_tokens=self._tokens_left,
            stop=stop,
            temperature=self._config.temperature,
            top_p=self._config.top_p,
            top_k=self._config.top_k,
            deadline_s=self._config.deadline_s - self._seconds,
            progress=self._progress,
        )
        try:
            completion = await self._engine.generate(prompt + self.response.tokens, sampling)
        except DeadlineError as error:
            raise DeadlineError(len(self.response.tokens) + error.length) from error
        if not np.isfinite(completion.logprobs).all():
            raise EngineError("the engine returned a log-probability that is not finite")
        self._seconds += completion.seconds
        self.response.append_sampled(completion)
        if completion.finish_reason == "length":
            self.response.finish_reason = FinishReason.LENGTH
        return completion.stop

    async def _call(self, code: str) -> bool:
        """Runs code and inserts what came of it; False when the budget is too small for that."""
        config, response = self._config, self.response
        if not self._fits(self._framed("")):
            return False
        if len(response.tool_calls) >= config.max_tool_calls:
            response.refused_calls += 1
            return self._insert(config.exhausted_message)
        asked_at = time.monotonic()
        result = await self._runner.execute(code, config.tool_timeout_s)
        seconds = time.monotonic() - asked_at
        output = self._cut(shown(result, config.tool_timeout_s, config.traceback))
        response.tool_calls.append(
            ToolCall(
                code=code,
                output=output,
                outcome=result.outcome,
                success=result.outcome is Outcome.EXITED and result.exit_code == 0,
                error=error_kind(result),
                start=len(response.tokens),
                seconds=seconds,
            )
        )
        return self._insert(output)

    def _cut(self, output: Shown) -> str:
        """Cuts an output to `max_output_tokens`, markers not counted: what was printed first, then the ending."""
        limit = self._config.max_output_tokens
        # No byte-level vocabulary makes more tokens than bytes: text this short needs no count.
        if len(str(output).encode()) <= limit:
            return str(output)
        ending, used = self._head(output.ending, limit)
        printed, _ = self._head(output.printed, max(0, limit - used - bool(ending)))
        return str(Shown(printed, ending))

    def _head(self, text: str, limit: int) -> tuple[str, int]:
        """Returns the first `limit` tokens of `text` as text, marked if that is not all, and the number of them."""
        # Tokenising a flood costs time for nothing, and what is not looked at is not shown.
        looked_at = text[: 32 * limit]
        tokens = self._encode(looked_at)
        if len(tokens) <= limit and looked_at == text:
            return text, len(tokens)
        head = looked_at if len(tokens) <= limit else self._decode(tokens[:limit])
        return (head + TRUNCATED).lstrip("\n"), min(len(tokens), limit)

    def _insert(self, text: str) -> bool:
        tokens = self._framed(text)
        if self._fits(tokens):
            self.response.append_inserted(tokens)
            return True
        return False

    def _fits(self, inserted: list[int]) -> bool:
        """Returns whether these tokens leave room for one that is sampled.

        If they do not, the response ends for its length.
        """
        if len(inserted) < self._tokens_left:
            return True
        self.response.finish_reason = FinishReason.LENGTH
        return False

    def _framed(self, output: str) -> list[int]:
        return self._encode(f"\n```output\n{output}\n```\n")

    def _text(self, start: int) -> str:
        return self._decode(self.response.tokens[start:])

    def _decode(self, tokens: list[int]) -> str:
        # Some tokenizers would otherwise take out spaces before punctuation.
        return self._tokenizer.decode(tokens, clean_up_tokenization_spaces=False)

    def _encode(self, text: str) -> list[int]:
        # Output that spells a special token must not become one.
        return self._tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)

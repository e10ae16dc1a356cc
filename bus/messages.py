"""The messages that cross a process boundary, each validated on arrival.

Token arrays cover prompt and response together: index 0 is the first prompt token, `P` the prompt's and `R` the
response's length. Times are seconds since the epoch, durations seconds.
"""

from enum import StrEnum
from typing import Self

import numpy as np
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from bus.codec import BoolArray, Float32Array, Int32Array, Message
from configs.schema import GradingConfig, PromptConfig, RolloutConfig


class WeightVersion(Message):
    """A version of the policy's weights: `n` training steps, made by the learner of `epoch`."""

    epoch: NonNegativeInt
    n: NonNegativeInt

    def __str__(self) -> str:
        return f"{self.epoch}.{self.n}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads `str(version)` back. Raises ValueError for anything else."""
        epoch, n = text.split(".")
        return cls(epoch=int(epoch), n=int(n))


class Ticket(Message):
    """Work: one ticket asks for one trajectory."""

    number: PositiveInt
    """The ticket's sequence in its stream."""
    group: NonNegativeInt
    sample: NonNegativeInt
    problem_id: str
    problem: str
    answer: str
    """The gold answer; never enters a sandbox."""
    prompt: PromptConfig
    grading: GradingConfig
    rollout: RolloutConfig
    min_version: NonNegativeInt
    """No older weights may start it (`WeightVersion.n`)."""
    issued_at: float


class VersionSpan(Message):
    """Sampled tokens of the response in [start, end) came from `version`; positions count response tokens."""

    version: WeightVersion
    start: NonNegativeInt
    end: NonNegativeInt


class Outcome(StrEnum):
    """How an execution ended."""

    EXITED = "exited"
    TIMEOUT = "timeout"
    CPU_LIMIT = "cpu_limit"
    OUT_OF_MEMORY = "out_of_memory"
    OUTPUT_LIMIT = "output_limit"
    CRASHED = "crashed"
    SANDBOX_FAILURE = "sandbox_failure"
    """Infrastructure: retried, never shown to the model."""


class ExecutionRequest(Message):
    """Asks a sandbox service to run one program."""

    code: str
    timeout_s: float = Field(gt=0)


class ExecutionResult(Message):
    """What came of one program."""

    outcome: Outcome = Field(strict=False)
    exit_code: int | None
    """Of the program, when it exited by itself."""
    signal: int | None
    """That killed it, when it crashed."""
    stdout: str
    stderr: str
    truncated: bool
    """Output went past the limit and was cut."""
    seconds: float
    detail: str = ""
    """For people: what failed, when the sandbox did."""


class Busy(Message):
    """A sandbox service's answer when all its places are taken: ask again later."""


class ToolCall(Message):
    """One execution inside a trajectory."""

    code: str
    output: str
    """The text that was inserted."""
    outcome: Outcome = Field(strict=False)
    success: bool
    """The program exited with 0."""
    start: NonNegativeInt
    """Response position at which the inserted tokens begin."""
    seconds: float
    """From request to answer, waiting included."""


class FinishReason(StrEnum):
    """Why a response ended."""

    STOP = "stop"
    LENGTH = "length"


class Trajectory(Message):
    """An answered ticket."""

    ticket: PositiveInt
    group: NonNegativeInt
    tokens: Int32Array
    """[P + R] exactly as the engine saw and produced them."""
    prompt_length: PositiveInt
    """P."""
    loss_mask: BoolArray
    """[R] 1 on sampled tokens, 0 on inserted ones."""
    logprobs: Float32Array
    """[R] behaviour log-probability of each sampled token at the sampling temperature; 0 on inserted ones."""
    versions: tuple[VersionSpan, ...]
    """Cover every sampled token, in order, without overlap."""
    temperature: float = Field(gt=0)
    reward: float
    reward_parts: dict[str, float]
    tool_calls: tuple[ToolCall, ...]
    finish_reason: FinishReason = Field(strict=False)
    actor: str
    seed: NonNegativeInt
    issued_at: float
    started_at: float
    first_token_at: float
    published_at: float

    @property
    def response_length(self) -> int:
        """R."""
        return len(self.loss_mask)

    @property
    def lowest_version(self) -> int:
        """The oldest weights in it, as `WeightVersion.n`."""
        return min(span.version.n for span in self.versions)

    @model_validator(mode="after")
    def consistent(self) -> Self:
        length = len(self.loss_mask)
        if length == 0 or len(self.tokens) != self.prompt_length + length or len(self.logprobs) != length:
            raise ValueError("lengths of tokens, mask and log-probabilities disagree")
        if self.tokens.min() < 0:
            raise ValueError("negative token id")
        if self.loss_mask.max() > 1 or not self.loss_mask.any():
            raise ValueError("the mask must be 0 or 1 and keep at least one token")
        if not np.isfinite(self.logprobs).all() or self.logprobs.max() > 1e-3:
            raise ValueError("log-probabilities must be finite and not positive")
        if not np.isfinite(self.reward):
            raise ValueError("the reward must be finite")
        covered = np.zeros(length, dtype=np.uint8)
        previous_end = 0
        for span in self.versions:
            if span.start < previous_end or span.end <= span.start or span.end > length:
                raise ValueError("version spans must be ordered, not empty and inside the response")
            covered[span.start : span.end] = 1
            previous_end = span.end
        if (covered < self.loss_mask).any():
            raise ValueError("a sampled token has no version")
        return self


class Failure(Message):
    """A ticket that ended without a trajectory, for a reason of infrastructure or of the ticket itself."""

    ticket: PositiveInt
    group: NonNegativeInt
    reason: str
    attempts: PositiveInt
    actor: str
    published_at: float


class TensorEntry(Message):
    """Where a tensor lies in a version's bytes."""

    name: str
    dtype: str
    """As torch names it, such as `bfloat16`."""
    shape: tuple[NonNegativeInt, ...]
    offset: NonNegativeInt
    nbytes: NonNegativeInt


class Manifest(Message):
    """A complete weight version on the bus: written last, and only if the head is the one that the writer knew."""

    version: WeightVersion
    parent: WeightVersion | None
    tensors: tuple[TensorEntry, ...]
    first_chunk: PositiveInt
    """Stream sequence of the first chunk."""
    chunks: PositiveInt
    nbytes: NonNegativeInt
    checksum: str
    """xxh3-128 of all bytes, hexadecimal."""
    published_at: float


class Metrics(Message):
    """Measurements of one role at one time."""

    role: str
    id: str
    time: float
    step: int | None
    """Training step, for the learner's."""
    values: dict[str, float]


class Presence(Message):
    """Who is alive."""

    role: str
    id: str
    host: str
    pid: PositiveInt
    state: str
    """What it is doing, for people, such as `loading model` or `ready`."""
    version: str
    """Weight version that it holds, or empty."""
    in_flight: NonNegativeInt
    time: float


class DeadLetter(Message):
    """A copy, for people, of a message that did not decode or validate."""

    stream: str
    sequence: NonNegativeInt
    reason: str
    data: bytes

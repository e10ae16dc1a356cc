"""The messages that cross a process boundary, each validated on arrival.

Token arrays cover prompt and response together: index 0 is the first prompt token, `P` the prompt's and `R` the
response's length. Times are seconds since the epoch by the server's clock (`bus.clock`), durations seconds.
"""

from enum import IntEnum, StrEnum
from typing import Annotated, Self

import numpy as np
import xxhash
from pydantic import Field, NonNegativeInt, model_validator

from bus.codec import BoolArray, Float32Array, Int32Array, Message
from configs.names import Name
from configs.schema import RolloutConfig
from configs.tasks import GradingConfig

Count = Annotated[int, Field(ge=0, le=2**53)]
"""Exact as a float."""
Ordinal = Annotated[int, Field(ge=1, le=2**53)]
LATEST = 1e11
Time = Annotated[float, Field(ge=0.0, le=LATEST)]
Seconds = Annotated[float, Field(ge=0.0, le=1e9)]
Reward = Annotated[float, Field(ge=-1e7, le=1e7)]
"""A reward or a part of it: sums and squares of as many as there are stay finite, in float32 too."""
PartName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,39}$")]
MAX_TEXT = 1000
Text = Annotated[str, Field(max_length=MAX_TEXT)]
"""For people."""
MetricName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.@/-]{1,128}$")]
RESERVED = frozenset(("run", "seq", "time", "role", "id", "step"))
"""Fields of a line of `metrics.jsonl` (`bus.metrics.metrics_line`), and so names of no metric."""
MAX_PARTS = 48
MAX_VALUES = 1000


class WeightVersion(Message):
    """A version of the policy's weights: `n` training steps, made by the learner of `epoch`."""

    epoch: Count
    n: Count

    def __str__(self) -> str:
        return f"{self.epoch}.{self.n}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads `str(version)` back. Raises ValueError for anything else."""
        epoch, n = text.split(".")
        return cls(epoch=int(epoch), n=int(n))


class Ticket(Message):
    """Work: one ticket asks for one trajectory."""

    number: Ordinal
    """The ticket's sequence in its stream."""
    group: Count
    sample: Count
    problem_id: str
    problem: str
    answer: str
    """The gold answer; never enters a sandbox."""
    template: str
    """Text of the prompt's template, with its placeholder: an actor needs no file."""
    chat: bool
    """The filled template is wrapped as a user turn in the model's chat template."""
    grading: GradingConfig
    rollout: RolloutConfig
    min_version: Count
    """No older weights may start it (`WeightVersion.n`)."""
    issued_at: Time


class VersionSpan(Message):
    """Sampled tokens of the response in [start, end) came from `version`; positions count response tokens."""

    version: WeightVersion
    start: Count
    end: Count


class Outcome(StrEnum):
    """Says how an execution ended."""

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

    id: str = Field(min_length=1, max_length=64)
    """Identifies the execution, so that its sender can cancel it; unique in the run."""
    code: str
    timeout_s: float = Field(gt=0, le=3600)


class CancelExecution(Message):
    """Ends an execution for which nobody waits any more; sent to all services of the run."""

    id: str


class ExecutionResult(Message):
    """Says what came of one program."""

    outcome: Outcome = Field(strict=False)
    exit_code: Annotated[int, Field(ge=-(2**31), lt=2**31)] | None
    """The program's exit code, when it exited by itself."""
    signal: Annotated[int, Field(ge=0, le=255)] | None
    """That killed it, when it crashed."""
    stdout: str
    stderr: str
    truncated: bool
    """Output went past the limit and was cut."""
    seconds: Seconds
    detail: Text = ""
    """What failed, in words, when the sandbox did."""


class Busy(Message):
    """A sandbox service's answer when all its slots are taken: ask again later."""


class ToolCall(Message):
    """One execution inside a trajectory."""

    code: str
    output: str
    """The text that was inserted."""
    outcome: Outcome = Field(strict=False)
    success: bool
    """The program exited with 0."""
    error: str = Field(default="", pattern=r"^[A-Za-z_]{0,64}$")
    """The kind of its error, see `actors.tool_output.error_kind`; empty for a success."""
    start: Count
    """Response position at which the inserted tokens begin; the response's length where they did not fit any more."""
    seconds: Seconds
    """Seconds from request to answer, waiting included."""


class FinishReason(StrEnum):
    """Says why a response ended."""

    STOP = "stop"
    LENGTH = "length"


class Trajectory(Message):
    """An answered ticket."""

    ticket: Ordinal
    group: Count
    tokens: Int32Array
    """[P + R] exactly as the engine saw and produced them."""
    prompt_length: Ordinal
    """P."""
    loss_mask: BoolArray
    """[R] 1 on sampled tokens, 0 on inserted ones."""
    logprobs: Float32Array
    """[R] behaviour log-probability of each sampled token at the sampling temperature; 0 on inserted ones. Where one is not
    finite (the engine's arithmetic failed) the learner filters the trajectory, so that its ticket ends."""
    versions: tuple[VersionSpan, ...]
    """Cover every sampled token, in order, without overlap."""
    temperature: float = Field(gt=0)
    reward: Reward
    reward_parts: dict[PartName, Reward] = Field(max_length=MAX_PARTS)
    tool_calls: tuple[ToolCall, ...]
    finish_reason: FinishReason = Field(strict=False)
    void_turns: Count = 0
    """Turns (runs of sampled tokens) that close no code block and hold no answer."""
    hallucinated_outputs: Count = 0
    """Output blocks that the model wrote itself."""
    code_unused: bool = False
    """It made calls and gave an answer, and they had nothing to do with each other as far as one can tell."""
    problem_id: Text = ""
    """The ticket's problem."""
    gold_answer: Text = ""
    """The ticket's `answer`, cut where it is longer."""
    answer: Text | None = None
    """What the grader took for the answer, cut where it is longer; None where it found none."""
    attempts: Ordinal = 1
    """Actors that had the ticket, but for those that handed it back."""
    actor: Name
    seed: Count
    issued_at: Time
    started_at: Time
    first_token_at: Time
    published_at: Time
    run: str = Field(default="", max_length=64)
    """The ticket's run; the learner takes no result that does not name its own."""

    @property
    def response_length(self) -> int:
        """Returns R, the number of response tokens."""
        return len(self.loss_mask)

    @property
    def lowest_version(self) -> int:
        """Returns the oldest weights in it, as `WeightVersion.n`."""
        return min(span.version.n for span in self.versions)

    @model_validator(mode="after")
    def consistent(self) -> Self:
        length = len(self.loss_mask)
        if length == 0 or len(self.tokens) != self.prompt_length + length or len(self.logprobs) != length:
            raise ValueError("lengths of tokens, mask and log-probabilities disagree")
        # Bytes where they do: a pass of numpy over a short array costs more than all the rest.
        if not self.tokens.tobytes()[3::4].isascii():
            raise ValueError("negative token id")
        mask = self.loss_mask.tobytes()
        if mask.translate(None, b"\0\1") or 1 not in mask:
            raise ValueError("the mask must be 0 or 1 and keep at least one token")
        # What is not finite comes through: the learner's filters leave it out, and its ticket ends.
        if np.maximum.reduce(self.logprobs) > 1e-3:
            raise ValueError("log-probabilities must not be positive")
        previous_end = 0
        for span in self.versions:
            if span.start < previous_end or span.end <= span.start or span.end > length:
                raise ValueError("version spans must be ordered, not empty and inside the response")
            if mask.find(1, previous_end, span.start) >= 0:
                raise ValueError("a sampled token has no version")
            previous_end = span.end
        if mask.find(1, previous_end) >= 0:
            raise ValueError("a sampled token has no version")
        if any(call.start > length for call in self.tool_calls):
            raise ValueError("a tool call begins after the response's end")
        return self


class Failure(Message):
    """A ticket that ended without a trajectory, for a reason of infrastructure or of the ticket itself."""

    ticket: Ordinal
    group: Count
    reason: str = Field(max_length=100)
    """A few words, the same for all failures of a kind: they are counted by it."""
    detail: str = Field(default="", max_length=10_000)
    """The reason in more words, for people."""
    response_length: Count = 0
    """Response tokens that were there when the deadline passed; 0 for every other reason."""
    attempts: Ordinal
    """Actors that had the ticket, but for those that handed it back."""
    actor: Name
    published_at: Time
    run: str = Field(default="", max_length=64)
    """The ticket's run; the learner takes no result that does not name its own."""


class TensorEntry(Message):
    """Says where a tensor lies in an image of the weights."""

    name: str
    dtype: str
    """As torch names it, such as `bfloat16`."""
    shape: tuple[Count, ...]
    offset: Count
    nbytes: Count


class Encoding(IntEnum):
    """Says how a segment's new bits are written."""

    FULL = 0
    """As they are."""
    DELTA = 1
    """Exclusive or with the old bits, zstd."""


class Segment(Message):
    """New bits of one segment of the weights' image."""

    number: Count
    encoding: Encoding = Field(strict=False)
    data: bytes
    digest: NonNegativeInt
    """xxh3-64 of the segment's new bits."""


class WeightChunk(Message):
    """Part of a version's snapshot or delta."""

    index: Count
    """0, 1, ... within it."""
    segments: tuple[Segment, ...]


class ManifestKind(StrEnum):
    """Says what a manifest's chunks hold."""

    SNAPSHOT = "snapshot"
    """The whole state."""
    DELTA = "delta"
    """What changed since the parent; nothing, where a learner only takes over from another."""


class Manifest(Message):
    """Makes a weight version readable: written after its chunks, and only if the head is the one that the writer knew."""

    version: WeightVersion
    kind: ManifestKind = Field(strict=False)
    parent: WeightVersion | None
    """The version that a delta applies to."""
    parent_checksum: str
    layout: str
    """Digest of the tensors' names, types and places."""
    tensors: tuple[TensorEntry, ...]
    """The layout, in snapshots only."""
    writing: str
    """Identifies the attempt that wrote the chunks; part of their subject, so that no other attempt's lie between them."""
    first_chunk: Count
    """Stream sequence of the first chunk; 0 where there is none."""
    chunks: Count
    location: str | None
    """Path or URL of a snapshot that lies outside the bus, as raw bytes of the image."""
    nbytes: Count
    """Bytes of the whole state."""
    wire_bytes: Count
    """Bytes that a reader has to fetch."""
    checksum: str
    """Checksum of the whole state, see `weights.codec`."""
    published_at: Time


class Metrics(Message):
    """Measurements of one role at one time."""

    role: Name
    id: str = Field(pattern=r"^[A-Za-z0-9_/-]{1,200}$")
    """The process's, and behind a slash what of it was measured."""
    time: Time
    step: Count | None
    """Training step, for the learner's."""
    values: dict[MetricName, float] = Field(max_length=MAX_VALUES)

    @model_validator(mode="after")
    def unreserved(self) -> Self:
        if taken := RESERVED & self.values.keys():
            raise ValueError(f"{', '.join(sorted(taken))}: no name of a metric")
        return self


class Presence(Message):
    """Says that a process is alive, and what it does."""

    role: Name
    id: Name
    host: Text
    pid: Ordinal
    state: Text
    """What it is doing, for people, such as `loading model` or `ready`."""
    version: str = Field(pattern=r"^([0-9]{1,15}\.[0-9]{1,15})?$")
    """Weight version that it holds, or empty."""
    in_flight: Count
    rates: dict[MetricName, float] = Field(default_factory=dict, max_length=MAX_VALUES)
    """What it gets done, by the metric's name."""
    time: Time


class DeadLetter(Message):
    """A copy, for people, of a message that did not decode or validate."""

    stream: Text
    sequence: Count
    reason: str = Field(max_length=2000)
    data: bytes


def wire_schema_digest() -> str:
    """Returns the digest of every message's name, version and fields: equal for processes that understand each other."""
    kinds = sorted(
        f"{kind.__name__} {kind.VERSION} {sorted(kind.model_fields)}"
        for kind in Message.__subclasses__()
        if kind.__module__ == __name__
    )
    return xxhash.xxh3_64_hexdigest("\n".join(kinds).encode())

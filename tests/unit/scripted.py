"""A scripted engine, code runner and tokenizer for the rollout's state machine."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from actors.engine import Completion, DeadlineError, Sampling
from actors.rollout import Response, Rollout
from bus.messages import ExecutionResult, Outcome, TensorEntry, VersionSpan, WeightVersion
from configs.schema import RolloutConfig

END = "<end>"


class Pieces:
    """A tokenizer with tokens of several characters, which only the engine samples: text is encoded by the character.

    So what is decoded and encoded again is seldom what it was.
    """

    def __init__(self, pieces: Sequence[str] = ()) -> None:
        self.pieces = [END, *pieces]

    def encode(self, text: str, *, add_special_tokens: bool, split_special_tokens: bool) -> list[int]:
        assert not add_special_tokens
        assert split_special_tokens
        return [len(self.pieces) + ord(character) for character in text]

    def decode(self, token_ids: list[int], *, clean_up_tokenization_spaces: bool = False) -> str:
        assert not clean_up_tokenization_spaces
        n = len(self.pieces)
        return "".join(self.pieces[token] if token < n else chr(token - n) for token in token_ids)


@dataclass(frozen=True)
class Sampled:
    """A token as the script has it."""

    token: int
    logprob: float = -0.5
    version: int = 0


@dataclass
class Request:
    tokens: list[int]
    sampling: Sampling


@dataclass
class ScriptedEngine:
    """Samples the script, then the end of the sequence. Like vLLM, it looks for stop strings in one request's text.

    A request takes `seconds` by its own clock; where that is too long, it has sampled one token by the deadline.
    """

    script: list[Sampled]
    tokenizer: Pieces
    seconds: float = 0.0
    sampled: list[Sampled] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    cache_tokens: int = 1_000_000
    cache_use: float = 0.0
    preemptions: int = 0
    failed: bool = False
    generated_tokens: int = 0
    version: WeightVersion | None = None

    async def load(
        self, version: WeightVersion, tensors: Sequence[TensorEntry], path: str, *, recompute: bool = False
    ) -> float:
        raise NotImplementedError("a script has no weights")

    async def stop(self) -> None:
        pass

    async def generate(self, tokens: list[int], sampling: Sampling) -> Completion:
        self.requests.append(Request(list(tokens), sampling))
        if self.seconds > sampling.deadline_s:
            raise DeadlineError(1)
        new: list[Sampled] = []
        stopped, reason = None, "length"
        while len(new) < sampling.max_tokens and stopped is None and reason == "length":
            new.append(self.script.pop(0) if self.script else Sampled(0))
            text = self.tokenizer.decode([one.token for one in new])
            stopped = next((string for string in sampling.stop if string in text), None)
            if stopped or new[-1].token == 0:
                reason = "stop"
        self.sampled += new
        return Completion(
            tokens=[one.token for one in new],
            logprobs=[one.logprob for one in new],
            versions=_spans([one.version for one in new]),
            finish_reason=reason,
            stop=stopped,
            first_token_s=float(len(self.requests)),
            seconds=self.seconds,
        )


def _spans(versions: list[int]) -> list[VersionSpan]:
    starts = [i for i, version in enumerate(versions) if i == 0 or version != versions[i - 1]]
    return [
        VersionSpan(version=WeightVersion(epoch=0, n=versions[start]), start=start, end=end)
        for start, end in zip(starts, [*starts[1:], len(versions)], strict=True)
    ]


@dataclass
class ScriptedRunner:
    """Answers every program with the next result, and for ever with the last."""

    results: list[ExecutionResult]
    programs: list[str] = field(default_factory=list)

    async def execute(self, code: str, timeout_s: float) -> ExecutionResult:
        self.programs.append(code)
        return self.results[min(len(self.programs), len(self.results)) - 1]


def result(
    outcome: Outcome = Outcome.EXITED, exit_code: int | None = 0, stdout: str = "", stderr: str = ""
) -> ExecutionResult:
    return ExecutionResult(
        outcome=outcome, exit_code=exit_code, signal=None, stdout=stdout, stderr=stderr, truncated=False, seconds=0.0
    )


@dataclass
class Played:
    """A rollout that is over, and what it asked for."""

    response: Response
    engine: ScriptedEngine
    runner: ScriptedRunner
    tokenizer: Pieces

    def text(self, mask: int) -> str:
        """Returns the text of all sampled (1) or all inserted (0) tokens, without the end of the sequence."""
        pairs = zip(self.response.tokens, self.response.loss_mask, strict=True)
        return self.tokenizer.decode([token for token, m in pairs if m == mask]).removesuffix(END)

    @property
    def turns(self) -> list[str]:
        """Their texts, without the end of the sequence."""
        return [turn.removesuffix(END) for turn in self.response.turns]


async def play(script: str | list[str], output: str | ExecutionResult = "6", **settings: object) -> Played:
    """Plays a script of characters, or of pieces that are a token each."""
    tokenizer = Pieces([] if isinstance(script, str) else sorted(set(script)))
    tokens = (
        tokenizer.encode(script, add_special_tokens=False, split_special_tokens=True)
        if isinstance(script, str)
        else [tokenizer.pieces.index(piece) for piece in script]
    )
    engine = ScriptedEngine([Sampled(token) for token in tokens], tokenizer)
    runner = ScriptedRunner([output if isinstance(output, ExecutionResult) else result(stdout=output + "\n")])
    config = RolloutConfig.model_validate(
        {"max_tool_calls": 1, "max_response_tokens": 1000, "stop": ("User:",), **settings}
    )
    prompt = tokenizer.encode("Q", add_special_tokens=False, split_special_tokens=True)
    response = await Rollout(engine, runner, tokenizer, config).run(prompt)
    return Played(response, engine, runner, tokenizer)

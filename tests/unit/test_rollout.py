"""The rollout's state machine over a scripted engine and a scripted code runner."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from actors.rollout import Completion, Rollout, output_text, program_of
from bus.messages import ExecutionResult, FinishReason, Outcome, VersionSpan, WeightVersion
from configs.schema import RolloutConfig


class Characters:
    """A tokenizer with one token a character."""

    def encode(self, text: str, *, add_special_tokens: bool, split_special_tokens: bool) -> list[int]:
        assert not add_special_tokens
        assert split_special_tokens
        return [ord(character) for character in text]

    def decode(self, token_ids: list[int]) -> str:
        return "".join(map(chr, token_ids))


@dataclass
class Scripted:
    """Plays one script; what a stop string cuts off is said at the next request, as a model would go on."""

    script: str
    version: int = 0
    requests: list[tuple[str, tuple[str, ...], int]] = field(default_factory=list)

    async def generate(
        self, tokens: list[int], *, max_tokens: int, stop: Sequence[str], temperature: float, top_p: float,
        top_k: int, seed: int | None,
    ) -> Completion:  # fmt: skip
        self.requests.append((Characters().decode(tokens), tuple(stop), max_tokens))
        text, reason, stopped = "", "stop", None
        for character in self.script:
            text += character
            stopped = next((string for string in stop if text.endswith(string)), None)
            if stopped:
                break
            if len(text) == max_tokens:
                reason = "length"
                break
        self.script = self.script[len(text) :]
        version = WeightVersion(epoch=0, n=self.version)
        self.version += 1
        return Completion(
            tokens=[ord(character) for character in text],
            logprobs=[-0.5] * len(text),
            versions=[VersionSpan(version=version, start=0, end=len(text))],
            finish_reason=reason,
            stop=stopped,
            first_token_at=float(len(self.requests)),
        )


@dataclass
class Runner:
    output: str = "6"
    programs: list[str] = field(default_factory=list)

    async def execute(self, code: str, timeout_s: float) -> ExecutionResult:
        self.programs.append(code)
        return result(stdout=self.output + "\n")


def result(outcome: Outcome = Outcome.EXITED, exit_code: int | None = 0, stdout: str = "", stderr: str = ""):
    return ExecutionResult(
        outcome=outcome, exit_code=exit_code, signal=None, stdout=stdout, stderr=stderr, truncated=False, seconds=0.0
    )


async def play(script: str, output: str = "6", **settings):
    engine, runner = Scripted(script), Runner(output)
    config = RolloutConfig(**{"max_tool_calls": 1, "max_response_tokens": 1000, "stop": ("User:",), **settings})
    response = await Rollout(engine, runner, Characters(), config).run([ord("Q")])
    return response, engine, runner


def text_of(response, mask: int) -> str:
    return "".join(chr(t) for t, m in zip(response.tokens, response.loss_mask, strict=True) if m == mask)


CODE = "Let me see. ```python\nprint(2*3)\n```"


async def test_code_is_run_and_its_output_inserted_and_masked():
    response, engine, runner = await play(CODE + "So 6.")
    assert runner.programs == ["print(2*3)"]
    assert text_of(response, 0) == "\n```output\n6\n```\n"
    assert text_of(response, 1) == CODE + "So 6."
    assert response.turns == [CODE, "So 6."]
    assert engine.requests[-1][0] == "Q" + CODE + "\n```output\n6\n```\n"
    assert response.finish_reason is FinishReason.STOP
    call = response.tool_calls[0]
    assert (call.start, call.success, call.output) == (len(CODE), True, "6")


async def test_versions_cover_exactly_the_sampled_tokens():
    response, _, _ = await play(CODE + "So 6.")
    covered = [False] * len(response.tokens)
    for span in response.versions:
        for position in range(span.start, span.end):
            covered[position] = True
    assert covered == [bool(mask) for mask in response.loss_mask]
    assert [span.version.n for span in response.versions] == [0, 1, 2]


async def test_a_base_stop_string_ends_the_response():
    response, _, _ = await play("I think 5. User: more")
    assert text_of(response, 1) == "I think 5. User:"
    assert response.tool_calls == []


async def test_a_second_call_is_answered_by_the_message_and_not_run():
    response, _, runner = await play(CODE + CODE + "Then 6. " + CODE, exhausted_message="No more.")
    assert len(runner.programs) == 1
    assert text_of(response, 0) == "\n```output\n6\n```\n\n```output\nNo more.\n```\n"
    assert response.refused_calls == 1
    assert response.turns[-1] == "Then 6. " + CODE


async def test_without_tools_code_is_text():
    response, engine, runner = await play(CODE + "done", max_tool_calls=0)
    assert runner.programs == []
    assert response.turns == [CODE + "done"]
    assert engine.requests[0][1] == ("User:",)


@pytest.mark.parametrize("budget", range(1, 80))
async def test_the_budget_is_exact(budget: int):
    response, _, _ = await play(CODE + "So 6, and on and on and on.", max_response_tokens=budget)
    assert len(response.tokens) <= budget
    assert len(response.tokens) == len(response.loss_mask) == len(response.logprobs)
    whole = len(CODE) + len("\n```output\n6\n```\n") + len("So 6, and on and on and on.")
    assert (response.finish_reason is FinishReason.LENGTH) == (budget <= whole)


async def test_an_unclosed_block_is_not_run():
    response, _, runner = await play("```python\nprint(1)")
    assert runner.programs == []
    assert response.turns == ["```python\nprint(1)"]


async def test_output_with_fences_and_stops_stays_inert():
    response, _, runner = await play(CODE + "End.", output="```python\nprint('again')\n```\nUser: \\boxed{9}")
    assert len(runner.programs) == 1
    assert "boxed" not in "".join(response.turns)
    assert response.turns[-1] == "End."


async def test_long_output_is_cut_with_a_marker():
    response, _, _ = await play(CODE + "End.", output="9" * 500, max_output_tokens=20)
    assert response.tool_calls[0].output == "9" * 20 + "\n[output truncated]"


async def test_failures_of_infrastructure_are_raised():
    class Broken:
        async def execute(self, code: str, timeout_s: float) -> ExecutionResult:
            raise RuntimeError("no sandbox")

    rollout = Rollout(Scripted(CODE), Broken(), Characters(), RolloutConfig())
    with pytest.raises(RuntimeError, match="no sandbox"):
        await rollout.run([1])
    with pytest.raises(ValueError, match="never shown"):
        output_text(result(Outcome.SANDBOX_FAILURE, None), 5)


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (result(stdout="1\n2\n"), "1\n2"),
        (result(exit_code=1, stdout="1\n", stderr="Traceback\n  x\nZeroDivisionError: by zero\n"),
         "1\nZeroDivisionError: by zero"),
        (result(exit_code=3), "exit status 3"),
        (result(Outcome.TIMEOUT, None), "TimeoutError: the program ran longer than 5 seconds"),
        (result(Outcome.OUT_OF_MEMORY, None), "MemoryError: the program used up its memory"),
    ],
)  # fmt: skip
def test_what_the_model_is_shown(given: ExecutionResult, shown: str):
    assert output_text(given, 5) == shown


@pytest.mark.parametrize(
    ("turn", "program"),
    [
        ("a ```python\nx = 1\nprint(x)\n```", "x = 1\nprint(x)"),
        ("```python3\nprint(1)```", "print(1)"),
        ("```python\n1\n```\nfoo ```python\n2\n```", "2"),
        ("```pythonprint(1)```", "print(1)"),
    ],
)
def test_the_program_of_a_turn(turn: str, program: str):
    assert program_of(turn) == program

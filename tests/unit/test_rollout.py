"""The rollout's state machine over a scripted engine and a scripted code runner, one rule a test."""

import asyncio
from itertools import groupby

import pytest

from actors.engine import DeadlineError
from actors.rollout import Rollout
from actors.tool_output import error_kind, shown
from bus.messages import ExecutionResult, FinishReason, Outcome
from configs.schema import RolloutConfig
from tests.unit.scripted import END, Pieces, Sampled, ScriptedEngine, ScriptedRunner, play, result

CODE = "Let me see. ```python\nprint(2*3)\n```"
OUTPUT = "\n```output\n6\n```\n"
MESSAGE = "\n```output\nNo more.\n```\n"


async def test_code_is_run_and_its_output_inserted_and_masked():
    played = await play(CODE + "So 6.")
    assert played.runner.programs == ["print(2*3)"]
    assert played.text(0) == OUTPUT
    assert played.text(1) == CODE + "So 6."
    assert played.turns == [CODE, "So 6."]
    assert played.tokenizer.decode(played.engine.requests[-1].tokens) == "Q" + CODE + OUTPUT
    assert played.response.finish_reason is FinishReason.STOP
    call = played.response.tool_calls[0]
    assert (call.start, call.success, call.output, call.error) == (len(CODE), True, "6", "")


async def test_stop_strings_follow_the_state():
    played = await play(CODE + "So 6.", max_tool_calls=2, stop=("User:", "</answer>"))
    thinking = ("```python", "```Python", "```PYTHON", "```py\n", "User:", "</answer>")
    assert [request.sampling.stop for request in played.engine.requests] == [thinking, ("```",), thinking]


@pytest.mark.parametrize("stop", ["User:", "Human:", "Assistant:", "</answer>"])
async def test_a_base_stop_string_ends_the_response(stop: str):
    played = await play(f"I think 5. {stop} more", stop=RolloutConfig().stop)
    assert played.text(1) == f"I think 5. {stop}"
    assert played.response.tool_calls == []
    assert played.response.finish_reason is FinishReason.STOP


async def test_base_stop_strings_do_not_end_code():
    played = await play("```python\nprint('User:')\n```So 6.")
    assert played.runner.programs == ["print('User:')"]


@pytest.mark.parametrize(
    "pieces",
    [
        ["So ``", "`py", "thon\n", "print(2*3)", "\n`", "``", " It", " is 6."],
        ["So", " ```python", "\nprint(2*3)\n", "```", " It is", " 6."],
        # Tokens that reach past the fences that they complete.
        ["So ``", "`python\nprint(", "2*3)\n", "```\n\n", "It is 6."],
        ["So ```python\nprint(2*3)\n``` and", " it is 6."],
        ["So ```python\n", "print(2*3)\n```output", "\nIt is 6."],
        ["So ```python\n", "print(2*3)\n```python", "\nIt is 6."],
    ],
)
async def test_fences_may_span_tokens_and_tokens_fences(pieces: list[str]):
    played = await play(pieces)
    assert played.runner.programs == ["print(2*3)"]
    assert played.text(0) == OUTPUT
    sampled = [t for t, m in zip(played.response.tokens, played.response.loss_mask, strict=True) if m == 1]
    assert sampled == [played.tokenizer.pieces.index(piece) for piece in [*pieces, END]]


@pytest.mark.parametrize(
    ("block", "program"),
    [
        ("```Python\nprint(6)\n```", "print(6)"),
        ("```PYTHON\nprint(6)\n```", "print(6)"),
        ("```py\nprint(6)\n```", "print(6)"),
        ("```python3\nprint(6)\n```", "print(6)"),
        ("1. so\n   ```python\n   for i in [6]:\n     print(i)\n   ```", "for i in [6]:\n  print(i)"),
        ("\t```py\n\tprint(6)\n\t```", "print(6)"),
    ],
)
async def test_other_spellings_of_the_fence_open_code_too(block: str, program: str):
    played = await play(block + " So 6.")
    assert played.runner.programs == [program]
    assert played.text(0) == OUTPUT
    assert played.turns == [block, " So 6."]


@pytest.mark.parametrize(
    "block", ["```pycon\n>>> 6\n```", "```cpp\nint x;\n```", "```\n6\n```", "```py 6```", "` ``python\n6\n"]
)
async def test_other_blocks_are_text(block: str):
    played = await play(block + CODE + "So 6.")
    assert played.runner.programs == ["print(2*3)"]
    assert played.turns == [block + CODE, "So 6."]


async def test_sampled_tokens_are_kept_where_encoding_their_text_gives_others():
    played = await play(["a", "b", "ab", "```python", "\n1", "```", "a", "b"])
    tokenizer = played.tokenizer
    inserted = tokenizer.encode(OUTPUT, add_special_tokens=False, split_special_tokens=True)
    sampled = [tokenizer.pieces.index(piece) for piece in ("a", "b", "ab", "```python", "\n1", "```")]
    assert played.response.tokens[: len(sampled) + len(inserted)] == sampled + inserted
    assert played.engine.requests[-1].tokens[1:] == sampled + inserted


@pytest.mark.parametrize("line", ['s = "```"', "# not the end: ```", "s = '''\n```\n'''", "s = 'it\\'s ```'"])
async def test_a_fence_in_a_literal_or_a_comment_does_not_end_the_code(line: str):
    code = f"```python\n{line}\nprint(6)\n```"
    played = await play(code + "So 6.")
    assert played.runner.programs == [f"{line}\nprint(6)"]
    assert played.turns == [code, "So 6."]


async def test_a_second_call_is_answered_by_the_message_and_not_run():
    played = await play(CODE + CODE + "Then 6. " + CODE, exhausted_message="No more.")
    assert len(played.runner.programs) == 1
    assert played.text(0) == OUTPUT + MESSAGE
    assert played.response.refused_calls == 1
    # It generates once more, and code in that is text.
    assert played.turns[-1] == "Then 6. " + CODE
    assert played.engine.requests[-1].sampling.stop == ("User:",)


async def test_without_a_message_further_code_is_just_not_run():
    played = await play(CODE + CODE + "Then 6.", exhausted_message="")
    assert len(played.runner.programs) == 1
    assert played.text(0) == OUTPUT
    assert played.turns == [CODE, CODE + "Then 6."]
    assert played.response.refused_calls == 0


async def test_every_allowed_call_is_run():
    played = await play(CODE * 5 + "So 6.", max_tool_calls=5)
    assert len(played.runner.programs) == 5
    assert played.text(0) == OUTPUT * 5


async def test_without_tools_code_is_text():
    played = await play(CODE + CODE + "done", max_tool_calls=0)
    assert played.runner.programs == []
    assert played.turns == [CODE + CODE + "done"]
    assert played.engine.requests[0].sampling.stop == ("User:",)


SCRIPT = CODE + CODE + "So 6, and on and on and on."
WHOLE = len(CODE + OUTPUT + CODE + MESSAGE + "So 6, and on and on and on.")


@pytest.mark.parametrize("budget", range(1, WHOLE + 3))
async def test_the_budget_is_exact(budget: int):
    """One token a character. The budget ends within each part: samples, output, message and the last turn."""
    played = await play(SCRIPT, max_response_tokens=budget, exhausted_message="No more.")
    response = played.response
    assert len(response.tokens) <= budget
    assert len(response.tokens) == len(response.loss_mask) == len(response.logprobs)
    assert (response.finish_reason is FinishReason.LENGTH) == (budget <= WHOLE)
    for request in played.engine.requests:
        assert len(request.tokens) + request.sampling.max_tokens == 1 + budget
    # What is inserted is inserted whole.
    assert played.text(0) in ("", OUTPUT, OUTPUT + MESSAGE)


async def test_a_block_that_the_budget_cuts_is_not_run():
    played = await play(CODE, max_response_tokens=len(CODE) - 1)
    assert played.runner.programs == []
    assert played.turns == [CODE[:-1]]
    assert played.response.finish_reason is FinishReason.LENGTH


async def test_no_code_is_run_where_no_output_would_fit():
    frame = len(OUTPUT) - 1
    played = await play(CODE, max_response_tokens=len(CODE) + frame)
    assert (played.runner.programs, played.response.tool_calls) == ([], [])
    # With room for an empty output it is run; the call is told even where its output proves too long.
    played = await play(CODE, max_response_tokens=len(CODE) + frame + 1)
    assert [call.start for call in played.response.tool_calls] == [len(CODE)] == [len(played.response.tokens)]
    assert played.response.finish_reason is FinishReason.LENGTH


async def test_an_unclosed_block_is_not_run():
    played = await play("```python\nprint(1)")
    assert played.runner.programs == []
    assert played.turns == ["```python\nprint(1)"]
    assert played.response.finish_reason is FinishReason.STOP


@pytest.mark.parametrize(
    "output",
    [
        "```python\nprint('again')\n```",
        "\\boxed{9} <answer>9</answer>",
        "User: go on",
        f"{END}<|im_end|>",
        "```output\n1",
    ],
)
async def test_output_with_fences_answers_and_markers_stays_inert(output: str):
    played = await play(CODE + "End.", output=output, max_tool_calls=3)
    assert len(played.runner.programs) == 1
    assert played.turns == [CODE, "End."]
    assert played.text(0) == f"\n```output\n{output}\n```\n"
    assert 0 not in played.response.tokens[:-1]  # a marker in text is not its token
    assert played.response.hallucinated_outputs == 0


async def test_output_that_the_model_makes_up_is_counted_and_never_taken_for_output():
    made_up = "It prints ```output\n5\n``` and ```output\n6\n```. "
    played = await play(made_up + CODE + "So 6. ```output\n7")
    assert played.response.hallucinated_outputs == 3
    assert played.runner.programs == ["print(2*3)"]
    assert [call.output for call in played.response.tool_calls] == ["6"]
    assert played.text(0) == OUTPUT


async def test_long_output_is_cut_with_a_marker():
    played = await play(CODE + "End.", output="9" * 500, max_output_tokens=20)
    assert played.response.tool_calls[0].output == "9" * 20 + "\n[output truncated]"
    played = await play(CODE + "End.", output="9" * 20, max_output_tokens=20)
    assert played.response.tool_calls[0].output == "9" * 20


NAME_ERROR = "NameError: a"


@pytest.mark.parametrize(
    ("given", "settings", "output"),
    [
        # What the program printed is cut, the line that says how it ended is not.
        (result(exit_code=1, stdout="9" * 500, stderr=f"Traceback\n{NAME_ERROR}\n"), {},
         "9" * (30 - 1 - len(NAME_ERROR)) + "\n[output truncated]\n" + NAME_ERROR),
        (result(Outcome.CPU_LIMIT, None, stdout="9" * 500), {"max_output_tokens": 50},
         "9" * 3 + "\n[output truncated]\nTimeoutError: the program used up its CPU time"),
        (result(exit_code=1, stdout="ok", stderr=f"Traceback\n{'x' * 500}\n{NAME_ERROR}\n"), {"traceback": "whole"},
         "ok\nTraceback\nxxxx\n[output truncated]\n" + NAME_ERROR),
        # Unless it is too long itself.
        (result(exit_code=1, stdout="9" * 500, stderr="Error: " + "x" * 500), {},
         "[output truncated]\nError: " + "x" * 23 + "\n[output truncated]"),
        (result(exit_code=1, stderr="Error: " + "x" * 500), {}, "Error: " + "x" * 23 + "\n[output truncated]"),
    ],
)  # fmt: skip
async def test_a_cut_output_keeps_the_line_that_names_the_error_or_limit(given, settings, output):
    played = await play(CODE + "End.", output=given, **({"max_output_tokens": 30} | settings))
    assert played.response.tool_calls[0].output == output
    assert played.text(0) == f"\n```output\n{output}\n```\n"


class Runs(Pieces):
    """A tokenizer for which any number of equal characters is one token, as many spaces or equals signs are."""

    def encode(self, text: str, **settings: bool) -> list[int]:
        return [len(self.pieces) + ord(character) for character, _ in groupby(text)]


def test_what_was_not_counted_is_not_shown():
    # One token for as many characters as one likes, and then more of them than are looked at.
    flood = "=" * 1000 + "9876543210" * 500
    rollout = Rollout(ScriptedEngine([], Runs()), ScriptedRunner([]), Runs(), RolloutConfig(max_output_tokens=32))
    cut = rollout._cut(shown(result(stdout=flood), 5, "last_line"))
    assert cut == "=" * 1000 + "987654321098765432109876" + "\n[output truncated]"
    assert len(Runs().encode(cut)) <= 32 + len("\n[output truncated]")


async def test_the_whole_traceback_is_a_choice():
    error = result(exit_code=1, stderr="Traceback (most recent call last):\n  x\nNameError: name 'a'\n")
    played = await play(CODE, output=error, traceback="last_line")
    assert played.response.tool_calls[0].output == "NameError: name 'a'"
    played = await play(CODE, output=error, traceback="whole")
    call = played.response.tool_calls[0]
    assert call.output == "Traceback (most recent call last):\n  x\nNameError: name 'a'"
    assert (call.success, call.error) == (False, "NameError")


async def test_versions_cover_exactly_the_sampled_tokens():
    tokenizer = Pieces()
    tokens = tokenizer.encode(CODE + "So 6.", add_special_tokens=False, split_special_tokens=True)
    script = [Sampled(token, version=i // 20) for i, token in enumerate(tokens)]
    engine = ScriptedEngine(script, tokenizer)
    response = await Rollout(engine, ScriptedRunner([result(stdout="6")]), tokenizer, RolloutConfig()).run([1])
    covered = [False] * len(response.tokens)
    for span in response.versions:
        for position in range(span.start, span.end):
            covered[position] = True
    assert covered == [bool(mask) for mask in response.loss_mask]
    # Spans of one version that touch, such as before and after a stop string, are one.
    assert response.versions[0].end == 20


async def test_failures_of_infrastructure_are_raised():
    class Broken:
        async def execute(self, code: str, timeout_s: float) -> ExecutionResult:
            raise RuntimeError("no sandbox")

    tokenizer = Pieces()
    tokens = tokenizer.encode(CODE, add_special_tokens=False, split_special_tokens=True)
    engine = ScriptedEngine([Sampled(token) for token in tokens], tokenizer)
    with pytest.raises(RuntimeError, match="no sandbox"):
        await Rollout(engine, Broken(), tokenizer, RolloutConfig()).run([1])
    with pytest.raises(ValueError, match="never shown"):
        shown(result(Outcome.SANDBOX_FAILURE, None), 5, "last_line")


async def test_a_wait_for_a_tool_holds_no_other_rollout():
    class Slow(ScriptedRunner):
        release = asyncio.Event()

        async def execute(self, code: str, timeout_s: float) -> ExecutionResult:
            await self.release.wait()
            return await super().execute(code, timeout_s)

    tokenizer, runner = Pieces(), Slow([result(stdout="6")])
    texts = [CODE + "So 6."] * 200 + ["It is 6."] * 200
    scripts = [tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True) for text in texts]
    engines = [ScriptedEngine([Sampled(token) for token in script], tokenizer) for script in scripts]
    running = [
        asyncio.create_task(Rollout(engine, runner, tokenizer, RolloutConfig(max_response_tokens=100)).run([1]))
        for engine in engines
    ]
    await asyncio.gather(*running[200:])
    assert not any(task.done() for task in running[:200])
    running[0].cancel()
    runner.release.set()
    responses = await asyncio.gather(*running[1:200])
    assert all(len(response.tool_calls) == 1 for response in responses)
    assert len(runner.programs) == 199
    with pytest.raises(asyncio.CancelledError):
        await running[0]


async def test_the_deadline_is_of_the_whole_rollouts_generation_and_tells_its_length():
    config = RolloutConfig(max_response_tokens=200, slowest_tokens_per_s=100, max_tool_calls=2, stop=("User:",))
    assert config.deadline_s == 2.0
    tokenizer = Pieces()

    def engine(seconds: float) -> ScriptedEngine:
        tokens = tokenizer.encode(CODE + "So 6.", add_special_tokens=False, split_special_tokens=True)
        return ScriptedEngine([Sampled(token) for token in tokens], tokenizer, seconds=seconds)

    # Three requests: up to the fence, the code, the answer.
    fast, slow = engine(0.625), engine(0.75)
    response = await Rollout(fast, ScriptedRunner([result(stdout="6")]), tokenizer, config).run([1])
    assert [request.sampling.deadline_s for request in fast.requests] == [2.0, 1.375, 0.75]
    assert response.finish_reason is FinishReason.STOP
    with pytest.raises(DeadlineError) as caught:
        await Rollout(slow, ScriptedRunner([result(stdout="6")]), tokenizer, config).run([1])
    assert caught.value.length == len(CODE + OUTPUT) + 1


async def test_programs_run_without_the_deadline():
    class Slow(ScriptedRunner):
        async def execute(self, code: str, timeout_s: float) -> ExecutionResult:
            await asyncio.sleep(0.2)
            return await super().execute(code, timeout_s)

    config = RolloutConfig(max_response_tokens=1000, slowest_tokens_per_s=10_000, max_tool_calls=1, stop=("User:",))
    assert config.deadline_s == 0.1
    tokenizer = Pieces()
    tokens = tokenizer.encode(CODE, add_special_tokens=False, split_special_tokens=True)
    engine = ScriptedEngine([Sampled(token) for token in tokens], tokenizer)
    response = await Rollout(engine, Slow([result(stdout="6")]), tokenizer, config).run([1])
    assert response.tool_calls[0].seconds > config.deadline_s


@pytest.mark.parametrize(
    ("given", "text", "kind"),
    [
        (result(stdout="1\n2\n"), "1\n2", ""),
        (result(), "", ""),
        (result(exit_code=1, stdout="1\n", stderr="Traceback\n  x\nZeroDivisionError: by zero\n"),
         "1\nZeroDivisionError: by zero", "ZeroDivisionError"),
        (result(exit_code=1, stderr="KeyboardInterrupt\n"), "KeyboardInterrupt", "KeyboardInterrupt"),
        (result(exit_code=1, stderr="mine.MyError: 1\n"), "mine.MyError: 1", "other"),
        (result(exit_code=1, stderr="print: 1\n"), "print: 1", "other"),
        (result(exit_code=3), "exit status 3", "other"),
        (result(Outcome.TIMEOUT, None), "TimeoutError: the program ran longer than 5 seconds", "timeout"),
        (result(Outcome.CPU_LIMIT, None), "TimeoutError: the program used up its CPU time", "cpu_limit"),
        (result(Outcome.OUT_OF_MEMORY, None), "MemoryError: the program used up its memory", "out_of_memory"),
        (result(Outcome.OUTPUT_LIMIT, None, stdout="x"), "x\nOutputLimitError: the program printed too much",
         "output_limit"),
    ],
)  # fmt: skip
def test_what_the_model_is_shown_and_metrics_are_told(given: ExecutionResult, text: str, kind: str):
    assert str(shown(given, 5, "last_line")) == text
    assert error_kind(given) == kind

"""Properties of every rollout, over random streams of tokens, budgets and program outputs."""

import asyncio
from itertools import groupby

from hypothesis import example, given, settings
from hypothesis import strategies as st

from actors.rollout import TRUNCATED, Rollout
from bus.messages import FinishReason
from configs.schema import RolloutConfig
from grading.blocks import find_blocks
from tests import factories
from tests.unit.scripted import END, Pieces, Sampled, ScriptedEngine, ScriptedRunner, result

# Whole and broken fences, fences with more in the token, quotes and comments that hide fences, stops and answers.
PIECES = (
    "```python", "```", "`", "``", "python", "```output", "```\n", "\n```", "```python\n", "``````",
    "```\n```python\nx\n```", "python```", "```Python\n", "'", '"', '"""', "# ", "\n", "\\", "print(1)", "x", " ",
    "User:", "Us", "er:", "</answer>", "\\boxed{5}", "é", "5",
)  # fmt: skip
TOKENIZER = Pieces(PIECES)

tokens = st.builds(
    Sampled,
    # Fences often, the end of the sequence seldom.
    token=st.one_of(st.integers(1, 10), st.integers(1, len(PIECES)), st.integers(1, len(PIECES)), st.integers(0, 12)),
    logprob=st.floats(-20, 0, allow_nan=False),
    version=st.integers(0, 3),
)
scripts = st.lists(tokens, max_size=60).map(lambda script: sorted(script, key=lambda one: one.version))
outputs = st.lists(st.sampled_from([*PIECES, END, "<|im_end|>", "9" * 40]), max_size=5).map("".join)
limits = st.fixed_dictionaries(
    {
        "max_tool_calls": st.integers(0, 4),
        "max_response_tokens": st.integers(1, 150),
        "max_output_tokens": st.integers(1, 30),
        "exhausted_message": st.sampled_from(["", "No more."]),
        "stop": st.sampled_from([(), ("User:",), ("User:", "</answer>")]),
    }
)


def script_of(*pieces: str) -> list[Sampled]:
    return [Sampled(TOKENIZER.pieces.index(piece)) for piece in pieces]


@settings(max_examples=400, deadline=None)
@given(scripts, st.lists(outputs, min_size=1, max_size=4), limits)
@example(script_of("```python", "x", "```\n```python\nx\n```", "5"), ["1"], {"max_tool_calls": 1})
@example(script_of("```python", "'", "```", "'", "\n", "```", "5"), ["```"], {"max_tool_calls": 1})
@example(script_of("```Python\n", "'", "```python", "'", "```"), [""], {"max_tool_calls": 2})
def test_every_rollout_ends_and_is_consistent(script: list[Sampled], printed: list[str], limits: dict):
    config = RolloutConfig(**limits)
    engine = ScriptedEngine(list(script), TOKENIZER)
    runner = ScriptedRunner([result(stdout=text) for text in printed])
    prompt = [7, 7, 7]
    response = asyncio.run(Rollout(engine, runner, TOKENIZER, config).run(prompt))
    budget = config.max_response_tokens

    # The budget is never passed, nor asked for more; every request goes on from exactly what is there.
    assert len(response.tokens) <= budget
    for request in engine.requests:
        assert len(request.tokens) + request.sampling.max_tokens == len(prompt) + budget
        assert request.tokens == (prompt + response.tokens)[: len(request.tokens)]

    # What is trained on is what was sampled, token for token, with its log-probability and version; nothing else.
    assert len(response.tokens) == len(response.loss_mask) == len(response.logprobs)
    versions: list[int | None] = [None] * len(response.tokens)
    for span in response.versions:
        versions[span.start : span.end] = [span.version.n] * (span.end - span.start)
    rows = list(zip(response.tokens, response.loss_mask, response.logprobs, versions, strict=True))
    sampled = [(token, logprob, version) for token, mask, logprob, version in rows if mask]
    assert sampled == [(one.token, one.logprob, one.version) for one in engine.sampled]
    assert all(logprob == 0.0 and version is None for _, mask, logprob, version in rows if not mask)

    # Turns are the runs of sampled tokens; between them stand whole frames with what the programs printed, in order.
    runs = [(mask, [row[0] for row in run]) for mask, run in groupby(rows, key=lambda row: row[1])]
    assert [TOKENIZER.decode(run) for mask, run in runs if mask] == response.turns
    frames = [TOKENIZER.decode(run) for mask, run in runs if not mask]
    inserted = [call.output for call in response.tool_calls if call.start < len(response.tokens)]
    inserted += [config.exhausted_message] * (len(frames) - len(inserted))
    assert frames == [f"\n```output\n{text}\n```\n" for text in inserted]
    assert len(frames) <= len(response.tool_calls) + response.refused_calls

    # Programs are whole blocks of what the model sampled in one turn, as many as are allowed, and never from output.
    assert [call.code for call in response.tool_calls] == runner.programs
    assert len(runner.programs) <= config.max_tool_calls
    for call, turn in zip(response.tool_calls, response.turns, strict=False):
        assert call.code in [b.program for b in find_blocks(turn) if b.kind == "python" and b.closed]
        assert len(call.output.replace(TRUNCATED, "").removeprefix(TRUNCATED[1:])) <= config.max_output_tokens + 1

    # It ended for a reason that it tells.
    last = engine.sampled[-1]
    if response.finish_reason is FinishReason.STOP:
        assert last.token == 0 or response.turns[-1].count("User:") or response.turns[-1].count("</answer>")
    elif len(response.tokens) < budget:
        assert response.loss_mask[-1] == 1  # a frame that did not fit
        assert [b for b in find_blocks(response.turns[-1]) if b.kind == "python" and b.closed]

    # It travels.
    arrays = response.arrays(prompt)
    factories.trajectory(
        len(prompt),
        len(response.tokens),
        mask=arrays[1],
        tokens=arrays[0],
        logprobs=arrays[2],
        versions=tuple(response.versions),
        tool_calls=tuple(response.tool_calls),
        finish_reason=response.finish_reason,
        hallucinated_outputs=response.hallucinated_outputs,
        first_token_at=response.first_token_s,
    )

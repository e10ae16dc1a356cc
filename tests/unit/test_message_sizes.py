"""The largest message of a run: a bound of its longest results, and a reason to refuse a configuration."""

from itertools import pairwise

import numpy as np
import pytest

from bus.codec import encode
from bus.messages import Outcome, ToolCall
from configs.loading import ConfigError, load_config
from configs.schema import MOST_MESSAGE_BYTES, TOKEN_TEXT_BYTES
from tests.factories import spans, trajectory


@pytest.mark.parametrize("tokens", [4_096, 400_000])
def test_a_result_that_uses_up_everything_fits(tokens: int):
    """Every call's program and output are as long as the tokens allow, and the last output did not fit any more."""
    config = load_config("tiny", [f"rollout.max_response_tokens={tokens}", "bus.max_results_bytes=10000000000"])
    rollout = config.rollout
    calls = rollout.max_tool_calls
    program = "x" * (TOKEN_TEXT_BYTES * (tokens - (calls - 1) * rollout.max_output_tokens) // calls)
    output = "y" * (TOKEN_TEXT_BYTES * rollout.max_output_tokens)
    call = ToolCall(
        code=program, output=output, outcome=Outcome.EXITED, success=True, error="", start=tokens, seconds=0.123
    )
    ends = np.linspace(0, tokens, calls + 5, dtype=int).tolist()
    result = trajectory(
        rollout.max_prompt_tokens,
        tokens,
        tokens=np.full(rollout.max_prompt_tokens + tokens, 150_000, np.int32),
        versions=spans(*((n, start, end) for n, (start, end) in enumerate(pairwise(ends)))),
        tool_calls=(call,) * calls,
        reward_parts={f"part_{n}": 0.1 for n in range(20)},
        actor="actor-123456",
        run="tiny-20260101-000000-abcd",
    )
    assert len(encode(result)) <= config.largest_message_bytes


def test_results_that_no_server_could_take_are_refused():
    settings = ["rollout.max_response_tokens=3000000", "bus.max_results_bytes=100000000000"]
    with pytest.raises(ConfigError, match=r"may take 7\d MiB, and a NATS server takes 64 MiB .*max_response_tokens"):
        load_config("tiny", settings)
    assert load_config("zerotir-32b").largest_message_bytes < MOST_MESSAGE_BYTES / 8

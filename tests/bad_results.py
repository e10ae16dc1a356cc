"""Bad results, as senders that check nothing would send them, each with a part of the reason for which it is refused."""

from typing import Any

import msgpack
import numpy as np

from bus.codec import _pack, encode
from bus.messages import Failure, FinishReason, Outcome, ToolCall, VersionSpan, WeightVersion


def good(**changes: Any) -> dict[str, Any]:
    fields = {
        "ticket": 1,
        "group": 0,
        "tokens": np.arange(6, dtype=np.int32),
        "prompt_length": 2,
        "loss_mask": np.array([1, 0, 0, 1], np.uint8),
        "logprobs": np.array([-1, 0, 0, -2], np.float32),
        "versions": (span(0, 1), span(3, 4)),
        "temperature": 1.0,
        "reward": 1.0,
        "reward_parts": {"correct": 1.0},
        "tool_calls": (ToolCall(code="1", output="1", outcome=Outcome.EXITED, success=True, start=1, seconds=0.1),),
        "finish_reason": FinishReason.STOP,
        "actor": "intruder",
        "seed": 0,
        "issued_at": 0.0,
        "started_at": 0.0,
        "first_token_at": 0.0,
        "published_at": 0.0,
    }
    return fields | changes


def span(start: int, end: int, n: int = 0) -> VersionSpan:
    return VersionSpan(version=WeightVersion(epoch=0, n=n), start=start, end=end)


def packed(fields: dict[str, Any], version: int = 1) -> bytes:
    """As a sender that checks nothing would send it."""
    return msgpack.packb(["Trajectory", version, fields], default=_pack)


WHOLE = packed(good())
BAD = {
    "empty": (b"", "msgpack"),
    "truncated": (WHOLE[:-7], "msgpack"),
    "truncated to its head": (WHOLE[:40], "msgpack"),
    "with more behind it": (WHOLE + b"\x00", "msgpack"),
    "of another kind": (WHOLE.replace(b"Trajectory", b"Tragectory"), "Tragectory"),
    "of another schema": (packed(good(), version=2), "schema version 2"),
    "mask shorter than the response": (packed(good(loss_mask=np.ones(3, np.uint8))), "lengths"),
    "fewer log-probabilities": (packed(good(logprobs=np.zeros(3, np.float32))), "lengths"),
    "fewer tokens": (packed(good(tokens=np.arange(5, dtype=np.int32))), "lengths"),
    "no response": (
        packed(
            good(tokens=np.arange(2, dtype=np.int32), loss_mask=np.ones(0, np.uint8), logprobs=np.ones(0, np.float32))
        ),
        "lengths",
    ),
    "prompt as long as everything": (packed(good(prompt_length=6)), "lengths"),
    "mask of other values": (packed(good(loss_mask=np.array([1, 2, 0, 1], np.uint8))), "0 or 1"),
    "nothing sampled": (packed(good(loss_mask=np.zeros(4, np.uint8))), "at least one"),
    "positive log-probability": (packed(good(logprobs=np.array([1, 0, 0, -1], np.float32))), "not be positive"),
    "negative token": (packed(good(tokens=np.array([0, 1, 2, 3, 4, -1], np.int32))), "negative"),
    "tokens that are fractions": (packed(good(tokens=np.arange(6, dtype=np.float32))), "<i4"),
    "tokens as a list": (packed(good(tokens=list(range(6)))), "<i4"),
    "tokens of an unknown type": (packed(good(tokens=msgpack.ExtType(9, bytes(24)))), "extension type 9"),
    "a token and a half": (packed(good(tokens=msgpack.ExtType(1, bytes(22)))), "multiple"),
    "NaN reward": (packed(good(reward=float("nan"))), "finite"),
    "infinite part of the reward": (packed(good(reward_parts={"correct": float("inf")})), "finite"),
    "NaN temperature": (packed(good(temperature=float("nan"))), "temperature"),
    "infinite temperature": (packed(good(temperature=float("inf"))), "finite"),
    "no temperature": (packed(good(temperature=0.0)), "greater than 0"),
    "spans with a hole": (packed(good(versions=(span(0, 1),))), "no version"),
    "spans that overlap": (packed(good(versions=(span(0, 3), span(2, 4)))), "ordered"),
    "spans in disorder": (packed(good(versions=(span(0, 1), span(3, 4), span(1, 2)))), "ordered"),
    "an empty span": (packed(good(versions=(span(0, 1), span(2, 2), span(3, 4)))), "not empty"),
    "a span past the end": (packed(good(versions=(span(0, 5),))), "inside"),
    "no spans": (packed(good(versions=())), "no version"),
    "ticket 0": (packed(good(ticket=0)), "ticket"),
    "a ticket that is a word": (packed(good(ticket="1")), "ticket"),
    "an unknown field": (packed(good(secret=1)), "secret"),
    "an unknown end": (packed(good(finish_reason="tired")), "finish_reason"),
}
"""Refused by whoever decodes them."""


def unusable(run: str) -> dict[str, tuple[bytes, str]]:
    """Refused by the learner of `run`."""
    return {
        "from another run": (packed(good(run="elsewhere")), "run 'elsewhere'"),
        "from no run": (packed(good()), "run ''"),
        "a failure from another run": (
            encode(Failure(ticket=1, group=0, reason="r", attempts=1, actor="a", published_at=0.0, run="elsewhere")),
            "run 'elsewhere'",
        ),
        "a token that the model does not have": (
            packed(good(run=run, tokens=np.array([0, 1, 2, 3, 4, 2**31 - 1], np.int32))),
            "token id 2147483647",
        ),
        "at another temperature": (packed(good(run=run, temperature=0.123)), "temperature 0.123"),
        "a longer response": (
            packed(
                good(
                    run=run,
                    tokens=np.ones(100_002, np.int32),
                    loss_mask=np.ones(100_000, np.uint8),
                    logprobs=np.zeros(100_000, np.float32),
                    versions=(span(0, 100_000),),
                )
            ),
            "100000 response tokens",
        ),
    }

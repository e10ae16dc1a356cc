"""The message codec: every message comes back as it went, and no bytes raise anything but MessageError."""

from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from bus.codec import ARRAYS, Float32Array, Message, MessageError, decode, encode
from bus.messages import Failure, Ticket, Trajectory
from configs.schema import RolloutConfig
from learner.tickets.result_log import require_usable
from tests.bad_results import BAD, good, packed, unusable
from tests.messages import KINDS, messages, trajectories

LIMITS = RolloutConfig(max_prompt_tokens=2, max_response_tokens=4)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and bool(np.array_equal(one, other))
    if isinstance(one, BaseModel):
        return type(one) is type(other) and all(
            same(getattr(one, name), getattr(other, name)) for name in type(one).model_fields
        )
    return bool(one == other)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_message_comes_back_as_it_went(kind: type[Message]):
    @settings(max_examples=25, deadline=None)
    @given(messages(kind))
    def check(message: Message) -> None:
        assert same(decode(encode(message), kind), message)

    check()


EXTENSIONS = st.builds(msgpack.ExtType, st.integers(0, 127) | st.sampled_from(sorted(ARRAYS)), st.binary(max_size=24))
LEAVES = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=8)
    | st.binary(max_size=8) | EXTENSIONS
)  # fmt: skip
OBJECTS = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def unharmed(data: bytes, *kinds: type[Message]) -> Message | None:
    """The message, or None where it was refused as it should be."""
    try:
        message = decode(data, *kinds)
    except MessageError:
        return None
    assert type(message) in kinds
    return message


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200) | OBJECTS.map(msgpack.packb))
def test_bytes_that_are_no_message_are_refused(data: bytes):
    unharmed(data, *KINDS)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(KINDS), OBJECTS, st.data())
def test_fields_of_any_type_are_taken_or_refused(kind: type[Message], value: Any, data: st.DataObject):
    fields = {name: data.draw(OBJECTS) for name in kind.model_fields} if data.draw(st.booleans()) else value
    unharmed(msgpack.packb([kind.__name__, 1, fields]), kind)
    unharmed(msgpack.packb([value, value, fields]), kind)


@settings(max_examples=100, deadline=None)
@given(trajectories(), st.data())
def test_a_trajectory_with_one_field_changed_is_taken_or_refused(trajectory: Trajectory, data: st.DataObject):
    name, version, fields = msgpack.unpackb(encode(trajectory))
    fields[data.draw(st.sampled_from(sorted(fields)))] = data.draw(OBJECTS)
    unharmed(msgpack.packb([name, version, fields]), Trajectory)


@settings(max_examples=100, deadline=None)
@given(trajectories() | messages(Ticket), st.data())
def test_damaged_bytes_are_taken_or_refused(message: Message, data: st.DataObject):
    damaged = bytearray(encode(message))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    unharmed(bytes(damaged[: data.draw(st.integers(0, len(damaged)))]), type(message))


def test_deep_nesting_is_refused():
    for depth in (300, 2000):
        assert unharmed(b"\x91" * depth + b"\x01", Failure) is None
        nested = b"\x93" + msgpack.packb("Failure") + b"\x01" + b"\x81\xa6reason" + b"\x91" * depth + b"\x01"
        assert unharmed(nested, Failure) is None


def test_the_trajectory_that_the_bad_ones_are_made_from_is_good():
    assert decode(packed(good()), Trajectory).response_length == 4


@pytest.mark.parametrize("name", BAD)
def test_a_bad_trajectory_is_refused_with_the_reason(name: str):
    data, reason = BAD[name]
    with pytest.raises(MessageError, match=reason):
        decode(data, Trajectory, Failure)


@pytest.mark.parametrize("name", unusable("here"))
def test_a_result_that_is_no_use_to_the_run_is_refused_with_the_reason(name: str):
    data, reason = unusable("here")[name]
    with pytest.raises(MessageError, match=reason):
        require_usable(decode(data, Trajectory, Failure), "here", LIMITS, 6)


def test_a_result_of_the_run_is_taken():
    require_usable(decode(packed(good(run="here")), Trajectory), "here", LIMITS, 6)
    failure = Failure(ticket=1, group=0, reason="r", attempts=1, actor="a", published_at=0.0, run="here")
    require_usable(failure, "here", LIMITS, 6)


def test_what_cannot_travel_is_refused_by_its_sender():
    class Odd(Message):
        values: Float32Array | Any

    with pytest.raises(TypeError, match="float64"):
        encode(Odd.model_construct(values=np.zeros(2, np.float64)))
    with pytest.raises(TypeError, match="2 dimensions"):
        encode(Odd.model_construct(values=np.zeros((2, 2), np.float32)))
    with pytest.raises(TypeError, match="object"):
        encode(Odd.model_construct(values=object()))

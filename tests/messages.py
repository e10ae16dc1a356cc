"""Strategies for messages of every kind: whatever their fields' types and bounds allow."""

import enum
import types
import typing
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pydantic import BaseModel
from pydantic.fields import FieldInfo

import bus.messages
from bus.codec import Message
from bus.messages import RESERVED, Trajectory, VersionSpan, WeightVersion

KINDS = tuple(
    kind for kind in vars(bus.messages).values() if isinstance(kind, type) and issubclass(kind, Message)
    and kind is not Message
)  # fmt: skip


def values(annotation: Any, metadata: list[Any]) -> st.SearchStrategy[Any]:
    """Returns values of a field by its type and bounds."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return values(inner[0], [*metadata, *inner[1:]])
    if origin in (types.UnionType, typing.Union):
        return st.one_of(*(values(option, metadata) for option in inner))
    if origin is tuple:
        return st.lists(values(inner[0], []), max_size=3).map(tuple)
    if origin is dict:
        keys = values(inner[0], []).filter(lambda key: key not in RESERVED)
        return st.dictionaries(keys, values(inner[1], []), max_size=3)
    bounds = _bounds(metadata)
    if annotation is bool:
        return st.booleans()
    if annotation is int:
        least = bounds.get("ge", bounds["gt"] + 1 if "gt" in bounds else -(2**63))
        return st.integers(least, bounds.get("le", bounds["lt"] - 1 if "lt" in bounds else 2**63 - 1))
    if annotation is float:
        return st.floats(
            bounds.get("ge", bounds.get("gt")),
            bounds.get("le"),
            exclude_min="gt" in bounds,
            allow_nan=False,
            allow_infinity=False,
        )
    if annotation is type(None):
        return st.none()
    if annotation is bytes:
        return st.binary(max_size=64)
    if annotation is str:
        if "pattern" in bounds:
            # Without its ends: for Python `$` also matches before a last line break.
            return st.from_regex(bounds["pattern"].removeprefix("^").removesuffix("$"), fullmatch=True)
        return st.text(min_size=bounds.get("min_length", 0), max_size=min(bounds.get("max_length", 40), 40))
    if issubclass(annotation, enum.Enum):
        return st.sampled_from(list(annotation))
    if issubclass(annotation, Message):
        return messages(annotation)
    assert issubclass(annotation, BaseModel), annotation
    return st.just(annotation())


def _bounds(metadata: list[Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for item in metadata:
        if isinstance(item, FieldInfo):
            found |= _bounds(item.metadata)
        for name in ("gt", "ge", "lt", "le", "min_length", "max_length", "pattern"):
            if getattr(item, name, None) is not None:
                found[name] = getattr(item, name)
    return found


def messages(kind: type[Message]) -> st.SearchStrategy[Any]:
    """Returns messages of one kind."""
    if kind is Trajectory:
        return trajectories()
    fields = {name: values(field.annotation, field.metadata) for name, field in kind.model_fields.items()}
    return st.builds(kind, **fields)


@st.composite
def trajectories(draw: st.DrawFn, **given: Any) -> Trajectory:
    """Draws trajectories; spans begin where the one before ended, or after inserted tokens. `given` fields are as given."""
    prompt, response = draw(st.integers(1, 20)), draw(st.integers(1, 40))
    mask = draw(arrays.arrays(np.uint8, response, elements=st.integers(0, 1)))
    mask[draw(st.integers(0, response - 1))] = 1
    ends = [*sorted(draw(st.sets(st.integers(1, response), max_size=3)) - {response}), response]
    spans = [
        VersionSpan(version=draw(messages(WeightVersion)), start=start, end=end)
        for start, end in zip([0, *ends], ends, strict=False)
    ]
    plain = {
        name: draw(values(field.annotation, field.metadata))
        for name, field in Trajectory.model_fields.items()
        if name not in ("tokens", "prompt_length", "loss_mask", "logprobs", "versions", *given)
    }
    plain["tool_calls"] = tuple(
        call.model_copy(update={"start": min(call.start, response)}) for call in plain["tool_calls"]
    )
    return Trajectory(
        **plain,
        **given,
        tokens=draw(arrays.arrays(np.int32, prompt + response, elements=st.integers(0, 2**31 - 1))),
        prompt_length=prompt,
        loss_mask=mask,
        logprobs=draw(arrays.arrays(np.float32, response, elements=st.floats(-(2.0**127), 0, width=32))),
        versions=tuple(span for span in spans if mask[span.start : span.end].any()),
    )

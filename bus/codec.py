"""Packing of typed messages: msgpack, arrays as raw little-endian buffers, nothing that could run code.

A packed message is the msgpack array `[kind, schema version, fields]`. `decode` either returns a validated message of one
of the expected kinds or raises `MessageError`; it has no other outcome, whatever the bytes are.
"""

from typing import Annotated, Any, ClassVar, overload

import msgpack
import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

ARRAYS: dict[int, np.dtype[Any]] = {1: np.dtype("<i4"), 2: np.dtype("<f4"), 3: np.dtype("|u1"), 4: np.dtype("<f2")}
"""An array is a msgpack extension: its code says the dtype, its data are the elements, in one dimension."""
_CODES = {dtype: code for code, dtype in ARRAYS.items()}


class MessageError(ValueError):
    """The bytes are not a valid message of an expected kind; the text says why."""


class Message(BaseModel):
    """Base of all messages: immutable, strictly typed, no unknown fields, finite; `VERSION` is the schema's version."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, arbitrary_types_allowed=True, allow_inf_nan=False
    )
    VERSION: ClassVar[int] = 1


def _array_of(dtype: str) -> BeforeValidator:
    wanted = np.dtype(dtype)

    def check(value: Any) -> np.ndarray:
        if not isinstance(value, np.ndarray) or value.ndim != 1 or value.dtype != wanted:
            raise ValueError(f"not a one-dimensional array of {dtype}")
        return value

    return BeforeValidator(check)


Int32Array = Annotated[np.ndarray, _array_of("<i4")]
Float32Array = Annotated[np.ndarray, _array_of("<f4")]
Float16Array = Annotated[np.ndarray, _array_of("<f2")]
BoolArray = Annotated[np.ndarray, _array_of("|u1")]
"""One byte an element, 0 or 1."""


def _pack(value: Any) -> msgpack.ExtType | dict[str, Any]:
    """Returns as plain types what msgpack cannot pack by itself: arrays, messages and configurations inside a message."""
    if isinstance(value, np.ndarray):
        code = _CODES.get(value.dtype)
        if code is None or value.ndim != 1:
            raise TypeError(f"arrays of {value.dtype} in {value.ndim} dimensions do not travel over the bus")
        return msgpack.ExtType(code, value.tobytes())
    # Not isinstance(value, BaseModel), which is a call in Python, several times the price.
    if hasattr(value, "__pydantic_fields_set__"):
        return vars(value)
    raise TypeError(f"{type(value).__name__} does not travel over the bus")


def _unpack_array(code: int, data: bytes) -> np.ndarray:
    dtype = ARRAYS.get(code)
    if dtype is None:
        raise ValueError(f"unknown extension type {code}")
    return np.frombuffer(data, dtype=dtype)


def encode(message: Message) -> bytes:
    """Packs `message`. Raises TypeError for a field of a type that does not travel."""
    return msgpack.packb([type(message).__name__, message.VERSION, vars(message)], default=_pack)


@overload
def decode[A: Message](data: bytes, kind: type[A], /) -> A: ...


@overload
def decode[A: Message, B: Message](data: bytes, kind: type[A], other: type[B], /) -> A | B: ...


def decode(data: bytes, *kinds: type[Message]) -> Message:
    """Unpacks a message of one of `kinds`. Raises MessageError for anything else."""
    try:
        envelope = msgpack.unpackb(data, ext_hook=_unpack_array, use_list=False)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise MessageError(f"not msgpack: {error}") from error
    if not isinstance(envelope, tuple) or len(envelope) != 3:
        raise MessageError("not an envelope of kind, version and fields")
    name, version, fields = envelope
    if not isinstance(name, str) or not isinstance(version, int):
        raise MessageError("an envelope without a kind or version")
    for kind in kinds:
        if kind.__name__ == name:
            break
    else:
        raise MessageError(f"kind {name[:40]!r} where {' or '.join(k.__name__ for k in kinds)} is expected")
    if version != kind.VERSION:
        raise MessageError(f"{name} of schema version {version}, this side has {kind.VERSION}")
    if not isinstance(fields, dict):
        raise MessageError(f"{name} without fields")
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part)[:40] for part in first["loc"]) or "message"
        raise MessageError(f"{name}: {where[:200]}: {first['msg'][:200]} ({error.error_count()} errors)") from error

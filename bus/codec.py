"""Packing of typed messages: msgpack, arrays as raw little-endian buffers, nothing that could run code.

A packed message is the msgpack array `[kind, schema version, fields]`. `decode` either returns a validated message of one
of the expected kinds or raises `MessageError`; it has no other outcome, whatever the bytes are.
"""

from typing import Annotated, Any, ClassVar, overload

import msgpack
import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

ARRAY_EXTENSION = 1
ARRAY_DTYPES = ("<i4", "<i8", "<f4", "<f8", "|u1")


class MessageError(ValueError):
    """The bytes are not a valid message of an expected kind; the text says why."""


class Message(BaseModel):
    """Base of all messages: immutable, strictly typed, no unknown fields; `VERSION` is the schema's version."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, arbitrary_types_allowed=True)
    VERSION: ClassVar[int] = 1


def _array_of(dtype: str) -> BeforeValidator:
    def check(value: Any) -> np.ndarray:
        if not isinstance(value, np.ndarray) or value.ndim != 1 or value.dtype != np.dtype(dtype):
            raise ValueError(f"not a one-dimensional array of {dtype}")
        return value

    return BeforeValidator(check)


Int32Array = Annotated[np.ndarray, _array_of("<i4")]
Float32Array = Annotated[np.ndarray, _array_of("<f4")]
BoolArray = Annotated[np.ndarray, _array_of("|u1")]
"""One byte an element, 0 or 1."""


def _pack_array(value: Any) -> msgpack.ExtType:
    if not isinstance(value, np.ndarray):
        raise TypeError(f"{type(value).__name__} does not travel over the bus")
    array = np.ascontiguousarray(value)
    array = array.astype(array.dtype.newbyteorder("<"), copy=False)
    if array.dtype.str not in ARRAY_DTYPES:
        raise TypeError(f"arrays of {array.dtype} do not travel over the bus")
    return msgpack.ExtType(ARRAY_EXTENSION, msgpack.packb([array.dtype.str, list(array.shape), array.tobytes()]))


def _unpack_array(code: int, data: bytes) -> np.ndarray:
    if code != ARRAY_EXTENSION:
        raise ValueError(f"unknown extension type {code}")
    dtype, shape, raw = msgpack.unpackb(data)
    if dtype not in ARRAY_DTYPES:
        raise ValueError(f"arrays of {dtype!r} are not allowed")
    return np.frombuffer(raw, dtype=dtype).reshape(shape)


def encode(message: Message) -> bytes:
    """Packs `message`. Raises TypeError for a field of a type that does not travel."""
    fields = message.model_dump()
    return msgpack.packb([type(message).__name__, message.VERSION, fields], default=_pack_array)


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
    kind = next((kind for kind in kinds if kind.__name__ == name), None)
    if kind is None:
        raise MessageError(f"kind {str(name)[:40]!r} where {' or '.join(k.__name__ for k in kinds)} is expected")
    if version != kind.VERSION:
        raise MessageError(f"{name} of schema version {str(version)[:20]}, this side has {kind.VERSION}")
    if not isinstance(fields, dict):
        raise MessageError(f"{name} without fields")
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "message"
        raise MessageError(f"{name}: {where}: {first['msg']} ({error.error_count()} errors)") from error

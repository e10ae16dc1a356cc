"""Makes the messages of the weight log: the chunks of a version, and the manifest that closes it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

from bus.codec import MessageError, decode, encode
from bus.messages import Manifest, ManifestKind, Segment, TensorEntry, WeightChunk, WeightVersion
from weights.codec import WeightState


@dataclass(frozen=True)
class Chunks:
    """Holds what a manifest says of its chunks."""

    writing: str = ""
    first: int = 0
    count: int = 0
    nbytes: int = 0


@dataclass(frozen=True)
class Weights:
    """Holds what a manifest says of the weights themselves."""

    layout: str
    nbytes: int
    checksum: str

    @classmethod
    def of(cls, weights: WeightState | Manifest) -> Self:
        """Returns the same of a state or of a manifest that is in the log."""
        if isinstance(weights, Manifest):
            return cls(weights.layout, weights.nbytes, weights.checksum)
        return cls(weights.layout.digest, weights.layout.nbytes, weights.checksum)


def pack_chunks(segments: Iterator[Segment], size: int) -> Iterator[bytes]:
    """Packs segments into messages of about `size` bytes."""
    index = filled = 0
    members: list[Segment] = []
    for segment in segments:
        members.append(segment)
        filled += len(segment.data)
        if filled >= size:
            yield encode(WeightChunk(index=index, segments=tuple(members)))
            index, filled, members = index + 1, 0, []
    if members:
        yield encode(WeightChunk(index=index, segments=tuple(members)))


def make_manifest(
    version: WeightVersion,
    weights: Weights,
    written: Chunks,
    now: float,
    *,
    parent: Manifest | None = None,
    tensors: tuple[TensorEntry, ...] = (),
    location: str | None = None,
) -> Manifest:
    """Returns the manifest of a delta to `parent` or, without one, of a snapshot that holds `tensors`."""
    return Manifest(
        version=version,
        kind=ManifestKind.SNAPSHOT if parent is None else ManifestKind.DELTA,
        parent=None if parent is None else parent.version,
        parent_checksum="" if parent is None else parent.checksum,
        layout=weights.layout,
        tensors=tensors,
        writing=written.writing,
        first_chunk=written.first,
        chunks=written.count,
        location=location,
        nbytes=weights.nbytes,
        wire_bytes=written.nbytes,
        checksum=weights.checksum,
        published_at=now,
    )


def epoch_of(data: bytes) -> int:
    """Returns the epoch of a manifest; -1 for what is none."""
    try:
        return decode(data, Manifest).version.epoch
    except MessageError:
        return -1

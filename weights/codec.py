"""The weight log's codec: one state of the policy's weights as bytes, and exact differences between two of them.

A state is one contiguous image of all tensors, cut into segments of at most `SEGMENT_BYTES` that never span two tensors.
A delta holds, for each segment that changed, the exclusive or of its old and new bits, compressed; at reinforcement
learning's step sizes nearly all of those bits are 0 (0.4 % of bfloat16 weights change at a learning rate of 1e-6). A segment
whose delta is no smaller than itself goes full; one that did not change (frozen weights) does not go at all. Bits are bits:
every dtype, NaN and -0.0 come through unchanged.

Checksums cost no pass of their own. Each segment is hashed while it lies in the processor's cache, just compared or just
written, and the checksum of a state is the hash of its layout and of all segments' hashes: 8 bytes a MiB.

Cost on one core, with the number of weights: hashing 12 GB/s, comparing and compressing 2 GB/s at 1e-6 (0.1 GB/s where every
seventh weight changes), on both sides.
"""

from collections.abc import Iterator, Sequence
from typing import Self

import numpy as np
import xxhash
import zstandard

from bus.messages import Encoding, Segment, TensorEntry

SEGMENT_BYTES = 2**20
ALIGNMENT = 64
"""Tensors begin at multiples of this many bytes, so that readers can view them in place."""
LEVEL = 1


class WeightsError(RuntimeError):
    """A version could not be written, read or applied; the text says why."""


class Layout:
    """Says which tensor lies where, and where its segments begin and end."""

    def __init__(self, tensors: Sequence[TensorEntry]) -> None:
        """Raises WeightsError where tensors overlap or are out of order."""
        self.tensors = tuple(tensors)
        self.bounds: list[tuple[int, int]] = []
        end = 0
        for tensor in tensors:
            if tensor.offset < end:
                raise WeightsError(f"tensor {tensor.name} begins at byte {tensor.offset}, inside the one before it")
            end = tensor.offset + tensor.nbytes
            self.bounds += [(at, min(at + SEGMENT_BYTES, end)) for at in range(tensor.offset, end, SEGMENT_BYTES)]
        self.nbytes = end
        self.digest = xxhash.xxh3_128_hexdigest("\n".join(repr(tensor) for tensor in tensors).encode())

    @classmethod
    def of(cls, tensors: Sequence[tuple[str, str, tuple[int, ...], int]]) -> Self:
        """Places tensors, given as (name, dtype, shape, bytes), one after another."""
        entries, offset = [], 0
        for name, dtype, shape, nbytes in tensors:
            entries.append(TensorEntry(name=name, dtype=dtype, shape=shape, offset=offset, nbytes=nbytes))
            offset += -(-nbytes // ALIGNMENT) * ALIGNMENT
        return cls(entries)


class WeightState:
    """An image, its segments' digests, and what turns one state into another."""

    def __init__(self, layout: Layout, memory: memoryview | None = None) -> None:
        """Takes `memory` (at least `layout.nbytes` long) for its image, or makes its own; all bits are 0 at first.

        Raises ValueError where `memory` is too small.
        """
        self.layout = layout
        self.image = np.zeros(layout.nbytes, np.uint8) if memory is None else np.frombuffer(memory, np.uint8)
        if len(self.image) < layout.nbytes:
            raise ValueError(f"{len(self.image)} bytes of memory for {layout.nbytes} bytes of weights")
        self._digests = np.zeros(len(layout.bounds), "<u8")
        self._decompressor = zstandard.ZstdDecompressor()

    @property
    def checksum(self) -> str:
        """Returns xxh3-128 over the layout and the digests of all segments, hexadecimal."""
        return xxhash.xxh3_128_hexdigest(self.layout.digest.encode() + self._digests.tobytes())

    def full(self) -> Iterator[Segment]:
        """Yields all segments as they are."""
        for number, (start, end) in enumerate(self.layout.bounds):
            yield self._segment(number, Encoding.FULL, self.image[start:end].tobytes())

    def changes(self, after: "WeightState") -> Iterator[Segment]:
        """Yields what turns this state into `after`, which has the same layout.

        Digests of `after` are brought up to date on the way, so its checksum holds once this is exhausted.
        """
        compressor = zstandard.ZstdCompressor(level=LEVEL)
        difference = np.empty(SEGMENT_BYTES, np.uint8)
        for number, (start, end) in enumerate(self.layout.bounds):
            new = after.image[start:end]
            after._digests[number] = xxhash.xxh3_64_intdigest(new)
            xor = np.bitwise_xor(self.image[start:end], new, out=difference[: end - start])
            if not xor.any():
                continue
            data = compressor.compress(xor.data)
            if len(data) < end - start:
                yield after._segment(number, Encoding.DELTA, data)
            else:
                yield after._segment(number, Encoding.FULL, new.tobytes())

    def apply(self, segment: Segment) -> None:
        """Writes one segment's new bits. Raises WeightsError where they are not what the sender had."""
        if segment.number >= len(self.layout.bounds):
            raise WeightsError(f"segment {segment.number} of {len(self.layout.bounds)}")
        start, end = self.layout.bounds[segment.number]
        target = self.image[start:end]
        data = segment.data
        if segment.encoding is Encoding.DELTA:
            try:
                # A damaged header must not decide how much memory is taken.
                if zstandard.get_frame_parameters(data).content_size == end - start:
                    data = self._decompressor.decompress(data)
            except zstandard.ZstdError as error:
                raise WeightsError(f"segment {segment.number} does not decompress: {error}") from error
        if len(data) != end - start:
            raise WeightsError(f"segment {segment.number} does not hold {end - start} bytes")
        bits = np.frombuffer(data, np.uint8)
        if segment.encoding is Encoding.DELTA:
            np.bitwise_xor(target, bits, out=target)
        else:
            target[:] = bits
        self._digests[segment.number] = digest = xxhash.xxh3_64_intdigest(target)
        if int(digest) != segment.digest:
            raise WeightsError(f"segment {segment.number} has another digest than its sender computed")

    def write(self, at: int, data: bytes) -> None:
        """Puts raw bytes of the image in place, as read from a snapshot file; `digest_all` comes after the last."""
        self.image[at : at + len(data)] = np.frombuffer(data, np.uint8)

    def digest_all(self) -> None:
        """Hashes every segment anew."""
        for number, (start, end) in enumerate(self.layout.bounds):
            self._digests[number] = xxhash.xxh3_64_intdigest(self.image[start:end])

    def _segment(self, number: int, encoding: Encoding, data: bytes) -> Segment:
        return Segment(number=number, encoding=encoding, data=data, digest=int(self._digests[number]))

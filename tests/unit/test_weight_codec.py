"""The codec of the weight log: whatever the bits are, they come out as they went in, or it says so."""

import itertools

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from bus.codec import MessageError, decode, encode
from bus.messages import Encoding, Segment, TensorEntry, WeightChunk
from weights.codec import ALIGNMENT, SEGMENT_BYTES, Layout, WeightsError, WeightState

ITEM_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4, "uint8": 1}
NAN, NEGATIVE_NAN, NEGATIVE_ZERO, ZERO = b"\x00\x00\xc0\x7f", b"\x01\x00\xc0\xff", b"\x00\x00\x00\x80", b"\x00" * 4


def layout_of(*tensors: tuple[str, tuple[int, ...]]) -> Layout:
    return Layout.of(
        [
            (f"t{number}", dtype, shape, int(np.prod(shape, dtype=int)) * ITEM_BYTES[dtype])
            for number, (dtype, shape) in enumerate(tensors)
        ]
    )


def filled(layout: Layout, data: bytes) -> WeightState:
    state = WeightState(layout)
    pattern = np.frombuffer((data * (layout.nbytes // len(data) + 1))[: layout.nbytes], np.uint8)
    for start, end in layout.bounds:  # and nothing between the tensors
        state.image[start:end] = pattern[start:end]
    state.digest_all()
    return state


def random_state(layout: Layout, seed: int) -> WeightState:
    return filled(layout, np.random.default_rng(seed).bytes(max(layout.nbytes, 1)))


def travelled(segments) -> list[Segment]:
    """The segments as a reader gets them."""
    return list(decode(encode(WeightChunk(index=0, segments=tuple(segments))), WeightChunk).segments)


def copy_of(state: WeightState) -> WeightState:
    return filled(state.layout, state.image.tobytes() or b"\0")


tensors = st.lists(
    st.tuples(st.sampled_from(sorted(ITEM_BYTES)), st.lists(st.integers(0, 5), max_size=3).map(tuple)), max_size=6
)


@settings(max_examples=100, deadline=None)
@given(tensors=tensors, data=st.data())
def test_any_state_follows_from_any_other(tensors, data):
    layout = layout_of(*tensors)
    before, after = (filled(layout, data.draw(st.binary(min_size=1, max_size=64))) for _ in range(2))
    reader = copy_of(before)
    for segment in travelled(before.changes(after)):
        reader.apply(segment)
    assert reader.image.tobytes() == after.image.tobytes()
    assert reader.checksum == after.checksum
    joined = WeightState(layout)
    for segment in travelled(after.full()):
        joined.apply(segment)
    assert joined.image.tobytes() == after.image.tobytes()
    assert joined.checksum == after.checksum


@pytest.mark.parametrize(("old", "new"), list(itertools.permutations([NAN, NEGATIVE_NAN, NEGATIVE_ZERO, ZERO], 2)))
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_bit_patterns_that_compare_equal_or_never_are_told_apart(dtype, old, new):
    layout = layout_of((dtype, (64,)))
    before, after = filled(layout, old), filled(layout, new)
    reader = copy_of(before)
    segments = travelled(before.changes(after))
    assert segments
    for segment in segments:
        reader.apply(segment)
    assert reader.image.tobytes() == after.image.tobytes()


def test_scalars_and_empty_tensors_have_their_places():
    layout = layout_of(("float32", ()), ("bfloat16", (0, 7)), ("bfloat16", (3,)))
    assert [entry.nbytes for entry in layout.tensors] == [4, 0, 6]
    assert [entry.offset for entry in layout.tensors] == [0, ALIGNMENT, ALIGNMENT]
    assert layout.bounds == [(0, 4), (ALIGNMENT, ALIGNMENT + 6)]
    assert WeightState(layout_of()).checksum == WeightState(layout_of()).checksum


def test_what_did_not_change_does_not_travel_and_what_changed_little_travels_small():
    values = 3 * SEGMENT_BYTES // 2 // 2 * 2
    layout = layout_of(("bfloat16", (values,)), ("bfloat16", (values,)), ("bfloat16", (100,)))
    before = random_state(layout, seed=1)
    after = copy_of(before)
    # One weight in 250 of the second tensor, by its last bit, as a small step does it.
    start = layout.tensors[1].offset
    after.image[start : start + 2 * values : 500] ^= 1
    segments = list(before.changes(after))
    bounds = [layout.bounds[segment.number] for segment in segments]
    assert all(start <= first and last <= start + 2 * values for first, last in bounds)
    assert sum(last - first for first, last in bounds) == 2 * values
    assert all(segment.encoding is Encoding.DELTA for segment in segments)
    assert sum(len(segment.data) for segment in segments) < 2 * values / 100
    assert list(before.changes(copy_of(before))) == []


def test_a_delta_that_does_not_pay_goes_full():
    layout = layout_of(("bfloat16", (1000,)))
    before, after = random_state(layout, 1), random_state(layout, 2)
    [segment] = before.changes(after)
    assert segment.encoding is Encoding.FULL
    assert segment.data == after.image.tobytes()


def test_segments_never_span_two_tensors():
    layout = layout_of(("uint8", (SEGMENT_BYTES + 1,)), ("uint8", (5,)))
    begin = layout.tensors[1].offset
    assert layout.bounds == [(0, SEGMENT_BYTES), (SEGMENT_BYTES, SEGMENT_BYTES + 1), (begin, begin + 5)]


def test_the_checksum_knows_every_bit_and_the_layout():
    layout = layout_of(("bfloat16", (500,)), ("float32", (20, 5)))
    state = random_state(layout, 3)
    seen = {state.checksum}
    for place in (0, 999, layout.tensors[1].offset, layout.nbytes - 1):
        other = copy_of(state)
        other.image[place] ^= 64
        other.digest_all()
        seen.add(other.checksum)
    renamed = Layout([entry.model_copy(update={"name": "x" + entry.name}) for entry in layout.tensors])
    seen.add(filled(renamed, state.image.tobytes()).checksum)
    assert len(seen) == 6


def test_overlapping_tensors_are_refused():
    entry = TensorEntry(name="a", dtype="uint8", shape=(10,), offset=0, nbytes=10)
    with pytest.raises(WeightsError, match="inside the one before"):
        Layout([entry, entry.model_copy(update={"name": "b", "offset": 5})])


@settings(max_examples=200, deadline=None)
@given(place=st.integers(0, 10**6), bit=st.integers(0, 7), full=st.booleans())
def test_a_flipped_bit_is_never_taken_for_weights(place, bit, full):
    layout = layout_of(("bfloat16", (300,)), ("float32", (7,)))
    before = random_state(layout, 1)
    after = copy_of(before)
    after.image[:300:40] ^= 3
    segments = list(before.changes(after)) if not full else list(after.full())
    after.digest_all()
    message = bytearray(encode(WeightChunk(index=0, segments=tuple(segments))))
    message[place % len(message)] ^= 1 << bit
    reader = copy_of(before)
    try:
        chunk = decode(bytes(message), WeightChunk)
        for segment in chunk.segments:
            reader.apply(segment)
    except (MessageError, WeightsError):
        return
    # What is left are bits that mean nothing, such as the chunk's own number: then the weights are right.
    assert (reader.image.tobytes() == after.image.tobytes()) == (reader.checksum == after.checksum)
    assert chunk.index != 0 or reader.checksum == after.checksum


def test_a_damaged_header_does_not_decide_how_much_memory_is_taken():
    layout = layout_of(("uint8", (64,)))
    # A zstd frame that announces 2^60 bytes.
    header = b"\x28\xb5\x2f\xfd" + b"\xe0" + (2**60).to_bytes(8, "little") + b"\x01\x00\x00"
    segment = Segment(number=0, encoding=Encoding.DELTA, data=header, digest=xxhash.xxh3_64_intdigest(b""))
    with pytest.raises(WeightsError, match="does not hold 64 bytes"):
        WeightState(layout).apply(segment)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"number": 7}, "segment 7 of 1"),
        ({"data": b"short"}, "does not hold"),
        ({"digest": 1}, "another digest"),
        ({"encoding": Encoding.DELTA}, "decompress"),
    ],
)
def test_a_segment_that_does_not_fit_is_named(changes, problem):
    layout = layout_of(("bfloat16", (100,)))
    [segment] = random_state(layout, 1).full()
    with pytest.raises(WeightsError, match=problem):
        WeightState(layout).apply(segment.model_copy(update=changes))


def test_too_little_memory_is_refused():
    layout = layout_of(("uint8", (64,)))
    with pytest.raises(ValueError, match="63 bytes of memory for 64"):
        WeightState(layout, memoryview(bytearray(63)))

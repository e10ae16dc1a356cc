"""The weight log over a real server, whatever happens to the messages between writer and follower."""

from collections.abc import Callable
from functools import partial

import pytest

from bus.codec import decode, encode
from bus.connection import Bus
from bus.messages import Manifest, WeightChunk
from bus.streams import create_streams
from tests.integration.weights.log import CONFIG, Learner, advanced, image_of, stored, until
from weights.follower import WeightFollower
from weights.log import newest, read_manifests
from weights.writer import WeightWriter


def flipped(data: bytes, place: int) -> bytes:
    changed = bytearray(data)
    changed[place % len(changed)] ^= 16
    return bytes(changed)


Fault = Callable[[list[tuple[str, bytes]], int], list[tuple[str, bytes]]]


def drop(log: list, at: int) -> list:
    return log[:at] + log[at + 1 :]


def duplicate(log: list, at: int) -> list:
    return log[: at + 1] + log[at:]


def swap(log: list, at: int) -> list:
    return [*log[:at], *reversed(log[at : at + 2]), *log[at + 2 :]]


def flip(log: list, at: int, place: int) -> list:
    return [*log[:at], (log[at][0], flipped(log[at][1], place)), *log[at + 1 :]]


FAULTS: dict[str, Fault] = {
    "dropped": drop,
    "duplicated": duplicate,
    "swapped": swap,
    "flipped at its begin": partial(flip, place=30),
    "flipped inside": partial(flip, place=-200),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_every_message_in_turn_damaged_and_the_follower_is_right_or_says_why_not(
    bus: Bus, bus_address, learner: Learner, fault: str
):
    """A log of a snapshot, three deltas and a later snapshot is written again with one message damaged, for each of them."""
    for n in range(5):
        await learner.publish(n, every=3)
    messages = [(message.subject or "", message.data or b"") for message in await stored(bus)]
    manifests = [at for at, (subject, _) in enumerate(messages) if subject == bus.names.manifests]
    assert len(messages) > 12
    newest_right = 0
    for at in range(len(messages)):
        await bus.js.delete_stream(bus.names.stream("WEIGHTS"))
        await create_streams(bus.js, bus.names, bus.config, lease_s=60)
        await rewrite(bus, FAULTS[fault](messages, at), messages)
        follower = WeightFollower(bus)
        asked = await requests_of(bus)
        manifest = await follower.advance(0.1)
        if manifest is None:
            # Nothing usable was left before the fault: it says so, and asks.
            await until(partial(bool, asked))
            assert follower.held is None
            continue
        assert image_of(follower) == learner.images[manifest.version.n]
        newest_right += manifest.version.n == 4
    # One message lost costs the newest version only where no snapshot and no other way leads to it.
    assert newest_right >= len(messages) - 4, (newest_right, len(messages), len(manifests))


async def rewrite(bus: Bus, log: list[tuple[str, bytes]], original: list[tuple[str, bytes]]) -> None:
    """Stores the messages; manifests name the places where their chunks lie now."""
    first: dict[str, int] = {}
    known = {data for _, data in original}
    for subject, data in log:
        if subject == bus.names.manifests and data in known:
            manifest = decode(data, Manifest)
            chunks = bus.names.chunks(str(manifest.version), manifest.kind, manifest.writing)
            sequence = first.get(chunks, 1 if manifest.chunks else 0)
            data = encode(manifest.model_copy(update={"first_chunk": sequence}))
        sequence = (await bus.js.publish(subject, data)).seq
        first.setdefault(subject, sequence)


async def requests_of(bus: Bus) -> list[bytes]:
    asked: list[bytes] = []

    async def note(message) -> None:
        asked.append(message.data)

    await bus.client.subscribe(bus.names.snapshot_requests, cb=note)
    await bus.client.flush()
    return asked


async def test_a_damaged_delta_is_passed_by_way_of_a_snapshot(bus: Bus, learner: Learner):
    follower = WeightFollower(bus)
    await learner.publish(0)
    await advanced(follower, learner, 0)
    asked = await requests_of(bus)
    await learner.publish(1, every=50)
    await bus.js.purge_stream(bus.names.stream("WEIGHTS"), subject=bus.names.chunks("0.1", "delta", "*"))
    assert await follower.advance(0.2) is None
    assert follower.fallbacks == 1
    assert image_of(follower) == learner.images[0], "it went back to what it can trust"
    await until(lambda: bool(asked))
    await learner.writer.snapshot()
    await advanced(follower, learner, 1)
    await learner.publish(2, every=50)
    await advanced(follower, learner, 2)


async def test_a_log_that_began_anew_is_followed_from_its_begin(bus: Bus, learner: Learner):
    follower = WeightFollower(bus)
    for n in range(6):
        await learner.publish(n, every=20)
    await advanced(follower, learner, 5)
    await bus.js.delete_stream(bus.names.stream("WEIGHTS"))
    await create_streams(bus.js, bus.names, bus.config, lease_s=60)
    other = Learner(bus)
    await other.writer.open()
    for n in range(2):
        await other.publish(n, seed=100 + n)
    await advanced(follower, other, 1)


async def test_a_lost_acknowledgement_of_a_manifest_is_no_deposal(bus: Bus, learner: Learner, monkeypatch):
    publish = bus.publish

    async def lossy(subject, message, headers=None, timeout_s=None):
        await publish(subject, message, headers)
        raise TimeoutError("the acknowledgement was lost")

    monkeypatch.setattr(bus, "publish", lossy)
    await learner.publish(0)
    monkeypatch.undo()
    await learner.publish(1, every=50)
    follower = WeightFollower(bus)
    await advanced(follower, learner, 1)
    logged = await read_manifests(bus, 1, (await newest(bus))[0])
    assert [str(manifest.version) for _, manifest in logged] == ["0.0", "0.1"]


async def test_chunks_that_were_sent_again_are_read_once(bus: Bus, learner: Learner, monkeypatch):
    acknowledged = learner.writer._stored
    calls = 0

    async def fails_once(acknowledgement):
        nonlocal calls
        calls += 1
        if calls == 2:
            raise TimeoutError("the acknowledgement was lost")
        return await acknowledged(acknowledgement)

    async def keep_everything() -> None:
        """Or it would take away the first attempt, which lies before the snapshot."""

    monkeypatch.setattr(learner.writer, "_stored", fails_once)
    monkeypatch.setattr(learner.writer, "_purge", keep_everything)
    await learner.publish(0)
    chunks = [m for m in await stored(bus) if m.subject != bus.names.manifests]
    indices = [decode(m.data or b"", WeightChunk).index for m in chunks]
    assert len(indices) > len(set(indices)), "the test sent nothing twice"
    await advanced(WeightFollower(bus), learner, 0)


@pytest.mark.parametrize("first", ["publish", "snapshot", "look"])
@pytest.mark.parametrize("lost", [2, None], ids=["its end", "everything"])
async def test_a_log_that_has_lost_messages_goes_on_with_a_snapshot_behind_them(
    bus: Bus, learner: Learner, lost: int | None, first: str
):
    """Whatever the writer does first finds it."""
    follower = WeightFollower(bus)
    for n in range(6):
        await learner.publish(n, every=50)
    await advanced(follower, learner, 5)
    stream = bus.names.stream("WEIGHTS")
    before = (await bus.js.stream_info(stream)).state
    kept = [await bus.js.get_msg(stream, seq) for seq in range(before.first_seq, before.last_seq + 1)]
    await bus.js.delete_stream(stream)
    await create_streams(bus.js, bus.names, bus.config, lease_s=60)
    for message in kept[: -lost if lost else 0]:
        await bus.js.publish(message.subject or "", message.data or b"")
    newest_version = 5
    if first == "publish":
        newest_version = 6
        await learner.publish(6, every=50)
    elif first == "snapshot":
        await learner.writer.snapshot()
    else:
        assert not await learner.writer.require_head()
    assert (await bus.js.stream_info(stream)).state.first_seq > before.last_seq
    await advanced(WeightFollower(bus), learner, newest_version)
    await learner.publish(7 if first == "publish" else 6, every=50)
    await advanced(follower, learner, 7 if first == "publish" else 6)
    assert await learner.writer.require_head()


async def test_epochs_go_on_where_the_log_has_lost_them(bus: Bus):
    writer = WeightWriter(bus, CONFIG)
    await writer.open(last_epoch=4)
    assert writer.epoch == 5

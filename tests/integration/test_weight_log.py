"""The weight log over a real server: writer and followers, whatever happens to the messages between them."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from nats.js.api import RawStreamMsg

from bus import weight_follower, weight_writer
from bus.codec import decode, encode
from bus.connection import Bus
from bus.messages import Manifest, ManifestKind, WeightChunk, WeightVersion
from bus.streams import create_streams
from bus.weight_codec import Layout, WeightsError, WeightState
from bus.weight_follower import WeightFollower
from bus.weight_log import newest, read_manifests
from bus.weight_writer import DeposedError, WeightWriter
from configs.bus import WeightsConfig

CONFIG = WeightsConfig(snapshot_every=4, chunk_bytes=64 * 1024)
LAYOUT = Layout.of(
    [
        ("embed", "bfloat16", (33_000,), 66_000),
        ("head", "bfloat16", (33_000,), 66_000),
        ("norm", "float32", (3,), 12),
        ("empty", "float16", (0,), 0),
    ]
)


def change(state: WeightState, seed: int, every: int = 1) -> None:
    """New bits for one weight in `every`."""
    generator = np.random.default_rng(seed)
    for start, end in LAYOUT.bounds:
        at = np.arange(start, end, every)
        state.image[at] ^= generator.integers(1, 256, len(at), dtype=np.uint8)


class Learner:
    """A writer and what it has published."""

    def __init__(self, bus: Bus, config: WeightsConfig = CONFIG) -> None:
        self.writer = WeightWriter(bus, config)
        self.image = bytes(LAYOUT.nbytes)
        self.images: dict[int, bytes] = {}

    async def publish(self, n: int, seed: int | None = None, every: int = 1):
        state = self.writer.room(LAYOUT)
        state.image[:] = np.frombuffer(self.image, np.uint8)
        change(state, n if seed is None else seed, every)
        self.image = self.images[n] = state.image.tobytes()
        return await self.writer.publish(n, state)


@pytest.fixture
async def learner(bus: Bus) -> Learner:
    learner = Learner(bus)
    await learner.writer.open()
    return learner


def image_of(follower: WeightFollower) -> bytes:
    assert follower.state is not None
    return follower.state.image.tobytes()


async def advanced(follower: WeightFollower, learner: Learner, n: int) -> Manifest:
    """The follower holds version `n` of the learner, bit for bit."""
    manifest = await follower.advance(10)
    assert manifest is not None
    assert manifest.version.n == n
    assert image_of(follower) == learner.images[n]
    return manifest


async def test_a_follower_takes_every_version_as_it_comes(bus: Bus, learner: Learner):
    follower = WeightFollower(bus)
    assert await follower.advance(0.2) is None
    for n in range(11):
        await learner.publish(n, every=100)
        await advanced(follower, learner, n)
    assert await follower.advance(0.2) is None
    assert follower.fallbacks == 0
    # The first snapshot and ten deltas: snapshots that came later were not read again.
    assert follower.bytes_received < 2.5 * LAYOUT.nbytes


@pytest.mark.parametrize("late", [1, 4, 40])
async def test_a_follower_that_is_late_or_new_reaches_the_newest_version(bus: Bus, learner: Learner, late: int):
    follower, new = WeightFollower(bus), WeightFollower(bus)
    await learner.publish(0)
    await advanced(follower, learner, 0)
    for n in range(1, late + 1):
        await learner.publish(n, every=100)
    for one in (follower, new):
        manifest = await advanced(one, learner, late)
        assert manifest.version == WeightVersion(epoch=0, n=late)
        assert one.fallbacks == 0


async def test_the_stream_is_bounded_however_long_the_run_is(bus: Bus, learner: Learner):
    largest = 0
    for n in range(40):
        # Everything changes: deltas are as large as snapshots, the worst case.
        await learner.publish(n)
        largest = max(largest, (await bus.js.stream_info(bus.names.stream("WEIGHTS"))).state.bytes)
    assert largest < 5 * LAYOUT.nbytes
    await advanced(WeightFollower(bus), learner, 39)


async def test_a_version_without_any_change_is_a_version(bus: Bus, learner: Learner):
    follower = WeightFollower(bus)
    await learner.publish(0)
    await advanced(follower, learner, 0)
    state = learner.writer.room(LAYOUT)
    state.image[:] = np.frombuffer(learner.image, np.uint8)
    published = await learner.writer.publish(1, state)
    assert published.wire_bytes == 0
    manifest = await follower.advance(5)
    assert manifest is not None
    assert manifest.version.n == 1
    assert image_of(follower) == learner.image


# Whatever happens to a message


async def stored(bus: Bus) -> list[RawStreamMsg]:
    """Everything on the weight stream, in order."""
    stream = bus.names.stream("WEIGHTS")
    state = (await bus.js.stream_info(stream)).state
    return [await bus.js.get_msg(stream, sequence) for sequence in range(state.first_seq, state.last_seq + 1)]


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


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.02)


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


async def test_a_follower_reaches_the_version_that_it_is_asked_for(bus: Bus, learner: Learner):
    for n in range(8):
        await learner.publish(n, every=20)
    for n in (7, 4, 6, 0):
        follower = WeightFollower(bus)
        await follower.reach(WeightVersion(epoch=0, n=n))
        assert image_of(follower) == learner.images[n]
    with pytest.raises(WeightsError, match=r"does not lead to version 0\.9; it holds 0\.0, 0\.1"):
        await WeightFollower(bus).reach(WeightVersion(epoch=0, n=9))


@pytest.mark.parametrize("scheme", ["", "file://"])
async def test_snapshots_may_lie_outside_the_bus(bus: Bus, tmp_path: Path, scheme: str):
    folder = tmp_path / "snapshots"
    learner = Learner(bus, CONFIG.model_copy(update={"snapshot_location": f"{scheme}{folder}"}))
    await learner.writer.open()
    for n in range(14):
        await learner.publish(n, every=100)
    state = (await bus.js.stream_info(bus.names.stream("WEIGHTS"))).state
    assert state.bytes < LAYOUT.nbytes
    assert len(list(folder.iterdir())) == 2, "older snapshots should have been removed"
    follower = WeightFollower(bus)
    await advanced(follower, learner, 13)
    # A file that is cut short or gone: the one before it, and the deltas since, still lead there.
    newest_file, other = sorted(folder.iterdir(), key=lambda path: -path.stat().st_mtime_ns)
    newest_file.write_bytes(newest_file.read_bytes()[:-1])
    again = WeightFollower(bus)
    await advanced(again, learner, 13)
    assert again.fallbacks == 1
    other.unlink()
    lost = WeightFollower(bus)
    assert await lost.advance(0.1) is None
    assert lost.fallbacks >= 2


async def test_a_place_that_cannot_be_written_is_named(bus: Bus, tmp_path: Path):
    (tmp_path / "file").touch()
    learner = Learner(bus, CONFIG.model_copy(update={"snapshot_location": str(tmp_path / "file")}))
    await learner.writer.open()
    with pytest.raises(WeightsError, match=r"weights\.snapshot_location"):
        await learner.publish(0)


# Two learners, and one that comes back


async def test_a_second_learner_deposes_the_first(bus: Bus, learner: Learner):
    await learner.publish(0)
    follower = WeightFollower(bus)
    await advanced(follower, learner, 0)
    second = Learner(bus)
    await second.writer.open()
    before = await stored(bus)
    with pytest.raises(DeposedError, match="deposed"):
        await learner.publish(1)
    after = [m for m in await stored(bus) if m.subject == bus.names.manifests]
    assert len(after) == len([m for m in before if m.subject == bus.names.manifests])
    # The same weights under the new epoch cost the follower nothing.
    received = follower.bytes_received
    manifest = await follower.advance(5)
    assert manifest is not None
    assert manifest.version == WeightVersion(epoch=1, n=0)
    assert follower.bytes_received == received


async def test_of_two_learners_that_begin_together_one_goes_on_and_followers_read_its_weights(
    bus: Bus, learner: Learner
):
    # Both open an empty log: the same epoch, the same version.
    second = Learner(bus)
    await second.writer.open()
    outcomes = await asyncio.gather(learner.publish(0), second.publish(0, seed=7), return_exceptions=True)
    assert sum(isinstance(outcome, DeposedError) for outcome in outcomes) == 1
    winner = second if isinstance(outcomes[0], DeposedError) else learner
    follower = WeightFollower(bus)
    await advanced(follower, winner, 0)
    assert follower.fallbacks == 0
    await winner.publish(1, every=50)
    await advanced(follower, winner, 1)


async def test_a_deposed_learner_that_only_reproduces_the_log_notices(bus: Bus, learner: Learner):
    for n in range(4):
        await learner.publish(n, every=30)
    resumed = Learner(bus)
    await resumed.writer.open()
    resumed.image = learner.images[1]
    assert (await resumed.publish(2, every=30)).wire_bytes == 0
    await Learner(bus).writer.open()
    with pytest.raises(DeposedError):
        await resumed.publish(3, every=30)


async def test_a_resumed_learner_that_reproduces_the_log_writes_nothing_until_it_is_past_it(bus: Bus, learner: Learner):
    follower = WeightFollower(bus)
    for n in range(7):
        await learner.publish(n, every=30)
    await advanced(follower, learner, 6)
    resumed = Learner(bus)
    await resumed.writer.open()
    resumed.image = learner.images[2]
    sequence, _ = await newest(bus)
    for n in range(3, 7):
        published = await resumed.publish(n, every=30)
        assert published.wire_bytes == 0
        assert resumed.image == learner.images[n]
    assert (await newest(bus))[0] == sequence
    published = await resumed.publish(7, every=30)
    assert 0 < published.wire_bytes < LAYOUT.nbytes / 2
    manifest = await advanced(follower, resumed, 7)
    assert manifest.version == WeightVersion(epoch=1, n=7)
    assert manifest.kind is ManifestKind.DELTA
    assert follower.fallbacks == 0


async def test_a_resumed_learner_that_goes_another_way_begins_anew_with_a_snapshot(bus: Bus, learner: Learner):
    follower = WeightFollower(bus)
    for n in range(7):
        await learner.publish(n, every=30)
    await advanced(follower, learner, 6)
    resumed = Learner(bus)
    await resumed.writer.open()
    resumed.image = learner.images[2]
    assert (await resumed.publish(3, every=30)).wire_bytes == 0
    assert (await resumed.publish(4, seed=1000)).wire_bytes >= LAYOUT.nbytes
    manifest = await advanced(follower, resumed, 4)
    assert (manifest.version, manifest.kind) == (WeightVersion(epoch=1, n=4), ManifestKind.SNAPSHOT)
    for n in (5, 6, 7):
        published = await resumed.publish(n, seed=1000 + n, every=30)
        assert 0 < published.wire_bytes < LAYOUT.nbytes / 2, "only the first one is a snapshot"
        await advanced(follower, resumed, n)
    await advanced(WeightFollower(bus), resumed, 7)


async def test_a_lost_acknowledgement_of_a_manifest_is_no_deposal(bus: Bus, learner: Learner, monkeypatch):
    publish = bus.publish

    async def lossy(subject, message, headers=None):
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


async def test_versions_that_come_while_a_follower_is_busy_are_one_step(bus: Bus, learner: Learner):
    follower = WeightFollower(bus)
    await learner.publish(0)
    await advanced(follower, learner, 0)
    for n in (1, 2, 3):
        await learner.publish(n, every=50)
    await advanced(follower, learner, 3)
    assert await follower.advance(0.1) is None


@contextlib.asynccontextmanager
async def serving(follower: WeightFollower, learner: Learner, last: int) -> AsyncIterator[None]:
    """A follower that keeps up by itself."""

    async def follow() -> None:
        while follower.held is None or follower.held.version.n < last:
            await follower.advance(5)

    following = asyncio.create_task(follow())
    yield
    await asyncio.wait_for(following, 120)


async def test_followers_keep_up_while_the_log_grows_and_is_purged(bus: Bus, learner: Learner):
    followers = [WeightFollower(bus) for _ in range(4)]
    async with contextlib.AsyncExitStack() as stack:
        for follower in followers:
            await stack.enter_async_context(serving(follower, learner, 30))
        for n in range(31):
            await learner.publish(n, every=5)
    for follower in followers:
        assert image_of(follower) == learner.images[30]


# A follower that is slower than the learner


class Gate:
    """Lets a follower apply one chunk for each permit."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._permits = threading.Semaphore(0)
        self.applied = 0
        apply = weight_follower._apply

        def gated(messages: Sequence[bytes], taken: int, state: WeightState) -> int:
            assert self._permits.acquire(timeout=60)
            taken = apply(messages, taken, state)
            self.applied += 1
            return taken

        monkeypatch.setattr(weight_follower, "_apply", gated)
        # A chunk at a time.
        monkeypatch.setattr(weight_follower, "BYTES_AT_ONCE", 1)

    async def let(self, chunks: int) -> None:
        """Returns once as many more are applied."""
        goal = self.applied + chunks
        self._permits.release(chunks)
        await until(lambda: self.applied >= goal)

    def open(self) -> None:
        self._permits.release(10_000)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate(monkeypatch)
    yield gate
    gate.open()


@contextlib.asynccontextmanager
async def following(follower: WeightFollower, seen: list[int]) -> AsyncIterator[None]:
    """A follower that goes on by itself; what it gave out is in `seen`."""

    async def follow() -> None:
        while True:
            if (manifest := await follower.advance(60)) is not None:
                seen.append(manifest.version.n)

    task = asyncio.create_task(follow())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def stream_bytes(bus: Bus) -> int:
    return (await bus.js.stream_info(bus.names.stream("WEIGHTS"))).state.bytes


async def test_a_follower_four_times_slower_than_the_learner_moves_on_and_skips_versions(
    bus: Bus, learner: Learner, gate: Gate
):
    """Everything changes at each version, so each is a snapshot, of three chunks: while it is read four more are written."""
    follower, seen = WeightFollower(bus), list[int]()
    await learner.publish(0)
    async with following(follower, seen):
        largest = 0
        for n in range(1, 41):
            await learner.publish(n)
            largest = max(largest, await stream_bytes(bus))
            if n % 4:
                await gate.let(1)
        assert follower.fallbacks == 0
        # 30 chunks: ten versions, one in four.
        assert len(seen) >= 9
        assert seen == sorted(set(seen))
        assert seen[-1] >= 32
        # A snapshot and a delta are read in one go at most, while eight of each are written.
        assert largest < 20 * LAYOUT.nbytes
        gate.open()
        await until(lambda: seen[-1] == 40)
        assert image_of(follower) == learner.images[40]
    # Nobody reads any more: the next purge takes what was kept for it.
    await learner.publish(41)
    assert await stream_bytes(bus) < 5 * LAYOUT.nbytes


async def test_what_is_read_for_longer_than_the_bound_is_purged_and_missed_at_once(
    bus: Bus, learner: Learner, gate: Gate, monkeypatch
):
    monkeypatch.setattr(weight_writer, "HOLD_S", 0.0)
    # Were it found by waiting, the test would not end.
    monkeypatch.setattr(bus, "config", bus.config.model_copy(update={"reconnect_s": 10_000.0}))
    follower, seen = WeightFollower(bus), list[int]()
    await learner.publish(0)
    async with following(follower, seen):
        await gate.let(1)
        for n in range(1, 5):
            await learner.publish(n)
        gate.open()
        await until(lambda: 4 in seen)
    assert follower.fallbacks == 1
    assert image_of(follower) == learner.images[4]


async def test_a_fetch_goes_on_where_it_was_after_an_outage(bus: Bus, learner: Learner, gate: Gate):
    follower, seen = WeightFollower(bus), list[int]()
    await learner.publish(0)
    async with following(follower, seen):
        await gate.let(1)
        reconnects = bus.client.stats["reconnects"]
        await bus.client._process_op_err(ConnectionResetError("as if the network had cut it"))
        await until(lambda: bus.client.stats["reconnects"] > reconnects and bus.client.is_connected)
        gate.open()
        await until(lambda: bool(seen))
    assert seen == [0]
    assert follower.fallbacks == 0
    assert follower.bytes_received < 1.1 * LAYOUT.nbytes, "it began anew"


async def test_a_file_that_is_read_stays_until_it_is_read(bus: Bus, tmp_path: Path, monkeypatch):
    read, go_on = weight_follower._read_file, threading.Event()
    begun: list[str] = []

    def held_up(location: str, state: WeightState) -> None:
        begun.append(location)
        assert go_on.wait(60)
        read(location, state)

    monkeypatch.setattr(weight_follower, "_read_file", held_up)
    learner = Learner(bus, CONFIG.model_copy(update={"snapshot_location": str(tmp_path)}))
    await learner.writer.open()
    follower, seen = WeightFollower(bus), list[int]()
    await learner.publish(0)
    async with following(follower, seen):
        await until(lambda: bool(begun))
        for n in range(1, 5):
            await learner.publish(n)
        assert len(list(tmp_path.iterdir())) == 5
        go_on.set()
        await until(lambda: bool(seen))
        assert follower.fallbacks == 0
    await learner.publish(5)
    assert len(list(tmp_path.iterdir())) == 2

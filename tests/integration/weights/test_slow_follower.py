"""The weight log and a follower that is slower than the learner."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import pytest

import weights.follower
import weights.writer
from bus.connection import Bus
from tests.integration.weights.log import CONFIG, LAYOUT, Learner, image_of, until
from weights.codec import WeightState
from weights.follower import WeightFollower
from weights.holds import Hold, held_from


class Gate:
    """Lets a follower apply one chunk for each permit."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._permits = threading.Semaphore(0)
        self.applied = 0
        apply = weights.follower._apply

        def gated(messages: Sequence[bytes], taken: int, state: WeightState) -> int:
            assert self._permits.acquire(timeout=60)
            taken = apply(messages, taken, state)
            self.applied += 1
            return taken

        monkeypatch.setattr(weights.follower, "_apply", gated)
        # A chunk at a time.
        monkeypatch.setattr(weights.follower, "CHUNKS_AT_ONCE", 1)

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
    monkeypatch.setattr(weights.writer, "HOLD_S", 0.0)
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


async def test_no_hold_keeps_more_than_the_bound(bus: Bus, learner: Learner, monkeypatch):
    monkeypatch.setattr(weights.writer, "MOST_IMAGES", 1)
    await learner.publish(0)
    async with Hold(bus) as hold:
        await hold.take(1)
        assert await held_from(bus) == {hold._key: 1}
        for n in range(1, 20):
            await learner.publish(n)
            # Another one each time: none is old.
            await hold.take(1 + n % 2)
        assert await stream_bytes(bus) < 2 * (LAYOUT.nbytes + 2**20)
        state = (await bus.js.stream_info(bus.names.stream("WEIGHTS"))).state
        assert state.first_seq > 2
        for garbage in (b"0", b"-5", b"x", b"", b"9" * 5000):
            await (await bus.js.key_value(bus.names.holds_bucket)).put("actor.x", garbage)
            assert await held_from(bus) == {hold._key: 2}
    assert await held_from(bus) == {}


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
    read, go_on = weights.follower.read_file, threading.Event()
    begun: list[str] = []

    def held_up(location: str, state: WeightState) -> None:
        begun.append(location)
        assert go_on.wait(60)
        read(location, state)

    monkeypatch.setattr(weights.follower, "read_file", held_up)
    learner = Learner(bus, CONFIG.model_copy(update={"snapshot_location": str(tmp_path)}))
    await learner.writer.open()
    follower, seen = WeightFollower(bus, str(tmp_path)), list[int]()
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

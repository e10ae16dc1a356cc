"""The weight log and its writers: two at once, and one that comes back."""

import asyncio
import signal
from pathlib import Path

import pytest

from bus.connection import Bus, UnreadError, open_bus
from bus.messages import ManifestKind, WeightVersion
from bus.server import embedded_server
from bus.streams import create_streams
from configs.bus import BusConfig
from tests.integration.servers import hang
from tests.integration.weights.log import LAYOUT, Learner, advanced, stored
from weights import writer
from weights.follower import WeightFollower
from weights.log import newest, read_manifests
from weights.writer import DeposedError


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


async def gone_on(bus: Bus, learner: Learner, n: int) -> Learner:
    """Another writer, from the weights that `learner` had at version `n`."""
    resumed = Learner(bus)
    await resumed.writer.open()
    resumed.image = learner.images[n]
    return resumed


async def test_a_deposed_learner_that_only_reproduces_the_log_notices(bus: Bus, learner: Learner):
    for n in range(4):
        await learner.publish(n, every=30)
    resumed = await gone_on(bus, learner, 1)
    assert (await resumed.publish(2, every=30)).wire_bytes == 0
    await Learner(bus).writer.open()
    with pytest.raises(DeposedError):
        await resumed.publish(3, every=30)


async def test_a_resumed_learner_that_reproduces_the_log_writes_nothing_until_it_is_past_it(bus: Bus, learner: Learner):
    follower = WeightFollower(bus)
    for n in range(7):
        await learner.publish(n, every=30)
    await advanced(follower, learner, 6)
    resumed = await gone_on(bus, learner, 2)
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
    resumed = await gone_on(bus, learner, 2)
    assert (await resumed.publish(3, every=30)).wire_bytes == 0
    assert (await resumed.publish(4, seed=1000)).wire_bytes >= LAYOUT.nbytes
    manifest = await advanced(follower, resumed, 4)
    assert (manifest.version, manifest.kind) == (WeightVersion(epoch=1, n=4), ManifestKind.SNAPSHOT)
    for n in (5, 6, 7):
        published = await resumed.publish(n, seed=1000 + n, every=30)
        assert 0 < published.wire_bytes < LAYOUT.nbytes / 2, "only the first one is a snapshot"
        await advanced(follower, resumed, n)
    await advanced(WeightFollower(bus), resumed, 7)


async def test_a_log_that_is_read_in_part_is_an_error_and_no_empty_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A learner that took the log for empty would begin with the first epoch again, and no actor would take its versions."""
    config = BusConfig(timeout_s=1, reconnect_s=60)
    async with (
        embedded_server(tmp_path, config, "hangs") as (address, server),
        open_bus(address, config, "test") as bus,
    ):
        await create_streams(bus.js, bus.names, config, lease_s=60)
        first = Learner(bus)
        await first.writer.open()
        for n in range(3):
            await first.publish(n, every=50)

        async def hanging(bus: Bus, start: int, end: int):
            hang(server)
            return await read_manifests(bus, start, end)

        monkeypatch.setattr(writer, "read_manifests", hanging)
        second = Learner(bus)
        with pytest.raises(UnreadError, match="gave nothing from message 1 on"):
            await second.writer.open()
        monkeypatch.undo()
        server.send_signal(signal.SIGCONT)
        third = await gone_on(bus, first, 2)
        assert third.writer.epoch == 1
        await third.publish(3, every=50)
        # A follower that hears nothing tries again.
        follower = WeightFollower(bus)
        hang(server)
        assert await follower.advance(0.1) is None
        server.send_signal(signal.SIGCONT)
        await advanced(follower, third, 3)

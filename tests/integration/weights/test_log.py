"""The weight log over a real server: a writer, and followers that are new, late or busy."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from bus.connection import Bus
from bus.messages import ManifestKind, WeightVersion
from tests.integration.weights.log import CONFIG, LAYOUT, Learner, advanced, change, image_of
from weights.codec import WeightsError
from weights.files import file_name, require_below
from weights.follower import WeightFollower
from weights.log import newest, read_manifests


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


async def test_a_version_is_out_before_the_snapshot_that_follows_it(bus: Bus, learner: Learner):
    for n in range(4):
        await learner.publish(n, every=20)
    state = learner.writer.spare_state(LAYOUT)
    state.image[:] = np.frombuffer(learner.image, np.uint8)
    change(state, 4, every=20)
    await learner.writer.publish(4, state)
    head, manifest = (await read_manifests(bus, 1, (await newest(bus))[0]))[-1]
    assert (manifest.version.n, manifest.kind) == (4, ManifestKind.DELTA)
    assert await learner.writer.snapshot_if_due() >= LAYOUT.nbytes
    _, manifest = (await read_manifests(bus, head + 1, (await newest(bus))[0]))[-1]
    assert (manifest.version.n, manifest.kind) == (4, ManifestKind.SNAPSHOT)
    assert await learner.writer.snapshot_if_due() == 0


async def test_a_version_without_any_change_is_a_version(bus: Bus, learner: Learner):
    follower = WeightFollower(bus)
    await learner.publish(0)
    await advanced(follower, learner, 0)
    state = learner.writer.spare_state(LAYOUT)
    state.image[:] = np.frombuffer(learner.image, np.uint8)
    published = await learner.writer.publish(1, state)
    assert published.wire_bytes == 0
    manifest = await follower.advance(5)
    assert manifest is not None
    assert manifest.version.n == 1
    assert image_of(follower) == learner.image


async def test_a_follower_reaches_the_version_that_it_is_asked_for(bus: Bus, learner: Learner):
    for n in range(8):
        await learner.publish(n, every=20)
    for n in (7, 4, 6, 0):
        follower = WeightFollower(bus)
        await follower.reach(WeightVersion(epoch=0, n=n))
        assert image_of(follower) == learner.images[n]
    with pytest.raises(WeightsError, match=r"does not lead to version 0\.9; it holds 0\.0, 0\.1"):
        await WeightFollower(bus).reach(WeightVersion(epoch=0, n=9))


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
    follower = WeightFollower(bus, f"{scheme}{folder}/")
    await advanced(follower, learner, 13)
    # A role that was told of another place opens nothing.
    for elsewhere in (None, str(tmp_path), f"{scheme}{folder}/deeper"):
        stranger = WeightFollower(bus, elsewhere)
        assert await stranger.advance(0.1) is None
        assert stranger.bytes_received == 0
    # A file that is cut short or gone: the one before it, and the deltas since, still lead there.
    newest_file, other = sorted(folder.iterdir(), key=lambda path: -path.stat().st_mtime_ns)
    newest_file.write_bytes(newest_file.read_bytes()[:-1])
    again = WeightFollower(bus, f"{scheme}{folder}")
    await advanced(again, learner, 13)
    assert again.fallbacks == 1
    other.unlink()
    lost = WeightFollower(bus, f"{scheme}{folder}")
    assert await lost.advance(0.1) is None
    assert lost.fallbacks >= 2


@pytest.mark.parametrize(
    "location",
    [
        "{folder}/../etc/passwd", "{folder}/zip://x::{folder}/zerotir.a.weights", "zip://x::{folder}/zerotir.a.weights",
        "http://host/zerotir.a.weights", "{folder}/zerotir.a.weights/x", "{folder}zerotir.a.weights", "",
    ],
)  # fmt: skip
def test_no_manifest_leads_out_of_the_place_for_snapshots(tmp_path: Path, location: str):
    require_below(f"{tmp_path}/{file_name('r', WeightVersion(epoch=0, n=3))}", str(tmp_path))
    with pytest.raises(WeightsError, match=r"not in this role's weights\.snapshot_location"):
        require_below(location.format(folder=tmp_path), str(tmp_path))


async def test_a_place_that_cannot_be_written_is_named(bus: Bus, tmp_path: Path):
    (tmp_path / "file").touch()
    learner = Learner(bus, CONFIG.model_copy(update={"snapshot_location": str(tmp_path / "file")}))
    await learner.writer.open()
    with pytest.raises(WeightsError, match=r"weights\.snapshot_location"):
        await learner.publish(0)

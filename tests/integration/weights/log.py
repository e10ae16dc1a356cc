"""A writer of small weights for the tests of the weight log, and what they ask of log and followers."""

import asyncio
from collections.abc import Callable

import numpy as np
from nats.js.api import RawStreamMsg

from bus.connection import Bus
from bus.messages import Manifest
from configs.bus import WeightsConfig
from weights.codec import Layout, WeightState
from weights.follower import WeightFollower
from weights.writer import WeightWriter

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
        state = self.writer.spare_state(LAYOUT)
        state.image[:] = np.frombuffer(self.image, np.uint8)
        change(state, n if seed is None else seed, every)
        self.image = self.images[n] = state.image.tobytes()
        published = await self.writer.publish(n, state)
        await self.writer.snapshot_if_due()
        return published


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


async def stored(bus: Bus) -> list[RawStreamMsg]:
    """Everything on the weight stream, in order."""
    stream = bus.names.stream("WEIGHTS")
    state = (await bus.js.stream_info(stream)).state
    return [await bus.js.get_msg(stream, sequence) for sequence in range(state.first_seq, state.last_seq + 1)]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.02)

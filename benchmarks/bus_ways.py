"""Three ways to bring trajectories from actors to the learner, each as one writer and one reader.

zerotir   the project's own: a message is made, validated, packed, stored until acknowledged; read, unpacked, validated
nats-py   a bare loop over the same stream that moves the same bytes and looks at none of them
redis     Redis Streams with msgpack, as other pipelines use them: XADD, XREAD, nothing validated, nothing on disk
"""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Protocol

import msgpack
import numpy as np
from nats.js.api import AckPolicy, ConsumerConfig

from bus.address import BusAddress
from bus.codec import decode, encode
from bus.connection import open_bus
from bus.log_reader import LogReader
from bus.messages import Failure, FinishReason, Outcome, ToolCall, Trajectory, VersionSpan, WeightVersion
from configs.bus import BusConfig
from configs.schema import RolloutConfig
from learner.tickets.result_log import require_usable

CONFIG = BusConfig(timeout_s=30)
BATCH = 64
"""Messages that a reader asks for at once: the learner's read-ahead."""
PROMPT = 64
VOCABULARY = 50_000
STREAM = "results"
LIMITS = RolloutConfig(max_response_tokens=10**6)


class Writer(Protocol):
    async def write(self, number: int) -> None:
        """Returns once the message is stored."""


class Reader(Protocol):
    async def read(self) -> int:
        """Returns the number of messages that came; 0 where none did for a while."""


@dataclass(frozen=True)
class Place:
    """Says where the servers of both kinds are."""

    address: BusAddress
    redis_port: int


def fields(run: str, size: int) -> dict[str, Any]:
    """Returns what makes a trajectory of about `size` bytes on the wire, with one tool call."""
    rng = np.random.default_rng(size)
    response = max((size - 4 * PROMPT - 900) // 9, 8)
    start, end = response // 3, response // 3 + min(40, response // 8)
    mask = np.ones(response, np.uint8)
    mask[start:end] = 0
    version = WeightVersion(epoch=0, n=3)
    return {
        "ticket": 1,
        "group": 0,
        "tokens": rng.integers(0, VOCABULARY, PROMPT + response).astype(np.int32),
        "prompt_length": PROMPT,
        "loss_mask": mask,
        "logprobs": (-rng.random(response) * mask).astype(np.float32),
        "versions": (
            VersionSpan(version=version, start=0, end=start),
            VersionSpan(version=version, start=end, end=response),
        ),
        "temperature": LIMITS.temperature,
        "reward": 1.0,
        "reward_parts": {"correct": 1.0},
        "tool_calls": (
            ToolCall(
                code="print(sum(range(10)))\n" * 10,
                output="\n```output\n45\n```\n",
                outcome=Outcome.EXITED,
                success=True,
                start=start,
                seconds=0.1,
            ),
        ),
        "finish_reason": FinishReason.STOP,
        "actor": "actor-0",
        "seed": 0,
        "issued_at": 1.7e9,
        "started_at": 1.7e9,
        "first_token_at": 1.7e9,
        "published_at": 1.7e9,
        "run": run,
    }


class _Ours:
    def __init__(self, bus: Any, size: int) -> None:
        self._bus = bus
        self._fields = fields(bus.address.run, size)
        del self._fields["ticket"]
        self._reader = LogReader(bus, bus.names.stream("RESULTS"), bus.names.results)

    async def write(self, number: int) -> None:
        trajectory = Trajectory(ticket=number, **self._fields)
        await self._bus.publish_until_stored(self._bus.names.results, trajectory, 60.0)

    async def read(self) -> int:
        messages = await self._reader.read(BATCH, 0.5)
        for _, data in messages:
            require_usable(decode(data, Trajectory, Failure), self._bus.address.run, LIMITS, VOCABULARY)
        return len(messages)


class _Bare:
    def __init__(self, bus: Any, size: int) -> None:
        self._js = bus.js
        self._names = bus.names
        self._data = encode(Trajectory(**fields(bus.address.run, size)))
        self._subscription: Any = None

    async def write(self, number: int) -> None:
        await self._js.publish(self._names.results, self._data)

    async def read(self) -> int:
        if self._subscription is None:
            stream = self._names.stream("RESULTS")
            config = ConsumerConfig(ack_policy=AckPolicy.NONE, mem_storage=True)
            self._subscription = await self._js.pull_subscribe(self._names.results, stream=stream, config=config)
        try:
            messages = await self._subscription.fetch(BATCH, timeout=0.5)
        except TimeoutError:
            return 0
        return len(messages)


class _Redis:
    def __init__(self, client: Any, run: str, size: int) -> None:
        self._client = client
        self._fields = fields(run, size)
        self._fields["tool_calls"] = [call.model_dump() for call in self._fields["tool_calls"]]
        self._fields["versions"] = [span.model_dump() for span in self._fields["versions"]]
        self._last: Any = "0"

    async def write(self, number: int) -> None:
        data = msgpack.packb(self._fields | {"ticket": number}, default=np.ndarray.tobytes)
        await self._client.xadd(STREAM, {"data": data})

    async def read(self) -> int:
        found = await self._client.xread({STREAM: self._last}, count=BATCH, block=500)
        if not found:
            return 0
        [(_, messages)] = found
        for _, content in messages:
            msgpack.unpackb(content[b"data"])
        self._last = messages[-1][0]
        return len(messages)


@contextlib.asynccontextmanager
async def connected(way: str, place: Place, size: int) -> AsyncIterator[Any]:
    """Yields a `Writer` and `Reader` of one way, on a connection of its own."""
    if way == "redis":
        import redis.asyncio

        client = redis.asyncio.Redis(port=place.redis_port)
        try:
            yield _Redis(client, place.address.run, size)
        finally:
            await client.aclose()
        return
    async with open_bus(place.address, CONFIG, way) as bus:
        yield (_Ours if way == "zerotir" else _Bare)(bus, size)

"""Holds on the stream of weights: what a follower reads is not purged under it.

A follower writes from where on it reads into a bucket, under a key of its own, and says it again while it reads. Before the
learner purges, it looks at all of them. A hold of a follower that is gone ends when the bucket forgets it, after
`HOLDS_TTL_S`. A hold that comes between the look and the purge holds nothing: the follower notices what is gone, and takes
another way.

Cost: a message for each version that a follower reads, and one request a follower before each purge.
"""

import asyncio
import contextlib
import secrets
from types import TracebackType
from typing import Self

import nats.errors
import nats.js.errors
import structlog
from nats.js.kv import KeyValue

from bus.buckets import entries
from bus.connection import TRANSIENT_ERRORS, Bus
from bus.streams import HOLDS_TTL_S

log = structlog.get_logger()

NOT_SAID = (*TRANSIENT_ERRORS, nats.js.errors.APIError, nats.errors.ConnectionClosedError)
"""What a bus that is away raises: then there is no hold, and the follower reads on without."""


class Hold:
    """A follower's hold: from the first `take` in an `async with` block to the block's end, and again in the next one."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._key = f"{bus.address.role}.{secrets.token_hex(8)}"
        self._sequence = 0
        self._bucket: KeyValue | None = None
        self._saying: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._saying is not None:
            self._saying.cancel()
            self._saying = None
            with contextlib.suppress(*NOT_SAID):
                if self._bucket is not None and self._bus.client.is_connected:
                    await self._bucket.delete(self._key)

    async def take(self, sequence: int) -> None:
        """Holds everything from `sequence` on, in the place of what was held before."""
        self._sequence = sequence
        await self._say()
        if self._saying is None:
            self._saying = asyncio.create_task(self._say_again())

    async def _say_again(self) -> None:
        while True:
            await asyncio.sleep(HOLDS_TTL_S / 5)
            await self._say()

    async def _say(self) -> None:
        if not self._bus.client.is_connected:
            return
        try:
            if self._bucket is None:
                self._bucket = await self._bus.js.key_value(self._bus.names.holds_bucket)
            await self._bucket.put(self._key, str(self._sequence).encode())
        except NOT_SAID as error:
            log.warning("the weights could not be held while they are read", error=str(error))


async def held_from(bus: Bus) -> dict[str, int]:
    """Returns from which sequence on each hold keeps the stream, by the hold's key. Raises what nats-py raises."""
    found = {}
    for key, value in (await entries(bus, bus.names.holds_bucket)).items():
        try:
            start = int(value)
        except ValueError:
            start = 0
        if start > 0:
            found[key] = start
        else:
            log.warning("unreadable hold on the weights", key=key)
    return found

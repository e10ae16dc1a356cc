"""Reading a stream as a log: every message once, in order, from any sequence on.

A short-lived pull consumer that the server forgets by itself; it is made anew, at the next unread sequence, after
whatever went wrong (server restarted, consumer expired, a hole in the deliveries).
"""

import asyncio
from collections.abc import AsyncIterator

import nats.errors
import nats.js.errors
import structlog
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from bus.connection import TRANSIENT_ERRORS, Bus

log = structlog.get_logger()

IDLE_CONSUMER_S = 300.0


class LogReader:
    """Reads `subject` of `stream` from sequence `start` on."""

    def __init__(self, bus: Bus, stream: str, subject: str, start: int = 1) -> None:
        self._bus = bus
        self._stream = stream
        self._subject = subject
        self._next = start
        self._delivered = 0
        self._subscription: JetStreamContext.PullSubscription | None = None

    async def _subscribe(self) -> JetStreamContext.PullSubscription:
        self._delivered = 0
        return await self._bus.js.pull_subscribe(
            self._subject,
            stream=self._stream,
            config=ConsumerConfig(
                ack_policy=AckPolicy.NONE,
                deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
                opt_start_seq=self._next,
                inactive_threshold=IDLE_CONSUMER_S,
                mem_storage=True,
                num_replicas=1,
            ),
        )

    async def close(self) -> None:
        """Forgets the consumer; the next read makes a new one."""
        if self._subscription is not None:
            subscription, self._subscription = self._subscription, None
            if self._bus.client.is_connected:
                await subscription.unsubscribe()

    async def read(self, batch: int, timeout_s: float) -> list[tuple[int, bytes]]:
        """The next messages as (sequence, data), at most `batch`; an empty list when none came within `timeout_s`."""
        try:
            if self._subscription is None:
                self._subscription = await self._subscribe()
            messages: list[Msg] = await self._subscription.fetch(batch, timeout=timeout_s)
        except nats.js.errors.FetchTimeoutError:
            return []
        except (*TRANSIENT_ERRORS, nats.js.errors.NotFoundError) as error:
            if not isinstance(error, TimeoutError):
                log.warning("reading interrupted, will resume", stream=self._stream, at=self._next, error=str(error))
            await self.close()
            await asyncio.sleep(min(timeout_s, 0.5))
            return []
        read: list[tuple[int, bytes]] = []
        for message in messages:
            position = message.metadata.sequence
            if position.consumer != self._delivered + 1:
                log.warning("hole in the deliveries, reading again", stream=self._stream, at=self._next)
                await self.close()
                break
            self._delivered = position.consumer
            if position.stream >= self._next:
                read.append((position.stream, message.data))
                self._next = position.stream + 1
        return read

    async def follow(self, batch: int = 100, timeout_s: float = 1.0) -> AsyncIterator[tuple[int, bytes]]:
        """All messages, past and to come, until cancelled."""
        while True:
            for item in await self.read(batch, timeout_s):
                yield item

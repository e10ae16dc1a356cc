"""Reading a stream as a log: every message once, in order, from any sequence on.

The reader has a short-lived pull consumer. It makes a new one at the next unread sequence after any interruption: the server
restarted, the connection or the consumer was lost, deliveries have a hole or did not come. One pull request is open at a
time, so messages arrive as they are stored, and no more of them are held here than the last `read` asked for.
"""

import asyncio
import contextlib
import json
import secrets
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator

import nats.errors
import nats.js.errors
import structlog
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy, Header, StatusCode

from bus.connection import TRANSIENT_ERRORS, Bus, UnreadError

log = structlog.get_logger()

IDLE_CONSUMER_S = 300.0
LOST_AFTER_S = 5.0
"""How long a pull request stays open, and the silence after which the server is asked whether the consumer is still there
and whether it has sent what did not come: what was lost under way nothing sends again by itself."""
GRACE_S = 1.0
"""A pull request whose end the server has not announced by then is taken for lost."""


class _InterruptedError(Exception):
    """The server ended the pull request for a reason that needs a new consumer."""


class LogReader:
    """Reads `subject` of `stream` from sequence `start` on."""

    def __init__(
        self, bus: Bus, stream: str, subject: str, start: int = 1, metadata: dict[str, str] | None = None
    ) -> None:
        """`metadata` is the consumer's, for others that look at the stream."""
        self._bus = bus
        self._metadata = metadata
        self._stream = stream
        self._subject = subject
        self._next = start
        self._delivered = 0
        self._heard = 0.0
        self._name = ""
        self._subscription: Subscription | None = None
        self._reconnects = 0
        self._arrived: deque[Msg] = deque()
        self._wake = asyncio.Event()
        self._wanted = 0
        """Messages that the open pull request still asks for."""
        self._open_until = 0.0
        self._interruption = ""

    @property
    def position(self) -> int:
        """Returns the sequence up to which the stream was read."""
        return self._next - 1

    async def _subscribe(self) -> None:
        self._delivered = self._wanted = 0
        self._interruption = ""
        self._heard = time.monotonic()
        self._reconnects = self._bus.client.stats["reconnects"]
        self._name = f"reader-{secrets.token_hex(8)}"
        await self._bus.js.add_consumer(
            self._stream,
            config=ConsumerConfig(
                name=self._name,
                filter_subject=self._subject,
                ack_policy=AckPolicy.NONE,
                deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
                opt_start_seq=self._next,
                inactive_threshold=IDLE_CONSUMER_S,
                mem_storage=True,
                num_replicas=1,
                metadata=self._metadata,
            ),
        )
        self._subscription = await self._bus.client.subscribe(self._bus.client.new_inbox(), cb=self._arrive)

    async def _arrive(self, message: Msg) -> None:
        status = JetStreamContext.is_status_msg(message)
        if status is None:
            self._wanted -= 1
            self._arrived.append(message)
        elif status in (StatusCode.NO_MESSAGES, StatusCode.REQUEST_TIMEOUT):
            self._wanted = 0
        else:
            self._interruption = f"{status} {(message.headers or {}).get(Header.DESCRIPTION, '')}".rstrip()
        self._wake.set()

    async def _pull(self, batch: int) -> None:
        assert self._subscription is not None
        request = json.dumps({"batch": batch, "expires": int(LOST_AFTER_S * 1e9)}).encode()
        self._wanted = batch
        self._open_until = time.monotonic() + LOST_AFTER_S + GRACE_S
        where = f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{self._name}"
        await self._bus.client.publish(where, request, reply=self._subscription.subject)

    async def _wait(self, batch: int, timeout_s: float) -> None:
        """Returns once messages have arrived, or after `timeout_s` seconds."""
        deadline = time.monotonic() + timeout_s
        if self._subscription is not None and self._bus.client.stats["reconnects"] != self._reconnects:
            # The connection that broke took along the request and what was under way.
            await self.close()
        if self._subscription is None:
            await self._subscribe()
        while not self._arrived:
            self._wake.clear()
            if self._interruption:
                raise _InterruptedError(self._interruption)
            left = deadline - time.monotonic()
            if left <= 0:
                return
            if self._wanted <= 0 or time.monotonic() > self._open_until:
                await self._pull(batch)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._wake.wait()

    async def close(self) -> None:
        """Deletes the consumer; the next read makes a new one."""
        if await self._forget():
            # What cannot be deleted now, the server forgets by itself.
            with contextlib.suppress(*TRANSIENT_ERRORS, nats.errors.Error):
                await self._bus.js.delete_consumer(self._stream, self._name)

    async def _forget(self) -> bool:
        """Leaves the consumer to the server, which may be gone with it; whether there was one to delete."""
        if self._subscription is None:
            return False
        subscription, self._subscription = self._subscription, None
        self._arrived.clear()
        if not self._bus.client.is_closed:
            # Also while it reconnects: the client would subscribe again, and deliver what the next consumer brings as well.
            await subscription.unsubscribe()
        return self._bus.client.is_connected

    async def read(self, batch: int, timeout_s: float) -> list[tuple[int, bytes]]:
        """Returns the next messages as (sequence, data), at most `batch`.

        The list is empty when none came within `timeout_s`.
        """
        try:
            await self._wait(batch, timeout_s)
        except (*TRANSIENT_ERRORS, nats.js.errors.APIError, _InterruptedError) as error:
            log.warning("reading interrupted, will resume", stream=self._stream, at=self._next, error=str(error))
            await self._forget()
            await asyncio.sleep(min(timeout_s, 0.5))
            return []
        if not self._arrived:
            if time.monotonic() - self._heard > LOST_AFTER_S:
                await self._look_for_losses()
            return []
        self._heard = time.monotonic()
        read: list[tuple[int, bytes]] = []
        while self._arrived and len(read) < batch:
            message = self._arrived.popleft()
            in_stream, in_consumer = _sequences(message.reply)
            if in_consumer != self._delivered + 1:
                log.warning("hole in the deliveries, reading again", stream=self._stream, at=self._next)
                await self.close()
                break
            self._delivered = in_consumer
            if in_stream >= self._next:
                read.append((in_stream, message.data))
                self._next = in_stream + 1
        return read

    async def exhausted(self) -> bool:
        """Returns whether everything that the stream holds now has been read; False where that cannot be told."""
        sent = await self._sent()
        return sent is not None and sent == (self._delivered, 0)

    async def _look_for_losses(self) -> None:
        self._heard = time.monotonic()
        sent = await self._sent()
        if sent is None:
            await self._forget()
        elif sent[0] > self._delivered:
            log.warning("deliveries were lost, reading again", stream=self._stream, at=self._next)
            await self.close()

    async def _sent(self) -> tuple[int, int] | None:
        """Returns how many messages the server has sent to this consumer and how many are left.

        Returns None where the server does not say.
        """
        if self._subscription is None:
            return None
        try:
            info = await self._bus.js.consumer_info(self._stream, self._name)
        except (*TRANSIENT_ERRORS, nats.js.errors.NotFoundError):
            return None
        return (info.delivered.consumer_seq or 0) if info.delivered else 0, info.num_pending or 0

    async def everything(self, end: int, batch: int = 256) -> AsyncGenerator[tuple[int, bytes]]:
        """Yields all messages from where this reader is to sequence `end`, that of a message on its subject.

        Only that sequence says where the end is: a copy of the stream that lags behind holds nothing more before it.
        Raises UnreadError where nothing came for `bus.timeout_s` seconds.
        """
        heard = time.monotonic()
        while self._next <= end:
            if messages := await self.read(batch, timeout_s=0.25):
                for message in messages:
                    if message[0] <= end:
                        yield message
                heard = time.monotonic()
            elif (silence := time.monotonic() - heard) > self._bus.config.timeout_s:
                raise UnreadError(
                    f"{self._stream} at {self._bus.address.url} gave nothing from message {self._next} on for "
                    f"{silence:.0f} s, and message {end} is there"
                )

    async def follow(self, batch: int = 100, timeout_s: float = 1.0) -> AsyncIterator[tuple[int, bytes]]:
        """Yields all messages, past and to come, until cancelled."""
        while True:
            for item in await self.read(batch, timeout_s):
                yield item


def _sequences(reply: str) -> tuple[int, int]:
    """Returns a delivery's sequences: in its stream, and of its consumer.

    The subject to acknowledge it ends with ...STREAM-SEQUENCE.CONSUMER-SEQUENCE.TIME.PENDING, and has one more part after
    them in the form that names a domain (ADR-15). `Msg.metadata` reads all of it, for several times the work.
    """
    parts = reply.split(".")
    first = 5 if len(parts) == 9 else 7
    return int(parts[first]), int(parts[first + 1])

"""Reading a stream as a log: every message once, in order, from any sequence on.

    read ──▶ request: up to so many messages, and bytes, from the next unread sequence on
         ◀── messages, each with its sequence and that of the one before it, and the end of the batch
         ──▶ nothing there yet: ask again, soon at first and then every `LONGEST_PAUSE_S`

Reading leaves nothing behind at the server, no consumer: what a reader is due follows from its position alone. So whatever
interrupts it (a server that restarts, a connection that breaks, a message that is lost under way) costs a new request, and
nobody needs the right to make consumers, who could have the server write anywhere (`bus.permissions`). One request is open
at a time, so no more messages are held here than the last `read` asked for.

Any copy of a replicated stream may answer. One that lags behind gives less, and the next request the rest.

Cost: a request for every batch, of up to `BATCH_BYTES`; four a second while nothing comes.
"""

import asyncio
import contextlib
import json
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from typing import NamedTuple

import nats.js.errors
import structlog
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js.api import Header, StatusCode

from bus.connection import TRANSIENT_ERRORS, Bus, UnreadError

log = structlog.get_logger()

BATCH_BYTES = 8 * 2**20
"""Bytes that are asked for together: a server disconnects a reader for which it must keep much."""
LOST_AFTER_S = 5.0
"""Silence within a batch after which it is taken for lost."""
FIRST_PAUSE_S = 0.01
LONGEST_PAUSE_S = 0.25
"""Longest time between two requests while nothing comes: so long may a message lie unread."""
INTERRUPTED_PAUSE_S = 0.5
GRACE_S = 1.0
"""A caller that was away for longer first has the time to hear what came meanwhile."""

SUBJECT = "Nats-Subject"
SEQUENCE = "Nats-Sequence"
SEQUENCE_BEFORE = "Nats-Last-Sequence"
"""Headers of a message in a batch (ADR-31): its subject, its sequence, and that of the one before it in the batch (0 for the
first)."""
END_OF_BATCH = "204"


class _InterruptedError(Exception):
    """The batch did not come as it should: it is asked for again."""


class Entry(NamedTuple):
    """A message of a stream. Who may write to `subject` is certain, whatever `data` says (`bus.permissions`)."""

    sequence: int
    subject: str
    data: bytes


class LogReader:
    """Reads `subject` of `stream` from sequence `start` on."""

    def __init__(self, bus: Bus, stream: str, subject: str, start: int = 1) -> None:
        self._bus = bus
        self._stream = stream
        self._subject = subject
        self._next = start
        self._arrived: deque[Entry] = deque()
        self._wake = asyncio.Event()
        self._subscription: Subscription | None = None
        self._requests = 0
        self._open = ""
        """The subject to which the open request is answered; empty while none is open."""
        self._open_until = 0.0
        self._last = 0
        """Sequence of the message that came last of the open batch."""
        self._reconnects = 0
        self._pause_s = 0.0
        """Time between the last request and the next one."""
        self._ask_at = self._waited_at = 0.0
        self._interruption = ""

    @property
    def position(self) -> int:
        """Returns the sequence up to which the stream was read."""
        return self._next - 1

    async def _arrive(self, message: Msg) -> None:
        if message.subject != self._open:
            # Of a batch that was given up.
            return
        headers = message.headers or {}
        status = headers.get(Header.STATUS)
        self._open_until = time.monotonic() + LOST_AFTER_S
        # The server writes its headers last, so they win over any that the writer of a message gave it.
        if (SEQUENCE in headers or status == END_OF_BATCH) and headers.get(SEQUENCE_BEFORE) != str(self._last):
            self._interrupt(f"what came after message {self._last} was lost under way")
        elif SEQUENCE in headers:
            self._last = int(headers[SEQUENCE])
            self._arrived.append(Entry(self._last, headers[SUBJECT], message.data))
        elif status == END_OF_BATCH:
            self._end(0.0)
        elif status == StatusCode.NO_MESSAGES:
            self._end(min(max(2 * self._pause_s, FIRST_PAUSE_S), LONGEST_PAUSE_S))
        else:
            self._interrupt(f"{status} {headers.get(Header.DESCRIPTION, '')}".rstrip())
        self._wake.set()

    def _interrupt(self, reason: str) -> None:
        self._interruption = reason
        self._end(INTERRUPTED_PAUSE_S)

    def _end(self, pause_s: float) -> None:
        """Ends the open request; the next one comes in `pause_s` seconds."""
        self._open = ""
        self._pause_s = pause_s
        self._ask_at = time.monotonic() + pause_s

    async def _ask(self, batch: int) -> None:
        client = self._bus.client
        if self._subscription is None:
            self._subscription = await client.subscribe(f"{client.new_inbox()}.*", cb=self._arrive)
        self._requests += 1
        self._reconnects = client.stats["reconnects"]
        self._last = 0
        self._open = self._subscription.subject.replace("*", str(self._requests))
        self._open_until = time.monotonic() + LOST_AFTER_S
        request = {"seq": self._next, "next_by_subj": self._subject, "batch": batch, "max_bytes": BATCH_BYTES}
        await client.publish(f"$JS.API.DIRECT.GET.{self._stream}", json.dumps(request).encode(), reply=self._open)

    async def _wait(self, batch: int, timeout_s: float) -> None:
        """Returns once messages have arrived, or after `timeout_s` seconds."""
        now = time.monotonic()
        deadline = now + timeout_s
        if now > self._waited_at + GRACE_S:
            self._open_until = max(self._open_until, now + GRACE_S)
        while not self._arrived:
            self._waited_at = time.monotonic()
            self._wake.clear()
            if self._interruption:
                reason, self._interruption = self._interruption, ""
                raise _InterruptedError(reason)
            now = time.monotonic()
            if self._open and (now > self._open_until or self._bus.client.stats["reconnects"] != self._reconnects):
                # The connection that broke took along the request and what was under way.
                self._interrupt("no answer")
                continue
            if now >= deadline:
                return
            wake_at = self._open_until if self._open else self._ask_at
            if not self._open and now >= self._ask_at:
                if self._bus.client.is_connected:
                    await self._ask(batch)
                    continue
                # The client would keep the request, and send it once it is back.
                wake_at = now + LONGEST_PAUSE_S
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, min(deadline, wake_at) - now)):
                    await self._wake.wait()

    async def close(self) -> None:
        """Ends the subscription; the next read makes a new one."""
        subscription, self._subscription = self._subscription, None
        self._open = ""
        self._arrived.clear()
        if subscription is not None and not self._bus.client.is_closed:
            await subscription.unsubscribe()

    async def read(self, batch: int, timeout_s: float) -> list[tuple[int, bytes]]:
        """Returns the next messages as (sequence, data), at most `batch`.

        The list is empty when none came within `timeout_s`.
        """
        return [(entry.sequence, entry.data) for entry in await self.entries(batch, timeout_s)]

    async def entries(self, batch: int, timeout_s: float) -> list[Entry]:
        """Returns what `read` does, with subjects."""
        try:
            await self._wait(batch, timeout_s)
        except (*TRANSIENT_ERRORS, _InterruptedError) as error:
            log.warning("reading interrupted, will resume", stream=self._stream, at=self._next, error=str(error))
            self._end(INTERRUPTED_PAUSE_S)
            return []
        read = [self._arrived.popleft() for _ in range(min(batch, len(self._arrived)))]
        if read:
            self._next = read[-1].sequence + 1
        return read

    async def exhausted(self) -> bool:
        """Returns whether the stream holds no further message; False where that cannot be told.

        Its leader says so: a copy that lags behind would say it too early.
        """
        if self._arrived or self._open:
            return False
        try:
            await self._bus.js.get_msg(self._stream, seq=self._next, subject=self._subject, next=True)
        except nats.js.errors.NotFoundError:
            return not self._arrived
        except (*TRANSIENT_ERRORS, nats.js.errors.APIError):
            return False
        return False

    async def everything(self, end: int, batch: int = 256) -> AsyncGenerator[Entry]:
        """Yields all messages from where this reader is to sequence `end`, that of a message on its subject.

        Only that sequence says where the end is: a copy of the stream that lags behind holds nothing more before it.
        Raises UnreadError where nothing came for `bus.timeout_s` seconds.
        """
        heard = time.monotonic()
        while self._next <= end:
            if entries := await self.entries(batch, timeout_s=0.25):
                for entry in entries:
                    if entry.sequence <= end:
                        yield entry
                heard = time.monotonic()
            elif (silence := time.monotonic() - heard) > self._bus.config.timeout_s:
                raise UnreadError(
                    f"{self._stream} at {self._bus.address.url} gave nothing from message {self._next} on for "
                    f"{silence:.0f} s, and message {end} is there"
                )

    async def follow(self, batch: int = 100, timeout_s: float = 1.0) -> AsyncIterator[Entry]:
        """Yields all messages, past and to come, until cancelled."""
        while True:
            for entry in await self.entries(batch, timeout_s):
                yield entry

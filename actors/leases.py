"""The actor's hold on tickets: leases that are kept alive, hand-backs, acknowledgements.

There are two streams: new tickets, and tickets that are offered again (handed back, or issued again by the learner). All
actors share one durable consumer of each. A ticket is pulled only when there is a slot for it. Its lease is renewed while it
runs. It is acknowledged only after its result, or its copy among the retries, is stored; otherwise another actor gets it.
"""

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import nats.errors
import nats.js.errors
import structlog
from nats.aio.msg import Msg
from nats.js import JetStreamContext

from bus.codec import MessageError, decode
from bus.connection import TRANSIENT_ERRORS, Bus, BusError
from bus.messages import Ticket
from bus.streams import ACTOR_CONSUMER
from runtime.clock import boot_time

log = structlog.get_logger()

RETRIES_EVERY_S = 2.0
"""How often an actor with room looks for tickets that are offered once more: so long is one handed back at least."""
FAILURES = "Zerotir-Failures"
"""Header of a ticket among the retries: see `LeasedTicket.failures`."""


class LeasedTicket:
    """A ticket that this actor holds."""

    def __init__(self, message: Msg, ticket: Ticket, bus: Bus, lease_s: float) -> None:
        self._message = message
        self._bus = bus
        self._lease_s = lease_s
        self._renewed_at = boot_time()
        self._lapsed = False
        self.ticket = ticket
        self.failures: int = _failures_before(message) + (message.metadata.num_delivered or 1) - 1
        """How often an actor vanished with this ticket, or failed at it. Hand-backs for want of something do not count."""

    @property
    def lapsed(self) -> bool:
        """Returns whether the lease has run out at some time, suspension of the machine counted: another actor may hold the
        ticket as well."""
        return self._lapsed or boot_time() - self._renewed_at > self._lease_s

    @contextlib.asynccontextmanager
    async def kept_alive(self) -> AsyncIterator[None]:
        """Renews the lease three times per period while the body runs."""

        async def renew() -> None:
            while True:
                await asyncio.sleep(self._lease_s / 3)
                self._lapsed = self.lapsed
                if self._bus.client.is_connected:
                    await self._tell(self._message.in_progress)
                    self._renewed_at = boot_time()

        renewing = asyncio.create_task(renew())
        try:
            yield
        finally:
            renewing.cancel()

    async def done(self) -> None:
        """Takes the ticket off its stream: the result is stored."""
        await self._tell(self._message.ack)

    async def hand_back(self) -> None:
        """Offers the ticket to all actors again, with its `failures` so far."""

        async def offer_again() -> None:
            subject = self._bus.names.retry(self.ticket.number)
            await self._bus.publish(subject, self.ticket, {FAILURES: str(self.failures)})
            await self._message.ack()

        await self._tell(offer_again)

    async def _tell(self, action: Callable[[], Awaitable[object]]) -> None:
        try:
            await action()
        except (*TRANSIENT_ERRORS, nats.errors.Error) as error:
            # The lease runs out by itself, and the learner ignores a second result: nothing is lost or doubled.
            log.warning("could not settle a ticket with the bus", ticket=self.ticket.number, error=str(error))


def _failures_before(message: Msg) -> int:
    """Returns the `failures` that its header says. Raises MessageError where that is no such number."""
    text = (message.headers or {}).get(FAILURES, "0")
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise MessageError(f"the header {FAILURES} is {text[:40]!r}")
    return int(text)


class TicketSource:
    """Pulls tickets from the consumers that all actors share; the leases are as long as those say."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._new = _Queue(bus, "TICKETS")
        self._retries = _Queue(bus, "RETRIES")
        self._look_at = 0.0
        self._refused_since: float | None = None

    async def pull(self, count: int, timeout_s: float) -> list[LeasedTicket]:
        """Returns at most `count` tickets; an empty list when none came within `timeout_s`.

        Raises BusError when the server has refused to give any for `bus.reconnect_s` seconds.
        """
        try:
            leased = []
            if time.monotonic() >= self._look_at:
                leased = await self._retries.pull(count, timeout_s=RETRIES_EVERY_S / 20)
                self._look_at = time.monotonic() + (0.0 if leased else RETRIES_EVERY_S)
            leased = leased or await self._new.pull(count, timeout_s)
        except (*TRANSIENT_ERRORS, nats.js.errors.APIError) as error:
            # A server that stops, a new leader: repaired by new subscriptions; a consumer that is gone, by `zerotir bus`.
            log.warning("cannot pull tickets, will try again", error=str(error))
            await self._resubscribe(error)
            await asyncio.sleep(min(timeout_s, 0.5))
            return []
        self._refused_since = None
        return leased

    async def _resubscribe(self, error: Exception) -> None:
        now = time.monotonic()
        self._refused_since = self._refused_since or now
        if now - self._refused_since > self._bus.config.reconnect_s:
            raise BusError(
                f"no tickets from {self._bus.names.tickets} at {self._bus.address.url} for "
                f"{now - self._refused_since:.0f} s: {error}"
            ) from error
        await self._new.forget()
        await self._retries.forget()


class _Queue:
    """One of the two streams of tickets."""

    def __init__(self, bus: Bus, kind: str) -> None:
        self._bus = bus
        self._stream = bus.names.stream(kind)
        self._subscription: JetStreamContext.PullSubscription | None = None
        self._lease_s = 0.0
        self._reconnects = 0

    async def pull(self, count: int, timeout_s: float) -> list[LeasedTicket]:
        """Returns at most `count` tickets. Raises what nats-py raises, but for a time-out."""
        if not self._bus.client.is_connected:
            # The client would keep the request and send it once it is back: tickets would go to nobody, for a whole lease.
            await asyncio.sleep(min(timeout_s, 0.5))
            return []
        if self._bus.client.stats["reconnects"] != self._reconnects:
            # Whoever started the server again may have changed the leases.
            await self.forget()
        if self._subscription is None:
            self._reconnects = self._bus.client.stats["reconnects"]
            info = await self._bus.js.consumer_info(self._stream, ACTOR_CONSUMER)
            self._lease_s = info.config.ack_wait or 0.0
            self._subscription = await self._bus.js.pull_subscribe_bind(ACTOR_CONSUMER, self._stream)
        try:
            messages = await self._subscription.fetch(count, timeout=timeout_s)
        except TimeoutError:
            # Nothing there, or the bus is away: that ends by itself, or by `Bus.lost`.
            return []
        leased = []
        for message in messages:
            if not message.reply.startswith("$JS.ACK."):
                log.warning("not a message of the ticket stream", stream=self._stream, subject=message.subject)
                continue
            try:
                leased.append(LeasedTicket(message, decode(message.data, Ticket), self._bus, self._lease_s))
            except MessageError as error:
                # Actors of another version do not get this far: it is damaged, and the learner issues it anew.
                await self._bus.dead_letter(self._stream, message.metadata.sequence.stream, message.data, str(error))
                await message.ack()
        return leased

    async def forget(self) -> None:
        """Ends the subscription: the next pull subscribes again."""
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            with contextlib.suppress(nats.errors.Error):
                await subscription.unsubscribe()

"""The actor's hold on the ticket stream: leases that are kept alive, hand-backs, acknowledgements.

All actors share one durable consumer. A ticket is pulled only when there is room to run it, its lease is renewed while it
runs, and it is acknowledged only after its result is stored; otherwise another actor gets it.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import nats.errors
import nats.js.errors
import structlog
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig

from bus.codec import MessageError, decode
from bus.connection import TRANSIENT_ERRORS, Bus, BusError
from bus.messages import Ticket
from bus.streams import ACTOR_CONSUMER

log = structlog.get_logger()

HAND_BACK_DELAY_S = 2.0
MAX_ACK_PENDING = 100_000
"""Above any backlog that admission allows: staleness bounds outstanding work, not the consumer."""


UNREADABLE_DELAY_S = 5.0
"""After which a ticket that this actor could not read is offered again."""


class LeasedTicket:
    """A ticket that this actor holds."""

    def __init__(self, message: Msg, ticket: Ticket, bus: Bus, lease_s: float) -> None:
        self._message = message
        self._bus = bus
        self._lease_s = lease_s
        self._renewed_at = time.monotonic()
        self._lapsed = False
        self.ticket = ticket
        self.deliveries: int = message.metadata.num_delivered or 1

    @property
    def lapsed(self) -> bool:
        """The lease ran out at some time (a suspended process, a lost bus): another actor may hold the ticket as well."""
        return self._lapsed or time.monotonic() - self._renewed_at > self._lease_s

    @contextlib.asynccontextmanager
    async def kept_alive(self) -> AsyncIterator[None]:
        """Renews the lease three times per period while the body runs."""

        async def renew() -> None:
            while True:
                await asyncio.sleep(self._lease_s / 3)
                self._lapsed = self.lapsed
                if self._bus.client.is_connected:
                    await self._tell(self._message.in_progress)
                    self._renewed_at = time.monotonic()

        renewing = asyncio.create_task(renew())
        try:
            yield
        finally:
            renewing.cancel()

    async def done(self) -> None:
        """The result is stored: the ticket leaves the stream."""
        await self._tell(self._message.ack)

    async def hand_back(self, delay_s: float = HAND_BACK_DELAY_S) -> None:
        """Another actor, or this one later, gets it."""

        async def nak() -> None:
            await self._message.nak(delay=delay_s)

        await self._tell(nak)

    async def _tell(self, action: Callable[[], Awaitable[object]]) -> None:
        try:
            await action()
        except nats.errors.Error as error:
            # The lease runs out by itself, and the learner ignores a second result: nothing is lost or doubled.
            log.warning("could not settle a ticket with the bus", ticket=self.ticket.number, error=str(error))


class TicketSource:
    """Pulls tickets from the consumer that all actors share."""

    def __init__(self, bus: Bus, lease_s: float) -> None:
        self._bus = bus
        self._lease_s = lease_s
        self._subscription: JetStreamContext.PullSubscription | None = None
        self._refused_since: float | None = None

    async def pull(self, room: int, timeout_s: float) -> list[LeasedTicket]:
        """At most `room` tickets; an empty list when none came within `timeout_s`.

        Raises BusError when the server has refused to give any for `bus.reconnect_s` seconds.
        """
        try:
            if self._subscription is None:
                self._subscription = await self._subscribe()
            messages = await self._subscription.fetch(room, timeout=timeout_s)
        except TimeoutError:
            # Nothing there, or the bus is away: that ends by itself, or by `Bus.lost`.
            if not self._bus.client.is_connected:
                await asyncio.sleep(min(timeout_s, 0.5))
            return []
        except (*TRANSIENT_ERRORS, nats.js.errors.APIError) as error:
            # A server that stops, a new leader, a consumer that was deleted: all mended by a new subscription.
            log.warning("cannot pull tickets, will try again", error=str(error))
            await self._resubscribe(error)
            await asyncio.sleep(min(timeout_s, 0.5))
            return []
        self._refused_since = None
        leased = []
        for message in messages:
            try:
                leased.append(LeasedTicket(message, decode(message.data, Ticket), self._bus, self._lease_s))
            except MessageError as error:
                # An actor of another version may be able to read it: only the first sight of it is told.
                if message.metadata.num_delivered == 1:
                    stream = self._bus.names.stream("TICKETS")
                    await self._bus.bury(stream, message.metadata.sequence.stream, message.data, str(error))
                await message.nak(delay=UNREADABLE_DELAY_S)
        return leased

    async def _resubscribe(self, error: Exception) -> None:
        now = time.monotonic()
        self._refused_since = self._refused_since or now
        if now - self._refused_since > self._bus.config.reconnect_s:
            raise BusError(
                f"no tickets from {self._bus.names.tickets} at {self._bus.address.url} for "
                f"{now - self._refused_since:.0f} s: {error}"
            ) from error
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            with contextlib.suppress(nats.errors.Error):
                await subscription.unsubscribe()

    async def _subscribe(self) -> JetStreamContext.PullSubscription:
        return await self._bus.js.pull_subscribe(
            self._bus.names.tickets,
            durable=ACTOR_CONSUMER,
            stream=self._bus.names.stream("TICKETS"),
            config=ConsumerConfig(
                ack_policy=AckPolicy.EXPLICIT,
                ack_wait=self._lease_s,
                max_deliver=-1,
                max_ack_pending=MAX_ACK_PENDING,
            ),
        )

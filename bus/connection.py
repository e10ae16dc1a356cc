"""One role's connection to a run's bus.

`open_bus` yields a `Bus` or raises `BusError` within a bound. A bus that goes away is tried again for
`bus.reconnect_s` seconds; then `Bus.lost` is set, and whoever runs the role ends it with an error. What the role's
credentials do not allow ends the `async with` block at once, with `AccessDeniedError`: it would fail again, every time.
"""

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterator

import nats
import nats.errors
import nats.js.errors
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext

from bus.address import BusAddress
from bus.clock import RunClock
from bus.codec import Message, encode
from bus.messages import DeadLetter
from bus.store import Store
from bus.streams import Names
from configs.bus import BusConfig
from configs.errors import UserError
from runtime.retry import Backoff

log = structlog.get_logger()

RECONNECT_WAIT_S = 1
PENDING_BYTES = 64 * 1024**2

STREAM_FULL = 10077
WRONG_LAST_SEQUENCE = (10071, 10164)

TRANSIENT_ERRORS = (
    TimeoutError,
    nats.errors.NoRespondersError,
    nats.errors.ConnectionReconnectingError,
    nats.errors.OutboundBufferLimitError,
    nats.js.errors.NoStreamResponseError,
    nats.js.errors.ServiceUnavailableError,
)
"""What a request raises while the bus is away, slow or full: worth another try, never data."""

FIRST_ACKNOWLEDGEMENT_S = 2.0
"""Seconds for the acknowledgement of a first try: one that is lost on the way costs no more, and a server that needs longer
gets it twice."""
LATE_ANSWER = 'permissions violation for publish to "_r_.'
TROUBLE_S = 15.0
"""How long the bus role's word holds: three times as long as it is silent while something ails the bus."""


class BusError(RuntimeError):
    """The bus cannot be reached, or lacks what this run needs."""


class UnreadError(BusError, TimeoutError):
    """A stream did not give all that it holds in time: what came is a part, and no answer."""


class AccessDeniedError(BusError, UserError):
    """This role's credentials do not allow what it did; the text says what that was."""


def acknowledgement_timeouts(config: BusConfig) -> Iterator[float]:
    """Yields the time-outs of one try after another to store a message: doubled each time, up to `bus.timeout_s`."""
    timeout_s = FIRST_ACKNOWLEDGEMENT_S
    while True:
        yield min(timeout_s, config.timeout_s)
        timeout_s *= 2


class Bus:
    """A connection, the names of the run's streams, and bounded requests."""

    def __init__(self, client: Client, address: BusAddress, config: BusConfig, lost: asyncio.Event) -> None:
        self.client = client
        self.js: JetStreamContext = client.jetstream(timeout=config.timeout_s)
        self._store = Store(client)
        self.address = address
        self.config = config
        self.names = Names(address.run)
        self.clock = RunClock(client, self.names.stream("TICKETS"))
        self.lost = lost
        self._trouble = ("", 0.0)
        """What the bus role last said of the bus, and when."""

    async def publish(
        self, subject: str, message: Message, headers: dict[str, str] | None = None, timeout_s: float | None = None
    ) -> int:
        """Publishes to a stream and returns the sequence that it got. One try; raises what nats-py raises.

        `timeout_s` is `bus.timeout_s` unless it is given.
        """
        acknowledged = await self.js.publish(subject, encode(message), timeout=timeout_s, headers=headers)
        return acknowledged.seq

    async def publish_until_stored(
        self, subject: str, message: Message, patience_s: float, on_refusal: Callable[[], None] = lambda: None
    ) -> int:
        """Publishes again and again until the stream has it: a bus that is away or full holds the caller back.

        `on_refusal` is called whenever it was not taken. Raises BusError after `patience_s` seconds, or once the bus is
        lost for good. The message may be stored twice; readers take the first.
        """
        data = encode(message)
        backoff = Backoff(patience_s, 0.2, 5.0)
        timeouts = acknowledgement_timeouts(self.config)
        while True:
            try:
                if not self.client.is_connected:
                    # The client would keep every try in its buffer, and send them all once it is back.
                    raise nats.errors.ConnectionReconnectingError
                return await self._store.put(subject, data, next(timeouts))
            except (*TRANSIENT_ERRORS, nats.errors.ConnectionClosedError) as error:
                on_refusal()
                if backoff.over or self.lost.is_set():
                    raise BusError(
                        f"could not store a message on {subject} at {self.address.url} in {patience_s:.0f} s "
                        f"({type(error).__name__}: {error}): "
                        f"{self.trouble or 'is the server up, and a learner that makes room?'}"
                    ) from error
                log.warning("publish refused, will try again", subject=subject, error=self.trouble or str(error))
                await backoff.pause()

    async def skip_to(self, kind: str, sequence: int) -> None:
        """Empties a stream that has lost messages, so that the next one is message `sequence`.

        So sequences never go back, and whoever has read the stream before goes on where it was. Raises BusError where that
        cannot be done in `bus.reconnect_s` seconds.
        """
        stream = self.names.stream(kind)
        backoff = Backoff(self.config.reconnect_s)
        while True:
            try:
                await self.js.purge_stream(stream, seq=sequence)
                return
            except (*TRANSIENT_ERRORS, nats.js.errors.APIError) as error:
                if backoff.over or self.lost.is_set():
                    raise BusError(
                        f"{stream} at {self.address.url} cannot go on with message {sequence} after its loss: {error}"
                    ) from error
                log.warning("a stream cannot go on yet, will try again", stream=stream, error=str(error))
            await backoff.pause()

    async def dead_letter(self, stream: str, sequence: int, data: bytes, reason: str) -> None:
        """Copies a bad message to the dead letters, for people; never stops the caller, also where the bus is away."""
        log.warning("bad message", stream=stream, sequence=sequence, reason=reason)
        most = min(1024**2, self.client.max_payload // 2)
        letter = DeadLetter(stream=stream, sequence=sequence, reason=reason[:2000], data=data[:most])
        with contextlib.suppress(nats.errors.Error):
            await self.client.publish(self.names.dead_letter(self.address.role), encode(letter))

    @property
    def trouble(self) -> str:
        """Returns what the bus role has said of the bus in the last `TROUBLE_S` seconds; empty while all is well."""
        text, heard = self._trouble
        return text if time.monotonic() - heard < TROUBLE_S else ""

    async def tell_trouble(self, text: str) -> None:
        """Tells all roles what ails the bus; for the bus role, which says it again while it lasts."""
        with contextlib.suppress(nats.errors.Error):
            await self.client.publish(self.names.trouble, text.encode())

    async def hear_trouble(self) -> None:
        """Keeps in `trouble` what the bus role says from now on, and logs it once."""

        async def hear(message: Msg) -> None:
            text = message.data.decode(errors="replace")[:500]
            if not self.trouble:
                log.error(text)
            self._trouble = (text, time.monotonic())

        await self.client.subscribe(self.names.trouble, cb=hear)

    def require_connection(self) -> None:
        """Raises BusError once the bus is lost: the client has given up after `bus.reconnect_s` seconds."""
        if self.lost.is_set():
            raise self.lost_error()

    def lost_error(self) -> BusError:
        """Returns the error of a bus that is lost."""
        return BusError(f"the bus at {self.address.url} did not come back in {self.config.reconnect_s:.0f} s")

    async def require_streams(self) -> None:
        """Raises BusError unless the run's streams are there."""
        try:
            await self.js.stream_info(self.names.stream("TICKETS"))
        except nats.js.errors.NotFoundError:
            raise BusError(
                f"the server at {self.address.url} has no run {self.address.run!r}: start `zerotir bus` for it first"
            ) from None


async def connect(
    address: BusAddress, config: BusConfig, name: str, on_denied: Callable[[str], None]
) -> tuple[Client, asyncio.Event]:
    """Connects, or raises BusError within `bus.timeout_s`; the event is set once the connection is lost for good.

    `on_denied` is told what the server refused for want of permission.
    """
    lost = asyncio.Event()
    servers = address.url.split(",")

    async def on_closed() -> None:
        lost.set()

    async def on_disconnected() -> None:
        if not client.is_closed:
            log.warning("bus disconnected", url=address.url)

    async def on_reconnected() -> None:
        log.info("bus reconnected", url=client.connected_url.netloc if client.connected_url else address.url)

    async def on_error(error: Exception) -> None:
        if LATE_ANSWER in str(error).lower():
            # The right to answer a request ends with the connection that it came by, and after its time.
            log.warning("an answer came too late", error=str(error))
        elif "permissions violation" in str(error):
            log.error("refused by the bus", role=address.role, error=str(error))
            on_denied(str(error).removeprefix("nats: "))
        else:
            log.warning("bus error", error=f"{type(error).__name__}: {error}")

    client = Client()
    try:
        async with asyncio.timeout(config.timeout_s):
            await client.connect(
                servers=servers,
                name=name,
                nkeys_seed_str=address.seed,
                inbox_prefix=f"_INBOX.{address.role}",
                tls=_tls(address),
                # A server that takes no TLS then cannot be talked to by mistake.
                tls_handshake_first=address.tls.ca is not None,
                connect_timeout=5,
                reconnect_time_wait=RECONNECT_WAIT_S,
                max_reconnect_attempts=max(1, int(config.reconnect_s / RECONNECT_WAIT_S / len(servers))),
                pending_size=PENDING_BYTES,
                ping_interval=20,
                error_cb=on_error,
                closed_cb=on_closed,
                disconnected_cb=on_disconnected,
                reconnected_cb=on_reconnected,
            )
    except (TimeoutError, OSError, nats.errors.Error) as error:
        await client.close()
        raise BusError(
            f"no bus at {address.url} ({type(error).__name__}: {error}): is the run of this bus.json still up?"
        ) from error
    return client, lost


def _tls(address: BusAddress) -> ssl.SSLContext | None:
    """Returns the TLS context, None without TLS. Raises BusError where a file is not usable."""
    files = address.tls
    if files.ca is None:
        return None
    try:
        context = ssl.create_default_context(cafile=files.ca)
        if files.certificate is not None:
            context.load_cert_chain(files.certificate, files.key)
    except OSError as error:
        named = [path for path in (files.ca, files.certificate, files.key) if path]
        raise BusError(f"bus.tls: {', '.join(named)}: {error}") from error
    return context


def _only_closed(error: Exception) -> bool:
    """Returns whether nothing but a bus that is lost is at fault: everyone who waits for it raises at the same time."""
    if isinstance(error, ExceptionGroup):
        return all(_only_closed(each) for each in error.exceptions)
    return isinstance(error, nats.errors.ConnectionClosedError | BusError)


@contextlib.asynccontextmanager
async def open_bus(address: BusAddress, config: BusConfig, name: str) -> AsyncIterator[Bus]:
    """Yields a connected `Bus` whose buffered messages are flushed at the end.

    Raises BusError where there is none, and AccessDeniedError, in the middle of whatever is awaited, once the server
    refuses something that the role is not allowed. A bus that is lost for good ends the block with BusError, whatever the
    client raised.
    """
    denied: list[str] = []
    try:
        async with asyncio.timeout(None) as until_denied:

            def on_denied(what: str) -> None:
                if not denied:
                    until_denied.reschedule(0)
                denied.append(what)

            client, lost = await connect(address, config, name, on_denied)
            try:
                bus = Bus(client, address, config, lost)
                await bus.hear_trouble()
                await bus.clock.read(config.timeout_s)
                keeping_time = asyncio.create_task(bus.clock.keep(config.timeout_s))
                try:
                    yield bus
                except (nats.errors.ConnectionClosedError, ExceptionGroup) as error:
                    if lost.is_set() and _only_closed(error):
                        raise bus.lost_error() from error
                    raise
                finally:
                    keeping_time.cancel()
            finally:
                with contextlib.suppress(nats.errors.Error, TimeoutError):
                    if client.is_connected:
                        await client.flush(timeout=2)
                # What is still to be sent over a connection that broke makes CPython 3.12 raise a TypeError, and the client
                # an AttributeError while it connects again: these must not take the place of the error that ends the role.
                with contextlib.suppress(TypeError, AttributeError):
                    await client.close()
    except TimeoutError as error:
        if not denied:
            raise
        raise AccessDeniedError(
            f"role {address.role} of run {address.run} is not allowed this ({denied[0]}): use the credentials of the role "
            "that does it; `bus/permissions.py` lists what each may do"
        ) from error

"""Presence: every role writes its `Presence` to a bucket whose entries expire."""

import asyncio
import os
import socket
from dataclasses import dataclass, field

import nats.errors
import nats.js.errors
import structlog

from bus.buckets import entries
from bus.codec import MessageError, decode, encode
from bus.connection import TRANSIENT_ERRORS, Bus
from bus.messages import Metrics, Presence
from bus.permissions import ENGINES
from bus.streams import ALIVE_TTL_S
from runtime.terminal import printable

log = structlog.get_logger()

PATIENCE_S = 5.0
"""Seconds for one entry to be written: a role that stops does not wait for a bus that goes away as well."""


@dataclass
class Announcer:
    """Holds what a role says of itself and says it every few seconds."""

    bus: Bus
    role: str
    id: str
    state: str = "starting"
    version: str = ""
    in_flight: int = 0
    rates: dict[str, float] = field(default_factory=dict)

    async def say(self, state: str) -> None:
        """Changes the state and announces it at once."""
        self.state = state
        log.info(state)
        await self.announce()

    async def announce(self) -> None:
        """Writes the entry once; a bus that is away is not an error here, and nobody waits for it."""
        if not self.bus.client.is_connected:
            return
        presence = Presence(
            role=self.role,
            id=self.id,
            host=socket.gethostname(),
            pid=os.getpid(),
            state=self.state[:1000],
            version=self.version,
            in_flight=self.in_flight,
            rates=self.rates,
            time=self.bus.clock.now(),
        )
        try:
            async with asyncio.timeout(PATIENCE_S):
                bucket = await self.bus.js.key_value(self.bus.names.alive_bucket)
                await bucket.put(f"{self.role}.{self.id}", encode(presence))
        except (*TRANSIENT_ERRORS, nats.js.errors.APIError, nats.errors.ConnectionClosedError) as error:
            log.warning("could not announce presence", error=str(error))

    async def run(self) -> None:
        """Announces until cancelled."""
        while True:
            await self.announce()
            await asyncio.sleep(ALIVE_TTL_S / 5)

    async def leave(self) -> None:
        """Removes the entry; where the bus is away it expires by itself."""
        if not self.bus.client.is_connected:
            return
        try:
            async with asyncio.timeout(PATIENCE_S):
                bucket = await self.bus.js.key_value(self.bus.names.alive_bucket)
                await bucket.delete(f"{self.role}.{self.id}")
        except (*TRANSIENT_ERRORS, nats.js.errors.APIError, nats.errors.ConnectionClosedError) as error:
            log.warning("could not leave the registry; the entry expires by itself", error=str(error))


async def who_is_alive(bus: Bus) -> list[Presence]:
    """Returns all entries that have not expired, by role and id. Raises TimeoutError after `bus.timeout_s` seconds."""
    # The client's listing has no bound of its own: a bus that goes away in the middle of it would hang the caller.
    async with asyncio.timeout(bus.config.timeout_s):
        return await _entries(bus)


async def any_alive(bus: Bus, role: str) -> bool:
    """Returns whether a process of `role` is alive, or was within the last `ALIVE_TTL_S` seconds; one request.

    Raises what nats-py raises.
    """
    bucket = bus.names.alive_bucket
    info = await bus.js.stream_info(f"KV_{bucket}", subjects_filter=f"$KV.{bucket}.{role}.>")
    return bool(info.state.subjects)


async def _entries(bus: Bus) -> list[Presence]:
    alive = []
    for key, value in (await entries(bus, bus.names.alive_bucket)).items():
        try:
            presence = decode(value, Presence)
            if key != f"{presence.role}.{presence.id}":
                raise MessageError(f"it says to be of {presence.role} {presence.id}")
        except MessageError as error:
            log.warning("unreadable presence", key=key, error=str(error))
            continue
        alive.append(presence)
    return sorted(alive, key=lambda presence: (presence.role, presence.id))


async def last_sign(bus: Bus, role: str) -> str:
    """Says when a process of `role` was last seen and what it was doing, for the error of whoever waited for it in vain."""
    now = bus.clock.now()
    try:
        alive = [presence for presence in await who_is_alive(bus) if presence.role == role]
        if alive:
            newest = max(alive, key=lambda presence: presence.time)
            text = f"{newest.id} on {printable(newest.host)} (one of {len(alive)} alive) was {newest.state!r}"
            return f"last sign of life: {text} {max(0.0, now - newest.time):.0f} s ago"
        if bus.address.role in ENGINES:
            return f"no {role} is alive"
        message = await bus.js.get_last_msg(bus.names.stream("METRICS"), f"{bus.names.metrics}.{role}.*")
        metrics = decode(message.data or b"", Metrics)
        return (
            f"last sign of life: {metrics.id} measured something {max(0.0, now - metrics.time):.0f} s ago and is gone"
        )
    except nats.js.errors.NotFoundError:
        return f"no {role} has given a sign of life"
    except (*TRANSIENT_ERRORS, MessageError) as error:
        return f"no sign of life can be read ({type(error).__name__}: {error})"

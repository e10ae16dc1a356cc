"""Who is alive: every role writes its `Presence` to a bucket whose entries expire."""

import asyncio
import os
import socket
import time
from dataclasses import dataclass

import nats.errors
import nats.js.errors
import structlog

from bus.codec import MessageError, decode, encode
from bus.connection import TRANSIENT_ERRORS, Bus
from bus.messages import Presence
from bus.streams import ALIVE_TTL_S

log = structlog.get_logger()


@dataclass
class Announcer:
    """Holds what a role says of itself and says it every few seconds."""

    bus: Bus
    role: str
    id: str
    state: str = "starting"
    version: str = ""
    in_flight: int = 0

    async def say(self, state: str) -> None:
        """Changes the state and announces it at once."""
        self.state = state
        log.info(state)
        await self.announce()

    async def announce(self) -> None:
        """Writes the entry once; a bus that is away is not an error here."""
        presence = Presence(
            role=self.role,
            id=self.id,
            host=socket.gethostname(),
            pid=os.getpid(),
            state=self.state,
            version=self.version,
            in_flight=self.in_flight,
            time=time.time(),
        )
        try:
            bucket = await self.bus.js.key_value(self.bus.names.alive_bucket)
            await bucket.put(f"{self.role}.{self.id}", encode(presence))
        except TRANSIENT_ERRORS as error:
            log.warning("could not announce presence", error=str(error))

    async def run(self) -> None:
        """Announces until cancelled."""
        while True:
            await self.announce()
            await asyncio.sleep(ALIVE_TTL_S / 5)

    async def leave(self) -> None:
        """Removes the entry."""
        try:
            bucket = await self.bus.js.key_value(self.bus.names.alive_bucket)
            await bucket.delete(f"{self.role}.{self.id}")
        except (*TRANSIENT_ERRORS, nats.errors.ConnectionClosedError) as error:
            log.warning("could not leave the registry; the entry expires by itself", error=str(error))


async def who_is_alive(bus: Bus) -> list[Presence]:
    """All entries that have not expired, by role and id."""
    bucket = await bus.js.key_value(bus.names.alive_bucket)
    try:
        keys = await bucket.keys()
    except nats.js.errors.NoKeysError:
        return []
    alive = []
    for key in keys:
        try:
            entry = await bucket.get(key)
            alive.append(decode(entry.value or b"", Presence))
        except nats.js.errors.KeyNotFoundError:
            continue
        except MessageError as error:
            log.warning("unreadable presence", key=key, error=str(error))
    return sorted(alive, key=lambda presence: (presence.role, presence.id))

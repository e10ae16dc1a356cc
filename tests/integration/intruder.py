"""Bad messages for a live run, from somebody who holds an actor's credentials."""

import asyncio
import time
from pathlib import Path

import nats.errors
import pytest

from bus.address import BusAddress
from bus.codec import decode
from bus.connection import open_bus
from bus.log_reader import LogReader
from bus.messages import DeadLetter
from bus.server import USUAL_MESSAGE_BYTES
from configs.bus import BusConfig
from tests.bad_results import BAD, unusable

GARBAGE = b"\xc1 is never msgpack"
PATIENCE_S = 100


def intrude(folder: Path) -> list[DeadLetter]:
    """Sends every bad result, and garbage to whoever else listens; returns the dead letters that came of it."""
    return asyncio.run(_intrude(folder))


async def _intrude(folder: Path) -> list[DeadLetter]:
    config = BusConfig(timeout_s=10)
    actor = BusAddress.read(folder / "credentials" / "actor.json")
    observer = BusAddress.read(folder / "bus.json").for_role("observer")
    async with open_bus(actor, config, "intruder") as bus, open_bus(observer, config, "reader") as other:
        sent = [data for data, _ in (BAD | unusable(actor.run)).values()]
        for data in sent:
            await bus.js.publish(bus.names.results, data)
        with pytest.raises(nats.errors.MaxPayloadError):
            await bus.js.publish(bus.names.results, bytes(USUAL_MESSAGE_BYTES + 1))
        await bus.client.publish(f"{bus.names.metrics}.actor.intruder", GARBAGE)
        await bus.client.publish(bus.names.execution, GARBAGE)
        await bus.client.publish(f"{bus.names.execution}.cancel", GARBAGE)
        await bus.client.publish(bus.names.snapshot_requests, GARBAGE)
        await bus.client.publish(f"$KV.{bus.names.alive_bucket}.actor.intruder", GARBAGE)
        reader = LogReader(other, other.names.stream("DEADLETTERS"), other.names.dead_letters)
        letters: list[DeadLetter] = []
        deadline = time.monotonic() + PATIENCE_S
        while sum(letter.stream.endswith("-RESULTS") for letter in letters) < len(sent) or len(letters) == len(sent):
            assert time.monotonic() < deadline, f"only {len(letters)} dead letters"
            letters += [decode(data, DeadLetter) for _, data in await reader.read(100, 0.5)]
        return letters

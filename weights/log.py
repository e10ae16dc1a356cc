"""Reads the weight log's manifests, as its writer and its followers do first."""

import nats.js.errors
import structlog

from bus.codec import MessageError, decode
from bus.connection import Bus
from bus.log_reader import LogReader
from bus.messages import Manifest

log = structlog.get_logger()


async def newest(bus: Bus) -> tuple[int, bytes]:
    """Returns the newest manifest as (stream sequence, bytes); (0, nothing) while there is none.

    Raises what nats-py raises.
    """
    try:
        # Not a direct get: a replica that lags would give an older head.
        message = await bus.js.get_last_msg(bus.names.stream("WEIGHTS"), bus.names.manifests)
    except nats.js.errors.NotFoundError:
        return 0, b""
    return message.seq or 0, message.data or b""


async def read_manifests(bus: Bus, start: int, end: int) -> list[tuple[int, Manifest]]:
    """Returns the readable manifests from sequence `start` to `end`, the newest one's, both included.

    Raises UnreadError where the bus does not give all of them: a part of the log may look like the log of another run.
    """
    reader = LogReader(bus, bus.names.stream("WEIGHTS"), bus.names.manifests, start)
    found: list[tuple[int, Manifest]] = []
    try:
        async for sequence, _, data in reader.everything(end):
            try:
                found.append((sequence, decode(data, Manifest)))
            except MessageError as error:
                await bus.dead_letter(bus.names.stream("WEIGHTS"), sequence, data, str(error))
    finally:
        await reader.close()
    return found

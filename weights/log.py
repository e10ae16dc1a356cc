"""Reads the weight log's manifests, as its writer and its followers do first."""

import time

import nats.js.errors
import structlog

from bus.codec import MessageError, decode
from bus.connection import Bus
from bus.log_reader import LogReader
from bus.messages import Manifest

log = structlog.get_logger()

HOLD = "zerotir-hold"
"""Metadata of a consumer that holds the stream: nothing from where it began on is purged while it is there."""


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

    What the bus does not give within `bus.timeout_s` is left out; a later call finds it.
    """
    reader = LogReader(bus, bus.names.stream("WEIGHTS"), bus.names.manifests, start)
    found: list[tuple[int, Manifest]] = []
    last = start - 1
    heard = time.monotonic()
    try:
        while last < end:
            messages = await reader.read(256, timeout_s=0.25)
            if messages:
                heard = time.monotonic()
            elif time.monotonic() - heard > bus.config.timeout_s or await reader.exhausted():
                break
            for sequence, data in messages:
                last = sequence
                try:
                    found.append((sequence, decode(data, Manifest)))
                except MessageError as error:
                    await bus.dead_letter(bus.names.stream("WEIGHTS"), sequence, data, str(error))
    finally:
        await reader.close()
    return found

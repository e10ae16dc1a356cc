"""Watches the store of an embedded server: whether it takes what it is given, and how much room there is.

nats-server (2.15) keeps the first write that fails as the state of its stream: the stream takes nothing more, also when
there is room again, until the server is started anew. It says so in its log alone; whoever publishes just gets no answer.
"""

import asyncio
import shutil
import time
from pathlib import Path

import structlog

from bus.connection import Bus
from bus.server import USUAL_MESSAGE_BYTES

log = structlog.get_logger()

FAILED = b"failed to store a msg"
"""Stands in the server's log where a stream could not write."""
LEAST_BYTES = 2 * USUAL_MESSAGE_BYTES
"""With less room a disk is full: the next message may not fit."""
LOW_SHARE = 0.05
"""Share of the disk below which its room is worth a warning."""
LOOK_EVERY_S = 1.0
TELL_EVERY_S = 5.0


async def store_failed(bus: Bus, folder: Path) -> str:
    """Returns once the server on `folder` has to be started again to store anything, and what had happened, in words.

    While its disk is full, that is told to all roles (`Bus.trouble`) every `TELL_EVERY_S` seconds.
    """
    log_file, store = folder / "server.log", folder / "store"
    position = log_file.stat().st_size
    cut = b""
    failed = warned = False
    told = 0.0
    while True:
        with log_file.open("rb") as file:
            file.seek(position)
            new = file.read()
        position += len(new)
        # A line may be written in two parts.
        lines = cut + new
        failed = failed or FAILED in lines
        cut = lines[-len(FAILED) :]
        disk = shutil.disk_usage(store)
        if disk.free < LEAST_BYTES:
            if time.monotonic() - told > TELL_EVERY_S:
                told = time.monotonic()
                left = f"{disk.free / 2**20:.0f} MiB are left for {store.resolve()}"
                await bus.tell_trouble(f"the bus's disk is full: {left}; make room, then the run goes on by itself")
        elif failed:
            return f"nats-server could not store a message in {store}, and takes none since"
        elif disk.free < LOW_SHARE * disk.total and not warned:
            warned = True
            log.warning("the bus's disk fills up", folder=str(store), free_mib=round(disk.free / 2**20))
        await asyncio.sleep(LOOK_EVERY_S)

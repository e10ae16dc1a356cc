"""A folder that one process works on at a time: it holds a lock file there, which names it."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import structlog

from runtime.files import try_lock

log = structlog.get_logger()


class HeldError(Exception):
    """Another process holds a lock file."""

    def __init__(self, path: Path, holder: str) -> None:
        super().__init__(f"{path} is held by {holder}")
        self.holder = holder
        """Its process id and host, in words."""


@contextlib.contextmanager
def held(path: Path) -> Iterator[int]:
    """Holds a lock file while the body runs, and yields its descriptor: a child that inherits it holds the lock as well.

    A process that dies lets it go. Raises HeldError at once where another process holds it. On a shared file system this
    holds between hosts where the file system's locks do.
    """
    with path.open("a+") as file:
        if not try_lock(file):
            raise HeldError(path, path.read_text().strip() or "a process that is just starting")
        file.truncate(0)
        file.write(f"process {os.getpid()} on {os.uname().nodename}\n")
        file.flush()
        yield file.fileno()


@contextlib.asynccontextmanager
async def held_within(path: Path, patience_s: float, stop: asyncio.Event | None = None) -> AsyncIterator[int]:
    """Holds a lock file as `held` does, and waits up to `patience_s` seconds for the holder to let it go.

    It waits no longer than until `stop` is set.
    """
    async with contextlib.AsyncExitStack() as stack:
        end = asyncio.get_running_loop().time() + patience_s
        told = False
        while True:
            try:
                descriptor = stack.enter_context(held(path))
                break
            except HeldError as error:
                if asyncio.get_running_loop().time() > end or (stop is not None and stop.is_set()):
                    raise
                if not told:
                    log.warning("waiting for an earlier process to end", holder=error.holder, lock=str(path))
                    told = True
            await asyncio.sleep(0.2)
        yield descriptor

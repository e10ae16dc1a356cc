"""Holds a run's folder for one learner at a time.

A second learner of a run claims the next epoch of the weight log. The first learner's next manifest is then refused, which
ends it. The folder (checkpoints, archive) has no such protection, so the second learner reads it only after the first one
has ended.
"""

import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import structlog

from bus.connection import BusError
from runtime.files import try_lock
from runtime.retry import Backoff

log = structlog.get_logger()


@contextlib.asynccontextmanager
async def sole_learner(folder: Path, patience_s: float) -> AsyncIterator[None]:
    """Holds `learner.lock` while the body runs; a process that dies lets it go.

    Raises BusError if another learner on this folder does not end within `patience_s` seconds.
    """
    with (folder / "learner.lock").open("a+") as file:
        backoff = Backoff(patience_s, 0.2, 0.2)
        told = False
        while not try_lock(file):
            holder = (folder / "learner.lock").read_text().strip()
            if backoff.over:
                raise BusError(
                    f"another learner still works on {folder} after {patience_s:.0f} s ({holder}): it was deposed and "
                    "ends with its next step; end it by hand if it hangs"
                )
            if not told:
                log.warning("waiting for an earlier learner to end", holder=holder, folder=str(folder))
                told = True
            await backoff.pause()
        file.truncate(0)
        file.write(f"pid {os.getpid()} on {os.uname().nodename}\n")
        file.flush()
        yield

"""One learner at a time on a run's folder.

Two learners of one run are told apart by the weight log alone: the later one claims the next epoch, and the earlier one's
next manifest is refused, which ends it. What lies in the folder (checkpoints, archive) has no such fence, so the later one
reads none of it before the earlier one is gone.
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

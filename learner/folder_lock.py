"""Holds a run's folder for one learner at a time.

A second learner of a run claims the next epoch of the weight log. The first learner's next manifest is then refused, which
ends it. The folder (checkpoints, archive) has no such protection, so the second learner reads it only after the first one
has ended.
"""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from bus.connection import BusError
from runtime.locks import HeldError, held_within


@contextlib.asynccontextmanager
async def sole_learner(folder: Path, patience_s: float) -> AsyncIterator[None]:
    """Holds `learner.lock` while the body runs; a process that dies lets it go.

    Raises BusError if another learner on this folder does not end within `patience_s` seconds.
    """
    async with contextlib.AsyncExitStack() as stack:
        try:
            await stack.enter_async_context(held_within(folder / "learner.lock", patience_s))
        except HeldError as error:
            raise BusError(
                f"another learner still works on {folder} after {patience_s:.0f} s ({error.holder}): it was deposed and "
                "ends with its next step; end it by hand if it hangs"
            ) from error
        yield

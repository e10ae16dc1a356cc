"""Waiting for work until something ends it."""

import asyncio
from typing import Any


async def done_or_stopped(work: asyncio.Future[Any], stop: asyncio.Event, grace_s: float = 0.0) -> bool:
    """Waits for `work`, but for no longer than `grace_s` seconds after `stop` is set; says whether the work is done.

    The work is never cancelled here: it stays the caller's.
    """
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((work, stopping), return_when=asyncio.FIRST_COMPLETED)
        if not work.done() and grace_s:
            await asyncio.wait((work,), timeout=grace_s)
    finally:
        stopping.cancel()
    return work.done()


async def any_set(*events: asyncio.Event) -> None:
    """Waits until at least one of the events is set."""
    waits = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()

"""Work beside the event loop, in threads that keep nobody from ending the process."""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from functools import partial


def aside[T](work: Callable[[], T]) -> asyncio.Future[T]:
    """Starts `work` in a daemon thread; returns its future result, which may be left alone."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(outcome: Callable[[], None]) -> None:
        if not future.done():
            outcome()

    def run() -> None:
        try:
            outcome = partial(future.set_result, work())
        except Exception as error:  # noqa: BLE001 (handed on to who waits)
            outcome = partial(future.set_exception, error)
        # There is no loop any more where the page was ended meanwhile.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(settle, outcome)

    threading.Thread(target=run, daemon=True).start()
    return future

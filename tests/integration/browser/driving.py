"""What tests need to drive a page in a real browser, Chromium."""

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, Route, ViewportSize, expect

from tests.processes import ZEROTIR

CHROMIUM = shutil.which("chromium")
DRIVEN = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: Debian's package `chromium` has it"),
]
"""Marks of tests that drive a browser."""
PICTURES = os.environ.get("ZEROTIR_TEST_PICTURES")
"""Folder that takes pictures of the page, if it is set."""
HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script>"
TIMEOUT_MS = 60_000
expect.set_options(timeout=TIMEOUT_MS)
DESKTOP: ViewportSize = {"width": 1400, "height": 1000}
PHONE: ViewportSize = {"width": 390, "height": 844}


def serve(folder: Path, *runs: str) -> Iterator[str]:
    process = subprocess.Popen([*ZEROTIR, "page", *runs, "--port", "0"], stdout=subprocess.PIPE, text=True, cwd=folder)
    assert process.stdout is not None
    yield process.stdout.readline().strip()
    process.terminate()
    process.wait(timeout=60)


def wait_until(page: Page, holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_MS / 1000
    while not holds():
        assert time.monotonic() < deadline
        page.wait_for_timeout(50)


def picture(page: Page, name: str) -> None:
    if PICTURES:
        page.screenshot(path=Path(PICTURES) / f"{name}.png", full_page=True)


class Held:
    """Answers that are kept back until they are let go, as on a slow line."""

    def __init__(self, page: Page, what: str) -> None:
        self.routes: list[Route] = []
        self._is_open = False
        page.route(f"**/api/{what}**", self._hold)

    def _hold(self, route: Route) -> None:
        if self._is_open:
            route.continue_()
        else:
            self.routes.append(route)

    def let_go(self) -> None:
        self._is_open = True
        for route in self.routes:
            route.continue_()

"""A browser, and a page in it that must raise no error."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Dialog, Page, sync_playwright

from tests.integration.browser.driving import CHROMIUM, DESKTOP, TIMEOUT_MS


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        # As root Chromium has no sandbox of its own.
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    context = browser.new_context(viewport=DESKTOP)
    opened = context.new_page()
    opened.set_default_timeout(TIMEOUT_MS)
    wrong: list[str] = []

    def note(message: ConsoleMessage) -> None:
        # A server that is gone is one of the tests.
        if message.type == "error" and not message.text.startswith("Failed to load resource"):
            wrong.append(message.text)

    def refuse(dialog: Dialog) -> None:
        wrong.append(f"a dialog: {dialog.message}")
        dialog.dismiss()

    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("console", note)
    opened.on("dialog", refuse)
    yield opened
    context.close()
    assert wrong == []

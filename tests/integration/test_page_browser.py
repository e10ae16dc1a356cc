"""The page in a real browser, Chromium: a live run is followed, curves are chosen, and hostile text stays text."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Dialog, Page, ViewportSize, expect, sync_playwright

from tests.integration.test_emulated_run import start
from tests.processes import ZEROTIR, wait_for

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: Debian's package `chromium` has it"),
]
PICTURES = os.environ.get("ZEROTIR_TEST_PICTURES")
"""Folder that takes pictures of the page, if it is set."""
HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script>"
TIMEOUT_MS = 60_000
DESKTOP: ViewportSize = {"width": 1400, "height": 1000}
PHONE: ViewportSize = {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        # As root Chromium has no sandbox of its own.
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """The address of a page of two runs that are over, one of them hostile."""
    for name, steps in (("first", 40), ("second", 20)):
        folder = tmp_path / name
        folder.mkdir()
        lines = [
            {"run": name, "seq": step, "time": 1000.0 + step, "role": "learner", "id": "learner", "step": step,
             "accuracy": step / 50, "loss": 0.5 / step, "trained_tokens": 100.0, "disk_free_gib": 0.5,
             "tickets_issued": 4.0 * step, "tickets_trained": 4.0 * step, "tickets_filtered": 0.0, "tickets_failed": 0.0,
             "tickets_open": 0.0, "tickets_ignored": 0.0}
            for step in range(1, steps + 1)
        ]  # fmt: skip
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    process = subprocess.Popen(
        [*ZEROTIR, "page", "first", "second", "--port", "0"], stdout=subprocess.PIPE, text=True, cwd=tmp_path
    )
    assert process.stdout is not None
    yield process.stdout.readline().strip()
    process.terminate()
    process.wait(timeout=60)


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


def picture(page: Page, name: str) -> None:
    if PICTURES:
        page.screenshot(path=Path(PICTURES) / f"{name}.png", full_page=True)


def test_curves_are_chosen_by_keyboard_and_a_link_shows_the_same(page: Page, served: str):
    page.goto(served)
    expect(page.locator("#state")).to_contain_text("step 40")
    expect(page.locator(".curve")).to_have_count(6)
    page.keyboard.press("/")
    page.keyboard.type("learner/los")
    page.keyboard.press("Enter")
    expect(page.locator("#add:invalid")).to_have_count(1)
    page.keyboard.type("s")
    page.keyboard.press("Enter")
    expect(page.locator(".curve")).to_have_count(7)
    page.select_option("#axis", "tokens")
    page.check("#log")
    page.fill("#smooth", "0.5")
    page.get_by_label("take learner/accuracy away").click()
    expect(page.locator(".curve")).to_have_count(6)
    loss = page.locator(".curve", has_text="learner/loss")
    expect(loss.locator("canvas")).to_be_visible()
    loss.locator(".u-over").hover()
    expect(loss.locator(".told b")).to_have_count(2)
    expect(loss.locator(".told")).to_contain_text("tokens")
    page.get_by_role("button", name="second", exact=True).click()
    expect(page.locator("#state")).to_contain_text("step 20")
    page.get_by_role("button", name="second", exact=True).click()
    expect(page.get_by_role("button", name="second", exact=True)).to_have_attribute("aria-pressed", "false")
    link = page.url
    page.goto("about:blank")
    page.goto(link)
    expect(page.locator(".curve")).to_have_count(6)
    expect(page.locator("#axis")).to_have_value("tokens")
    expect(page.locator("#log")).to_be_checked()
    expect(page.get_by_role("button", name="second", exact=True)).to_have_attribute("aria-pressed", "false")
    expect(page.locator(".curve", has_text="learner/accuracy")).to_have_count(0)


def test_a_phone_shows_it_without_scrolling_sideways(page: Page, served: str):
    page.set_viewport_size(PHONE)
    page.goto(served)
    expect(page.locator(".curve canvas").first).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    picture(page, "page-phone")


def test_a_server_that_is_gone_is_said(page: Page, browser: Browser, served: str):
    page.goto(served)
    expect(page.locator("#state")).to_contain_text("step 40")
    page.route("**/api/**", lambda route: route.fulfill(status=503, body=""))
    expect(page.locator("#trouble")).to_contain_text("the server says 503")
    page.unroute("**/api/**")
    expect(page.locator("#trouble")).to_be_hidden()


def test_a_server_that_hangs_is_said(page: Page, served: str):
    page.goto(served)
    expect(page.locator("#state")).to_contain_text("step 40")
    page.route("**/api/now**", lambda route: None)
    expect(page.locator("#trouble")).to_contain_text("is `zerotir page` still up?", timeout=TIMEOUT_MS)
    page.unroute_all(behavior="ignoreErrors")


def test_hostile_text_stays_text(page: Page, served: str):
    """Whatever a run says, as the server would give it on."""

    def hostile(route, request) -> None:
        answer = route.fetch()
        body = answer.json()
        if "/api/now" in request.url:
            body |= {"trouble": HOSTILE, "filtered": {HOSTILE: 3.0}, "missing": [HOSTILE]}
            body["alarms"] = [{"name": "x", "line": f"ALARM {HOSTILE}: {HOSTILE}"}]
            body["roles"] = [
                {"role": HOSTILE, "id": HOSTILE, "host": HOSTILE, "state": HOSTILE, "version": HOSTILE, "in_flight": 1,
                 "seen_ago_s": 1, "rates": {HOSTILE: 1}}
            ]  # fmt: skip
        route.fulfill(response=answer, json=body)

    page.route("**/api/now**", hostile)
    page.goto(served)
    expect(page.locator("#trouble")).to_have_text(HOSTILE)
    expect(page.locator("#alarms")).to_contain_text(HOSTILE)
    expect(page.locator("#roles")).to_contain_text(HOSTILE)
    expect(page.locator("#tickets")).to_contain_text(HOSTILE)
    assert page.locator("main img, main script").count() == 0


@pytest.mark.timeout(300)
def test_a_live_run_is_followed_step_by_step_and_up_says_where(page: Page, tmp_path: Path):
    up, output = start(tmp_path, "learner.steps=400", "alarms.disk_free_gib=1000000")
    try:
        address = wait_for(lambda: re.search(r"page +(http://\S+)", output.read_text()), up, output)[1]
        page.goto(address)
        wait_for(lambda: "step   3/400" in output.read_text(), up, output)
        expect(page.locator("#state")).to_contain_text(re.compile(r"EMULATED.*step \d+ of 400"))
        shown = int(re.findall(r"step (\d+) of", page.inner_text("#state"))[0])
        expect(page.locator("#state")).not_to_contain_text(f"step {shown} of")
        assert int(re.findall(r"step (\d+) of", page.inner_text("#state"))[0]) > shown
        expect(page.locator("#roles")).to_contain_text("actor-1")
        expect(page.locator("#alarms")).to_contain_text("ALARM disk")
        picture(page, "page-emulated")
    finally:
        up.terminate()
        assert up.wait(timeout=120) == 130
    expect(page.locator("#trouble")).to_contain_text("is `zerotir page` still up?")
    page.goto("about:blank")

"""The page in a real browser: a live run is followed, curves are chosen, and hostile text stays text."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.integration.browser.driving import (
    DRIVEN,
    HOSTILE,
    PHONE,
    TIMEOUT_MS,
    picture,
    serve,
)
from tests.integration.test_emulated_run import start
from tests.processes import wait_for

pytestmark = DRIVEN


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
    yield from serve(tmp_path, "first", "second")


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


def test_the_scaling_law_s_fit_is_laid_over_a_curve(page: Page, served: str):
    page.goto(served)
    page.check("#fit")
    accuracy = page.locator(".curve", has_text="learner/accuracy")
    expect(accuracy.locator(".fit")).to_contain_text("linear")
    expect(page.locator(".curve", has_text="learner/staleness_mean").locator(".fit")).to_be_empty()
    page.uncheck("#fit")
    expect(accuracy.locator(".fit")).to_be_empty()


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
        page.get_by_role("button", name="Transcripts", exact=True).click()
        count = re.compile(r"^([\d,]+) results")
        expect(page.locator("#count")).to_have_text(count)
        seen = count.match(page.inner_text("#count"))
        assert seen is not None
        expect(page.locator("#count")).not_to_contain_text(seen[0])
    finally:
        up.terminate()
        assert up.wait(timeout=120) == 130
    expect(page.locator("#trouble")).to_contain_text("is `zerotir page` still up?")
    page.goto("about:blank")

"""The page in a real browser, Chromium: a live run is followed, curves are chosen, and hostile text stays text."""

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Dialog, Page, Route, ViewportSize, expect, sync_playwright

from runtime.models import load_tokenizer, model_folder
from tests.archived import write_run
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
expect.set_options(timeout=TIMEOUT_MS)
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
    yield from serve(tmp_path, "first", "second")


def serve(folder: Path, *runs: str) -> Iterator[str]:
    process = subprocess.Popen([*ZEROTIR, "page", *runs, "--port", "0"], stdout=subprocess.PIPE, text=True, cwd=folder)
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


def wait_until(page: Page, holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_MS / 1000
    while not holds():
        assert time.monotonic() < deadline
        page.wait_for_timeout(50)


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


@pytest.fixture
def results(tmp_path: Path) -> Iterator[str]:
    """The address of the page of two runs with results; those of the first are hostile."""
    tokenizer = load_tokenizer(model_folder("random-tiny"))
    for name, problem in (("archived", HOSTILE), ("other", "of the other run")):
        (tmp_path / name).mkdir()
        write_run(tmp_path / name, tokenizer, problem_id=problem, gold_answer=problem, actor="actor-0")
    yield from serve(tmp_path, "archived", "other")


def test_results_are_found_and_the_group_is_read_side_by_side(page: Page, results: str):
    page.goto(results)
    page.get_by_role("button", name="Transcripts", exact=True).click()
    expect(page.locator("#count")).to_have_text("9 results, 5 right")
    page.select_option("#end", "filtered/no signal")
    expect(page.locator(".item")).to_have_count(2)
    page.select_option("#end", "")
    page.fill("#step", "2")
    page.select_option("#verdict", "right")
    expect(page.locator(".item")).to_have_count(2)
    page.select_option("#code", "used")
    expect(page.locator(".item")).to_have_count(1)
    page.locator(".item").click()
    # Both samples of the problem, although the filter found one of them.
    expect(page.locator(".column")).to_have_count(2)
    expect(page.locator(".column.chosen .facts")).to_contain_text("advantage +1.00")
    expect(page.locator(".column").first.locator(".facts")).to_contain_text("advantage -1.00")
    chosen = page.locator(".column.chosen")
    expect(chosen.locator(".piece.code .body")).to_contain_text("print(3)")
    expect(chosen.locator(".piece.code .keyword, .piece.code .name").first).to_be_visible()
    expect(chosen.locator(".piece.output .label")).to_contain_text("exited, 0.2 s")
    page.select_option("#tint", "log_ratio")
    expect(chosen.locator(".piece.code .token").nth(2)).to_have_attribute("title", re.compile(r"\+1$"))
    expect(chosen.locator(".piece.output .token")).to_have_count(0)
    page.select_option("#tint", "advantage")
    expect(chosen.locator(".token").first).to_have_attribute("title", "advantage +1")
    page.select_option("#tint", "version")
    expect(chosen.locator(".token").first).to_have_attribute("title", "weights 0.0")
    link = page.url
    page.goto("about:blank")
    page.goto(link)
    expect(page.locator(".column.chosen .token").first).to_have_attribute("title", "weights 0.0")
    expect(page.locator("#code")).to_have_value("used")
    page.select_option("#code", "")
    page.fill("#step", "")
    page.select_option("#verdict", "")
    expect(page.locator(".item")).to_have_count(9)
    page.keyboard.press("Escape")
    page.locator("h1").click()
    page.keyboard.press("j")
    expect(page.locator('.item[aria-pressed="true"]')).to_contain_text("ticket 1")
    expect(page.locator(".column.chosen")).to_contain_text("ticket 1")
    page.go_back()
    expect(page.locator(".column.chosen")).to_contain_text("ticket 8")


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


def test_an_answer_that_comes_late_is_not_shown_with_another_group(page: Page, results: str):
    page.goto(results + "#view=transcripts")
    held = Held(page, "transcript")
    page.locator(".item", has_text="ticket 1").click()
    expect(page.locator("#of-group")).to_contain_text("group 0")
    wait_until(page, lambda: len(held.routes) == 2)
    page.locator(".item", has_text="ticket 7").click()
    expect(page.locator("#of-group")).to_contain_text("group 3")
    wait_until(page, lambda: len(held.routes) == 4)
    for route in held.routes[:2]:
        answer = route.fetch()
        route.fulfill(response=answer, json=answer.json() | {"prompt": "of group 0"})
    del held.routes[:2]
    held.let_go()
    expect(page.locator(".column .piece").first).to_be_visible()
    expect(page.locator("#question")).to_contain_text("1+2=")
    expect(page.locator(".column")).to_have_count(2)


@pytest.mark.parametrize("what", ["results", "group", "transcript"])
def test_nothing_of_a_run_is_shown_under_another(page: Page, results: str, what: str):
    page.goto(results + "#view=transcripts")
    expect(page.locator(".item")).to_have_count(9)
    held = Held(page, what)
    page.locator(".item", has_text="ticket 7").click()
    wait_until(page, lambda: bool(held.routes))
    page.get_by_role("button", name="other", exact=True).click()
    expect(page.locator(".column")).to_have_count(0)
    held.let_go()
    expect(page.locator(".item", has_text="of the other run")).to_have_count(8)
    expect(page.locator(".item", has_text="<img")).to_have_count(0)
    expect(page.locator(".column")).to_have_count(0)
    page.locator(".item", has_text="ticket 7").click()
    expect(page.locator("#problem")).to_have_text("of the other run")
    expect(page.locator("#question")).to_contain_text("of the other run")


def test_columns_have_one_scale_and_the_colours_that_are_chosen(page: Page, results: str):
    page.goto(results + "#view=transcripts&tint=advantage")
    held = Held(page, "transcript?*ticket=7")
    page.locator(".item", has_text="ticket 8").click()
    chosen, other = page.locator(".column.chosen"), page.locator(".column:not(.chosen)")
    expect(chosen.locator(".token").first).to_have_attribute("title", "advantage +1")
    wait_until(page, lambda: bool(held.routes))
    held.let_go()
    expect(other.locator(".token").first).to_have_attribute("title", "advantage -1")
    strength = "(token) => token.style.backgroundColor.split(',').at(-1)"
    assert chosen.locator(".token").first.evaluate(strength) == other.locator(".token").first.evaluate(strength)
    held = Held(page, "transcript")
    page.goto("about:blank")
    page.goto(results + "#view=transcripts&tint=advantage&ticket=8")
    wait_until(page, lambda: bool(held.routes))
    held.let_go()
    page.select_option("#tint", "version")
    for column in (chosen, other):
        expect(column.locator(".token").first).to_have_attribute(
            "title", "weights 0.0" if column is chosen else "weights 0.1"
        )


def test_what_failed_is_asked_for_again(page: Page, results: str):
    page.goto(results + "#view=transcripts")
    page.route("**/api/transcript**", lambda route: route.fulfill(status=503, body="busy"))
    page.locator(".item", has_text="ticket 8").click()
    expect(page.locator(".column.chosen .missing")).to_have_text("busy")
    page.unroute("**/api/transcript**")
    expect(page.locator(".column.chosen .piece").first).to_be_visible()


def test_a_link_to_what_is_not_there_leads_back_also_on_a_phone(page: Page, results: str):
    page.set_viewport_size(PHONE)
    page.goto(results + "#view=transcripts&ticket=77")
    expect(page.locator("#trouble")).to_contain_text("no result of ticket 77")
    page.locator(".back").click()
    expect(page.locator("#found")).to_be_visible()


def test_filters_of_a_link_apply_at_once_and_are_gone_when_they_are_cleared(page: Page, results: str):
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(results + "#view=transcripts&end=filtered/no signal&search=img")
    expect(page.locator(".item")).to_have_count(2)
    assert all("reason=no+signal" in url for url in asked if "/api/results" in url)
    page.select_option("#end", "")
    page.fill("#search", "")
    expect(page.locator(".item")).to_have_count(9)
    page.reload()
    expect(page.locator(".item")).to_have_count(9)
    page.fill("#step", "-5")
    expect(page.locator("#trouble")).to_contain_text("step must be a whole number")


def test_hostile_transcripts_stay_text(page: Page, results: str):
    page.goto(results + "#view=transcripts&ticket=2")
    expect(page.locator(".column")).to_have_count(2)
    expect(page.locator("#group h2")).to_have_text(HOSTILE)
    expect(page.locator("#question .gold")).to_contain_text(HOSTILE)
    expect(page.locator(".item").first).to_contain_text("<img")

    def hostile(route, request) -> None:
        answer = route.fetch()
        body = answer.json()
        body["pieces"] = [[kind, HOSTILE, HOSTILE, [], [[len(HOSTILE), 0]]] for kind in ("text", "code", "output")]
        body |= {"prompt": HOSTILE, "answer": HOSTILE}
        route.fulfill(response=answer, json=body)

    page.route("**/api/transcript**", hostile)
    for tint in ("", "version"):
        page.goto("about:blank")
        page.goto(f"{results}#view=transcripts&ticket=2&tint={tint}")
        expect(page.locator(".column.chosen .piece .body").first).to_have_text(HOSTILE)
    assert page.locator("main img, main script").count() == 0
    page.goto(results + "#view=lives")
    expect(page.locator(".life .who").nth(2)).to_have_attribute("title", re.compile("<img"))
    assert page.locator("main img, main script").count() == 0


def test_lives_of_a_step_lead_to_its_transcripts(page: Page, results: str):
    page.goto(results + "#view=lives")
    expect(page.locator("#life-told")).to_contain_text("step 2 · 4 results")
    expect(page.locator("#lives .stretch.failed")).to_have_count(1)
    expect(page.locator("#lives .stretch.sampled").first).to_have_attribute("title", re.compile("tokens? of weights 0"))
    page.get_by_label("Step before").last.click()
    expect(page.locator("#life-told")).to_contain_text("step 1 · 4 results")
    page.locator("#lives button.who").nth(2).click()
    expect(page.locator(".column.chosen")).to_contain_text("ticket 3")


def test_a_phone_shows_the_list_or_the_transcripts(page: Page, results: str):
    page.set_viewport_size(PHONE)
    page.goto(results + "#view=transcripts")
    page.locator(".item").nth(3).click()
    expect(page.locator("#found")).to_be_hidden()
    expect(page.locator(".column .piece").first).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    picture(page, "page-phone-transcripts")
    page.locator(".back").click()
    expect(page.locator("#found")).to_be_visible()
    page.get_by_role("button", name="Staleness").click()
    expect(page.locator(".life").nth(1)).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


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

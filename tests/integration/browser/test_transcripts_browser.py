"""Transcripts and lives of results in a real browser: what is shown belongs together, also on a slow line."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from runtime.models import load_tokenizer, model_folder
from tests.archived import write_run
from tests.integration.browser.driving import DRIVEN, HOSTILE, PHONE, Held, picture, serve, wait_until

pytestmark = DRIVEN


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

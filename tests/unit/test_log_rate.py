"""Logs under a flood: bounded, and they say what they leave out."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from runtime import log_rate
from runtime.logs import set_up_logs


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Path]:
    set_up_logs("sandbox", "s", "r", tmp_path / "log", terminal=None)
    yield tmp_path / "log"
    logging.getLogger().handlers = []
    structlog.reset_defaults()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(log_rate.time, "monotonic", lambda: now[0])
    return now


def lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_flood_is_cut_off_and_says_so(file: Path, clock: list[float], capfd: pytest.CaptureFixture[str]):
    set_up_logs("sandbox", "s", "r", file)
    log = structlog.get_logger("sandbox")
    for number in range(4_000):
        log.warning("bad request", reason=f"number {number}")
    log.warning("another event")
    written = lines(file)
    assert [line["event"] for line in written] == ["bad request"] * log_rate.MOST_WARNINGS + ["another event"]
    assert ["left_out" in line for line in written].index(True) == log_rate.MOST_WARNINGS - 1
    assert len(capfd.readouterr().err.splitlines()) == log_rate.MOST_WARNINGS + 1


def test_the_next_minute_says_how_many_were_left_out(file: Path, clock: list[float]):
    log = structlog.get_logger("sandbox")
    for _ in range(log_rate.MOST_WARNINGS + 7):
        log.warning("bad request")
    clock[0] += log_rate.PERIOD_S
    log.warning("bad request")
    log.warning("bad request")
    assert [line.get("left_out") for line in lines(file)[-2:]] == [7, None]
    assert len(lines(file)) == log_rate.MOST_WARNINGS + 2


def test_progress_is_no_flood(file: Path, clock: list[float]):
    log = structlog.get_logger("learner")
    for step in range(log_rate.MOST + 7):
        log.info("step done", step=step)
    assert len(lines(file)) == log_rate.MOST
    assert log_rate.MOST > 5 * log_rate.MOST_WARNINGS


def test_what_cannot_be_shown_is_loggings_own_matter(file: Path, monkeypatch: pytest.MonkeyPatch):
    class Unspeakable:
        def __str__(self) -> str:
            raise ValueError

    monkeypatch.setattr(logging, "raiseExceptions", False)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(logging.LogRecord("library", logging.WARNING, "", 0, Unspeakable(), None, None))
    structlog.get_logger("bus").warning("odd", exception=ValueError("x"))
    assert lines(file)[-1]["event"] == "odd"


def test_the_lines_of_libraries_are_told_apart_by_what_they_have_in_common(file: Path, clock: list[float]):
    for number in range(2 * log_rate.MOST_WARNINGS):
        logging.getLogger("library").warning("failed %d times", number)
        logging.getLogger("library").warning(f"Task exception was never retrieved, the future was {number}")
    logging.getLogger("library").warning("something else")
    written = lines(file)
    assert len(written) == 2 * log_rate.MOST_WARNINGS + 1
    assert all("more like this" in line["event"] for line in written[-3:-1])


def test_texts_that_all_differ_take_no_memory_for_ever(file: Path, clock: list[float], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(log_rate, "MOST_EVENTS", 10)
    for number in range(100):
        logging.getLogger("library").warning(f"text {number}")
    filters = [rate for handler in logging.getLogger().handlers for rate in handler.filters]
    [rate] = [rate for rate in filters if isinstance(rate, log_rate.RateFilter)]
    assert len(rate._periods) <= 10
    assert len(lines(file)) == 100

"""The page's index of results, transcripts token by token, and what a step made of its tokens."""

import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from bus.messages import Metrics, Trajectory
from bus.metrics import records_of
from bus.metrics_history import recorded_metrics
from configs.loading import dump_config, load_config
from launch.past_run import config_of
from learner.tickets import archive_tail
from learner.tickets.archive import Archive, entries_of
from learner.tickets.archive_tail import ArchiveChangedError
from page import results as results_module
from page.results import PAGE, Results, Wanted
from tests.archived import CONFIG, SETTINGS, answered, write_run
from tests.factories import spans

HOSTILE = "<img src=x onerror=alert(1)>'; DROP TABLE results; --"


@pytest.fixture
def run(tmp_path: Path, tokenizer: Any) -> Path:
    write_run(tmp_path, tokenizer)
    return tmp_path


def measured(step: int, **values: float) -> Metrics:
    return Metrics(role="learner", id="learner", step=step, time=20.0 + step, values=values)


def index(run: Path) -> Results:
    """Returns the index of a run with all its metrics."""
    found = Results(run, CONFIG)
    for _, metrics in recorded_metrics(run / "metrics.jsonl", 0):
        found.note(metrics)
    found.read()
    return found


def tickets(found: Results, **wanted: Any) -> list[int]:
    return [row["ticket"] for row in found.find(Wanted(**wanted), 0)["rows"]]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        # The newest first: what waits, then step by step.
        ({}, [9, 5, 6, 7, 8, 1, 2, 3, 4]),
        ({"step": 1}, [1, 2, 3, 4]),
        ({"end": "trained"}, [7, 8, 1, 2]),
        ({"end": "filtered"}, [6, 3, 4]),
        ({"end": "filtered", "reason": "no signal"}, [3, 4]),
        ({"end": "failed"}, [5]),
        ({"end": "waiting"}, [9]),
        ({"end": "unknown"}, []),
        ({"verdict": "right"}, [6, 8, 1, 3, 4]),
        ({"verdict": "wrong"}, [9, 7, 2]),
        ({"code": "used"}, [8, 1]),
        ({"code": "none", "step": 2}, [6, 7]),
        ({"code": "failed"}, []),
        ({"search": "P7", "verdict": "wrong", "step": 1}, [2]),
        ({"search": "6"}, [6]),
        ({"search": "9" * 40}, []),
        ({"search": "%"}, []),
        ({"search": HOSTILE}, []),
        ({"verdict": HOSTILE, "code": HOSTILE, "step": 1}, [1, 2, 3, 4]),
        ({"end": HOSTILE}, []),
        ({"reason": HOSTILE}, []),
    ],
)
def test_results_are_found_by_what_became_of_them(run: Path, wanted: dict[str, Any], expected: list[int]):
    found = index(run)
    assert tickets(found, **wanted) == expected
    assert len(tickets(found)) == 9


def test_a_row_says_what_became_of_its_result(run: Path):
    found = index(run)
    [row] = [row for row in found.find(Wanted(step=2), 0)["rows"] if row["ticket"] == 6]
    # fmt: off
    assert row == {
        "ticket": 6, "group": 2, "step": 2, "end": "filtered", "reason": "group too small", "problem": "p7",
        "actor": "a", "attempts": 1, "correct": True, "reward": 1.0, "calls": 0, "failed_calls": 0, "made_up": 0,
        "length": 5, "cut": False, "staleness": 1, "issued_at": 10.0, "started_at": 11.0, "first_token_at": 12.0,
        "published_at": 13.5, "versions": [["0.0", 0, 2], ["0.1", 2, 5]],
    }
    # fmt: on
    assert found.reasons()[0] == ("trained", "", 4)
    assert ("filtered", "no signal", 2) in found.reasons()
    assert [row["ticket"] for row in found.group(2)] == [5, 6]


def test_pages_hold_a_number_of_results_each(run: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(results_module, "PAGE", 4)
    found = index(run)
    pages = [found.find(Wanted(), page) for page in range(4)]
    assert [len(page["rows"]) for page in pages] == [4, 4, 1, 0]
    assert {(page["total"], page["right"], page["pages"]) for page in pages} == {(9, 5, 3)}
    assert PAGE > 4


def test_without_a_step_s_metrics_it_is_not_known_what_it_trained_on(run: Path):
    found = Results(run, CONFIG)
    found.read()
    assert tickets(found, end="unknown") == [6, 7, 8, 1, 2, 3, 4]
    assert tickets(found, end="failed") == [5]
    # The learner of an earlier start had other filters; then the step is trained again with those of now.
    found.note(measured(1, trained_length=3.0))
    assert tickets(found, end="unknown", step=1) == [1, 2, 3, 4]
    # Nor is it known then which filter left something out.
    assert {row["reason"] for row in found.find(Wanted(step=1), 0)["rows"]} == {None}
    assert tickets(found, reason="no signal") == []
    assert found.reasons() == [("unknown", "", 7), ("failed", "deadline passed", 1), ("waiting", "", 1)]
    for _, metrics in recorded_metrics(run / "metrics.jsonl", 0):
        found.note(metrics)
    assert tickets(found, end="unknown") == []


def test_lives_are_those_of_one_step_in_the_order_of_their_beginnings(run: Path):
    lives = index(run).lives(2, 0)
    assert [row["ticket"] for row in lives["rows"]] == [5, 6, 7, 8]
    assert lives["trained_at"] == 15.0
    assert lives["versions"] == [(1, 14.0), (2, 15.0)]
    assert lives["taken_at"] is None
    nothing = {"total": 0, "pages": 0, "rows": [], "taken_at": None, "trained_at": None, "versions": []}
    assert index(run).lives(9, 0) == nothing
    found = index(run)
    found.note(measured(2, step_seconds=7.0, wait_seconds=4.5))
    assert found.lives(2, 0)["taken_at"] == 19.5


def test_what_became_of_results_follows_a_configuration_that_has_changed(run: Path):
    (run / "config.yaml").write_text(dump_config(CONFIG))
    found = Results(run, CONFIG, partial(config_of, run))
    found.read()
    assert {row["end"] for row in found.find(Wanted(step=1), 0)["rows"]} == {"unknown"}
    (run / "config.yaml").write_text(dump_config(load_config("tiny", [*SETTINGS, "learner.filters.no_signal=false"])))
    os.utime(run / "config.yaml", (1.0, 1.0))
    for record in records_of(run / "metrics.jsonl"):
        found.note(measured(record["step"], trained_length=record["trained_length"]))
    found.read()
    lengths = [row["length"] for row in found.group(0) + found.group(1)]
    found.note(measured(1, trained_length=sum(lengths) / len(lengths)))
    assert tickets(found, end="trained", step=1) == [1, 2, 3, 4]


def test_what_waits_is_not_shown_before_the_archive_is_read_to_its_end(run: Path, monkeypatch: pytest.MonkeyPatch):
    found = Results(run, CONFIG)
    seen: list[list[int]] = []
    take = found._take

    def look(result: Trajectory) -> None:
        take(result)
        found._lock.release()
        seen.append(tickets(found))
        found._lock.acquire()

    monkeypatch.setattr(found, "_take", look)
    found.read()
    assert seen[2:4] == [[], [1, 2, 3, 4]]
    assert tickets(found)[0] == 9


def test_metrics_of_steps_behind_one_that_is_trained_again_count_no_more(run: Path):
    found = index(run)
    assert tickets(found, end="unknown") == []
    record = next(iter(records_of(run / "metrics.jsonl")))
    names = ("filtered_by_no_signal", "trained_length")
    found.note(measured(1, **{name: record[name] for name in names}))
    assert tickets(found, end="unknown") == [6, 7, 8]
    assert found.lives(2, 0)["trained_at"] is None


def test_an_archive_that_grows_is_read_on_and_one_that_was_cut_anew(run: Path, tokenizer: Any):
    found = index(run)
    archive = Archive(run / "results")
    archive.append(2, 10, answered(tokenizer, 10, right=True, versions=spans((1, 0, 5))))
    archive.append(2, 11, answered(tokenizer, 11, right=True, versions=spans((1, 0, 5))))
    found.read()
    assert tickets(found, end="waiting") == [9, 10, 11]
    archive.append(2, 12, answered(tokenizer, 12, right=False, versions=spans((1, 0, 5))))
    found.read()
    assert tickets(found, step=3) == [9, 10, 11, 12]
    archive.cut(9)
    archive.append(2, 9, answered(tokenizer, 10, right=False, versions=spans((1, 0, 5))))
    found.read()
    found.read()
    assert tickets(found, end="waiting") == [10]
    assert found.trouble == ""


def written(folder: Path, tokenizer: Any) -> list[Path]:
    """Writes an archive of three steps, a file each; returns the files."""
    folder.mkdir()
    archive = Archive(folder / "results")
    for ticket in range(1, 13):
        version = (ticket - 1) // 4
        archive.append(version, ticket, answered(tokenizer, ticket, right=True, versions=spans((version, 0, 5))))
    return sorted((folder / "results").glob("*.results"))


@pytest.mark.parametrize("file", [0, 1, 2])
def test_of_a_damaged_archive_what_comes_before_is_shown(tmp_path: Path, tokenizer: Any, file: int):
    path = written(tmp_path / "run", tokenizer)[file]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    found = Results(tmp_path / "run", CONFIG)
    for _ in range(results_module.MOST_CHANGES + 2):
        found.read()
    assert path.name in found.trouble
    assert "what comes before is shown" in found.trouble
    assert sorted(tickets(found)) == list(range(1, 4 * file + 4))


def test_a_file_that_is_cut_short_is_damage_unless_it_is_the_last(tmp_path: Path, tokenizer: Any):
    paths = written(tmp_path / "run", tokenizer)
    whole = paths[2].read_bytes()
    paths[2].write_bytes(whole[:-5])
    found = Results(tmp_path / "run", CONFIG)
    for _ in range(results_module.MOST_CHANGES + 2):
        found.read()
    assert (len(tickets(found)), found.trouble) == (11, "")
    paths[2].write_bytes(whole)
    found.read()
    assert len(tickets(found)) == 12
    paths[1].write_bytes(paths[1].read_bytes()[:-5])
    found = Results(tmp_path / "run", CONFIG)
    for _ in range(results_module.MOST_CHANGES + 2):
        found.read()
    assert paths[1].name in found.trouble
    assert len(tickets(found)) == 7


def test_a_file_that_goes_while_it_is_read_is_a_change(run: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch):
    found = Results(run, CONFIG)
    calls: list[Path] = []

    def vanished(path: Path, begin: int = 0):
        calls.append(path)
        if len(calls) == 1:
            raise FileNotFoundError(2, "No such file", str(path))
        return entries_of(path, begin)

    monkeypatch.setattr(archive_tail, "entries_of", vanished)
    found.read()
    assert tickets(found) == []
    found.read()
    assert len(tickets(found)) == 9
    assert found.trouble == ""


def test_a_result_that_is_no_longer_where_it_was_is_said(run: Path):
    found = index(run)
    Archive(run / "results").cut(1)
    with pytest.raises(ArchiveChangedError, match="no longer"):
        found.result(1)
    assert found.result(77) is None


def test_an_id_is_found_in_either_case(tmp_path: Path, tokenizer: Any):
    write_run(tmp_path, tokenizer, problem_id="École-Ω")
    assert len(tickets(index(tmp_path), search="éCOLE-ω")) == 8

"""Transcripts that a tracker gets, from an archive that grows, is cut, or is damaged while it is read."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bus.messages import Failure, Metrics, Trajectory
from configs.loading import dump_config, load_config
from launch.transcript_samples import LONGEST_TEXT, MOST_CHANGES, TranscriptSamples, is_sampled
from learner.tickets.archive import Archive
from learner.tickets.archive_tail import ArchiveChangedError, ArchiveTail
from tests.factories import spans, trajectory
from tracking.tracker import Sample

STEPS = 12
CONFIG = load_config(
    "tiny", ["learner.batch_groups=1", "learner.group_size=4", "learner.steps=12", "learner.filters.no_signal=false"]
)


def result(ticket: int, *, right: bool = False, response: int = 5) -> Trajectory:
    group = (ticket - 1) // 4
    version = max(0, group - CONFIG.learner.max_staleness)
    return trajectory(
        4, response, ticket=ticket, group=group, reward=float(right), reward_parts={"correct": float(right)},
        versions=spans((version, 0, response)), problem_id="p", gold_answer="3",
        tokens=np.full(4 + response, 20, np.int32),
    )  # fmt: skip


RIGHT = {1, 3, 4, 6}
"""Tickets: three of the first step, one of the second, none later."""
RESULTS = [result(ticket, right=ticket in RIGHT) for ticket in range(1, 4 * STEPS + 1)]


def append(folder: Path, *results: Trajectory | Failure) -> None:
    archive = Archive(folder)
    for each in results:
        archive.append((each.ticket - 1) // 4, archive.last + 1, each)
    archive.sync()


def measured(*steps: int, length: float = 5.0) -> list[Metrics]:
    return [
        Metrics(role="learner", id="l", time=1.0, step=step, values={"trained_length": length, "accuracy": 0.5})
        for step in steps
    ]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "config.yaml").write_text(dump_config(CONFIG))
    return tmp_path


def samples(run: Path, after: int = 0) -> TranscriptSamples:
    return TranscriptSamples(run, CONFIG, after)


def tickets(found: list[list[Sample]]) -> dict[int, list[tuple[int, str]]]:
    return {each[0].step: [(sample.ticket, sample.verdict) for sample in each] for each in found}


def test_a_step_is_sampled_once_it_was_measured(run: Path):
    given = samples(run)
    assert list(given.read()) == []
    append(run / "results", *RESULTS[:8])
    assert list(given.read()) == []
    given.note(measured(1))
    [[first, *_]] = list(given.read())
    assert tickets([[first]]) == {1: [(1, "right")]}
    assert "ticket 1 · step 1 · trained on · right · reward 1" in first.text
    given.note(measured(2))
    assert tickets(list(given.read())) == {2: [(6, "right"), (5, "wrong"), (7, "wrong")]}
    assert list(given.read()) == []


def test_the_first_ten_steps_are_sampled_and_then_every_tenth(run: Path):
    assert [step for step in range(1, 41) if is_sampled(step)] == [*range(1, 11), 20, 30, 40]
    append(run / "results", *RESULTS)
    given = samples(run, after=3)
    given.note(measured(*range(1, STEPS + 1)))
    assert [each[0].step for each in given.read()] == list(range(4, 11))


def test_what_a_step_was_trained_on_is_not_claimed_where_its_metrics_say_otherwise(run: Path):
    append(run / "results", *RESULTS[:4])
    given = samples(run)
    given.note(measured(1, length=7.0))
    [found] = list(given.read())
    assert all("trained on or filtered, which is not known" in sample.text for sample in found)


def test_a_long_transcript_is_cut_and_says_so(run: Path):
    append(run / "results", *(result(ticket, response=LONGEST_TEXT) for ticket in (1, 2, 3, 4)))
    given = samples(run)
    given.note(measured(1, length=float(LONGEST_TEXT)))
    [[sample, _]] = list(given.read())
    assert len(sample.text) < LONGEST_TEXT + 100
    assert sample.text.endswith("more characters: zerotir transcripts has them")


def test_an_archive_that_a_learner_cuts_is_read_anew_and_gives_each_step_once(run: Path):
    folder = run / "results"
    append(folder, *RESULTS[:10])
    given = samples(run)
    given.note(measured(1, 2, 3))
    assert [each[0].step for each in given.read()] == [1, 2]
    # A learner that was resumed: what it takes again from the bus is in another order.
    Archive(folder).cut(6)
    append(folder, *RESULTS[6:9], RESULTS[5], *RESULTS[9:12])
    found = [each for _ in range(3) for each in given.read()]
    assert [each[0].step for each in found] == [3]


def test_a_damaged_archive_is_an_error_and_no_endless_reading(run: Path):
    append(run / "results", *RESULTS[:12])
    damaged = sorted((run / "results").glob("*.results"))[1]
    data = bytearray(damaged.read_bytes())
    data[-5] ^= 1
    damaged.write_bytes(data)
    given = samples(run)
    for _ in range(MOST_CHANGES):
        assert list(given.read()) == []
    with pytest.raises(ValueError, match=r"the archive is damaged: .*000001\.results is not what it was from byte"):
        list(given.read())


def read(tail: ArchiveTail) -> list[int]:
    return [each.ticket for _, each in tail.read()]


def test_an_archive_is_read_piece_by_piece_while_entries_are_being_written(tmp_path: Path):
    tail = ArchiveTail(tmp_path / "results")
    assert read(tail) == []
    append(tmp_path / "results", *RESULTS[:5])
    file = sorted((tmp_path / "results").glob("*.results"))[-1]
    whole = file.read_bytes()
    for size in range(1, len(whole)):
        os.truncate(file, 0)
        file.write_bytes(whole[:size])
        assert read(tail) == ([1, 2, 3, 4] if size == 1 else [])
    file.write_bytes(whole)
    assert read(tail) == [5]
    append(tmp_path / "results", RESULTS[5], *RESULTS[8:10])
    assert read(tail) == [6, 9, 10]


@pytest.mark.parametrize("change", ["gone", "shorter", "other"])
def test_what_was_read_and_is_no_longer_there_is_told(tmp_path: Path, change: str):
    folder = tmp_path / "results"
    append(folder, *RESULTS[:3])
    tail = ArchiveTail(folder)
    assert read(tail) == [1, 2, 3]
    [file] = folder.glob("*.results")
    if change == "gone":
        file.unlink()
    else:
        Archive(folder).cut(2)
    if change == "other":
        longer: list[Any] = [result(ticket, response=50) for ticket in (2, 3, 4)]
        append(folder, *longer)
    with pytest.raises(ArchiveChangedError):
        read(tail)

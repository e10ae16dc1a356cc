"""The journal of samples: what is finished stays, whatever happened to the process; what does not belong is refused."""

import json

import pytest

from evaluation.records import Journal, JournalError
from tests.unit.samples import sample

SETTINGS = {"weights": "w", "rollout": {"temperature": 1.0, "stop": ("a", "b")}, "data": {"set": {"digest": "d"}}}


def fill(folder, count: int = 3) -> list[bytes]:
    with Journal(folder, SETTINGS) as journal:
        for number in range(count):
            journal.append(sample(number, text=f"text {number} \u2028 é \n"))
    return (folder / "samples.jsonl").read_bytes().splitlines(keepends=True)


def test_finished_samples_are_read_back_as_they_were(tmp_path):
    lines = fill(tmp_path)
    assert len(lines) == 3
    with Journal(tmp_path, SETTINGS) as journal:
        assert [s.number for s in journal.samples.values()] == [0, 1, 2]
        assert journal.samples["set", "p0", 1, 2] == sample(2, text="text 2 \u2028 é \n")


@pytest.mark.parametrize("kept", [1, 20, -1])
def test_a_half_written_last_line_is_cut_off_and_the_next_sample_stands_alone(tmp_path, kept: int):
    lines = fill(tmp_path)
    path = tmp_path / "samples.jsonl"
    path.write_bytes(b"".join(lines[:2]) + lines[2][:kept])
    with Journal(tmp_path, SETTINGS) as journal:
        assert len(journal.samples) == 2
        journal.append(sample(7))
    assert [json.loads(line)["number"] for line in path.read_bytes().splitlines()] == [0, 1, 7]
    with Journal(tmp_path, SETTINGS) as journal:
        assert len(journal.samples) == 3


def test_damage_in_the_middle_is_an_error_that_names_the_line(tmp_path):
    lines = fill(tmp_path)
    (tmp_path / "samples.jsonl").write_bytes(lines[0] + b"{}\n" + lines[2])
    with pytest.raises(JournalError, match=r"samples.jsonl, line 2, is damaged"):
        Journal(tmp_path, SETTINGS)


def test_a_sample_that_stands_twice_counts_once(tmp_path):
    lines = fill(tmp_path)
    (tmp_path / "samples.jsonl").write_bytes(b"".join([*lines, lines[0]]))
    with Journal(tmp_path, SETTINGS) as journal:
        assert len(journal.samples) == 3


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"weights": "others"}, "another weights:"),
        ({"rollout": {"temperature": 0.7, "stop": ("a", "b")}}, "another rollout.temperature:"),
        ({"data": {"set": {"digest": "e"}}}, "another data.set.digest:"),
    ],
)
def test_other_settings_are_refused_by_name(tmp_path, change: dict, named: str):
    fill(tmp_path)
    with pytest.raises(JournalError, match=named):
        Journal(tmp_path, {**SETTINGS, **change})


def test_more_data_sets_may_be_added_and_are_held_to_from_then_on(tmp_path):
    fill(tmp_path)
    Journal(tmp_path, {**SETTINGS, "data": {"more": {"digest": "m"}}}).__exit__(None, None, None)
    with pytest.raises(JournalError, match=r"data.more.digest"):
        Journal(tmp_path, {**SETTINGS, "data": {"set": {"digest": "d"}, "more": {"digest": "n"}}})


def test_two_evaluations_never_write_to_one_folder(tmp_path):
    with Journal(tmp_path, SETTINGS), pytest.raises(JournalError, match="another evaluation is at work"):
        Journal(tmp_path, SETTINGS)
    Journal(tmp_path, SETTINGS).__exit__(None, None, None)

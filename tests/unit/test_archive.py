"""The archive of results: what a crash leaves of it, and what is read from it."""

import os
from pathlib import Path

import pytest

from bus.messages import Failure
from learner.tickets.archive import Archive, CheckpointError, raw_archive, read_archive


def failure(ticket: int) -> Failure:
    return Failure(ticket=ticket, group=0, reason="r" * ticket, attempts=1, actor="a", published_at=0.0)


def sequences(folder: Path) -> list[int]:
    return [sequence for sequence, _ in read_archive(folder)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Results 1 to 6, two a step, in an archive that was closed."""
    archive = Archive(tmp_path)
    for sequence in range(1, 7):
        archive.append((sequence - 1) // 2, sequence, failure(sequence))
    archive.sync()
    return tmp_path


def test_results_come_back_in_order(folder):
    assert [(sequence, result.ticket) for sequence, result in read_archive(folder)] == [(n, n) for n in range(1, 7)]
    assert [sequence for sequence, _ in raw_archive(folder, after=4)] == [5, 6]
    assert Archive(folder).last == 6


def test_a_result_that_is_there_is_not_appended_again(folder):
    archive = Archive(folder)
    for sequence in (5, 6, 7):
        archive.append(2, sequence, failure(sequence))
    assert sequences(folder) == list(range(1, 8))


@pytest.mark.parametrize("lost", [1, 7, 40])
def test_what_was_cut_short_is_dropped_before_anything_is_appended(folder, lost):
    last = folder / "000002.results"
    # Results 5 and 6: the end of 6 is lost, inside its message or its header.
    os.truncate(last, last.stat().st_size - lost)
    assert sequences(folder) == [1, 2, 3, 4, 5]
    archive = Archive(folder)
    assert archive.last == 5
    archive.append(2, 6, failure(6))
    archive.append(3, 7, failure(7))
    assert sequences(folder) == list(range(1, 8))


def test_zeros_that_a_lost_write_left_are_dropped(folder):
    with (folder / "000002.results").open("ab") as file:
        file.write(bytes(100))
    archive = Archive(folder)
    archive.append(2, 7, failure(7))
    assert sequences(folder) == list(range(1, 8))


@pytest.mark.parametrize(("first", "left"), [(1, []), (3, [1, 2]), (4, [1, 2, 3]), (7, [1, 2, 3, 4, 5, 6])])
def test_it_is_cut_where_the_bus_takes_over(folder, first, left):
    archive = Archive(folder)
    archive.cut(first)
    assert sequences(folder) == left
    assert archive.last == len(left)
    # The bus gives them again.
    for sequence in range(first, 8):
        archive.append(3, sequence, failure(sequence))
    assert sequences(folder) == list(range(1, 8))


@pytest.mark.parametrize("synced", [3, 4, 6])
def test_what_a_checkpoint_counts_on_is_not_cut_away(folder, synced):
    """Files of two results: the second one's first, result 3, is changed by the disk."""
    path = folder / "000001.results"
    data = bytearray(path.read_bytes())
    data[60] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"000001\.results is damaged from byte 0 on"):
        Archive(folder, synced=synced)
    assert path.read_bytes() == data
    with pytest.raises(CheckpointError, match=r"000001\.results is damaged from byte 0 on"):
        sequences(folder)


def test_what_no_checkpoint_counts_on_is_cut_away(folder):
    path = folder / "000001.results"
    data = bytearray(path.read_bytes())
    data[60] ^= 1
    path.write_bytes(data)
    Archive(folder, synced=2)
    assert sequences(folder) == [1, 2, 5, 6]

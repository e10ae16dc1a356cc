"""The archive of results: what a crash leaves of it, and what is read from it."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from bus.codec import encode
from bus.messages import Failure
from learner.tickets.archive import START, Archive, CheckpointError, raw_archive, read_archive


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


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.results"))}


def put(folder: Path, files: dict[str, bytes]) -> None:
    for path in folder.glob("*.results"):
        path.unlink()
    for name, data in files.items():
        (folder / name).write_bytes(data)


def damages(whole: dict[str, bytes]) -> Iterator[tuple[dict[str, bytes], int, bool]]:
    """Yields an archive with each of its bytes changed, with each file cut at each place, and without each of its files.

    With each: the number of whole results before the damage, and whether a learner that was writing may have left it.
    """
    before = 0
    for name, data in whole.items():
        for place in range(len(data)):
            entries = before + (place >= len(data) - size(before + 2))
            changed = bytes([*data[:place], data[place] ^ 0x10, *data[place + 1 :]])
            yield whole | {name: changed}, entries, False
            yield whole | {name: data[:place]}, entries, name == max(whole)
        yield {other: data for other, data in whole.items() if other != name}, before, name == max(whole)
        before += 2


def size(sequence: int) -> int:
    """Returns the bytes of a result's entry: its reason is as long as its number."""
    return len(encode(failure(sequence))) + 32


@pytest.mark.parametrize("mark", [0, 2, 3, 6])
def test_whatever_the_disk_does_nothing_is_lost_that_a_checkpoint_counts_on(folder, mark):
    whole = contents(folder)
    assert [len(data) for data in whole.values()] == [size(n) + size(n + 1) for n in (1, 3, 5)]
    marks = [START]
    for sequence in range(1, 7):
        marks.append(archive_up_to(folder, sequence).mark)
    put(folder, whole)
    for files, left, _ in damages(whole):
        put(folder, files)
        if left < mark:
            with pytest.raises(
                CheckpointError, match=f"is damaged behind its result {left}, before that of the checkpoint"
            ):
                Archive(folder, marks[mark])
            assert contents(folder) == files
        else:
            archive = Archive(folder, marks[mark])
            assert archive.last == left
            archive.cut(2**64)
            # The bus gives the rest again.
            for sequence in range(left + 1, 8):
                archive.append(2, sequence, failure(sequence))
            assert sequences(folder) == list(range(1, 8))
            assert Archive(folder).last == 7


def archive_up_to(folder: Path, sequence: int) -> Archive:
    archive = Archive(folder)
    archive.cut(sequence + 1)
    for following in range(archive.last + 1, sequence + 1):
        archive.append((following - 1) // 2, following, failure(following))
    return archive


def test_readers_say_where_the_damage_is(folder):
    whole = contents(folder)
    for files, left, torn in damages(whole):
        put(folder, files)
        if torn:
            assert sequences(folder) == list(range(1, left + 1))
        else:
            with pytest.raises(CheckpointError, match=r"\.results is damaged from byte \d+ on"):
                sequences(folder)


def test_files_are_in_order_whatever_step_a_learner_goes_back_to(folder):
    archive = Archive(folder)
    # One that was resumed from an older checkpoint collects the batch of an earlier step.
    archive.append(0, 7, failure(7))
    assert sequences(folder) == list(range(1, 8))
    assert Archive(folder).last == 7


def test_an_archive_that_was_moved_away_begins_anew(folder):
    mark = Archive(folder).mark
    put(folder, {})
    archive = Archive(folder, mark)
    archive.append(3, 7, failure(7))
    assert sequences(folder) == [7]


def test_a_reader_may_read_while_a_learner_writes(folder):
    archive = Archive(folder)
    reading = read_archive(folder)
    assert next(reading)[0] == 1
    archive.append(2, 7, failure(7))
    archive.append(3, 8, failure(8))
    assert [sequence for sequence, _ in reading] in ([2, 3, 4, 5, 6], [2, 3, 4, 5, 6, 7])

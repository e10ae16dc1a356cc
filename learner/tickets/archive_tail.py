"""Reads an archive while its learner appends to it: each time what has come since."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from bus.codec import decode
from bus.messages import Failure, Trajectory
from learner.tickets.archive import START, entries_of, is_being_written


class ArchiveChangedError(Exception):
    """What was read is no longer there: a learner that was resumed has cut the archive, or it is damaged."""


class Place(NamedTuple):
    """Says where a result stands in an archive."""

    path: Path
    begin: int
    sequence: int


def result_at(place: Place) -> Trajectory | Failure:
    """Returns the result at a place. Raises ArchiveChangedError where it is no longer there."""
    try:
        entry = next(entries_of(place.path, place.begin), None)
    except FileNotFoundError:
        entry = None
    if entry is None or entry.mark.sequence != place.sequence:
        raise ArchiveChangedError(f"result {place.sequence} is no longer in {place.path}")
    return decode(entry.data, Trajectory, Failure)


class ArchiveTail:
    """Reads the archive in one folder, on and on. It costs as much as what is read."""

    def __init__(self, folder: Path) -> None:
        """`folder` need not be there yet."""
        self._folder = folder
        self._mark = START
        """The entry that was read last,"""
        self._path: Path | None = None
        """its file,"""
        self._end = 0
        """and where it ends there."""
        self.place: Place | None = None
        """Where the result that was read last stands."""

    def read(self) -> Iterator[tuple[int, Trajectory | Failure]]:
        """Yields what was appended since the last time, as (sequence, result), in order; only whole entries.

        Raises ArchiveChangedError, after which everything has to be read anew, MessageError for a result of another version.
        """
        try:
            yield from self._read()
        except FileNotFoundError as error:
            # A learner that cuts the archive removes files.
            raise ArchiveChangedError(f"{error.filename} is gone") from error

    def _read(self) -> Iterator[tuple[int, Trajectory | Failure]]:
        paths = sorted(self._folder.glob("*.results"))
        if self._path is not None and self._path not in paths:
            raise ArchiveChangedError(f"{self._path} is gone")
        for path in paths[paths.index(self._path) if self._path else 0 :]:
            begin = self._end if path == self._path else 0
            for entry in entries_of(path, begin):
                if entry.previous != self._mark.digest or entry.mark.sequence <= self._mark.sequence:
                    raise ArchiveChangedError(f"{path} is not what it was from byte {entry.begin} on")
                self._mark, self._path, self._end = entry.mark, path, entry.end
                self.place = Place(path, entry.begin, entry.mark.sequence)
                yield entry.mark.sequence, decode(entry.data, Trajectory, Failure)
                begin = entry.end
            size = path.stat().st_size
            # A later file is begun once this one is whole.
            may_grow = path == paths[-1] and is_being_written(path, begin, self._mark)
            if size < begin or (size > begin and not may_grow):
                raise ArchiveChangedError(f"{path} is not what it was from byte {begin} on")
            if size > begin:
                return

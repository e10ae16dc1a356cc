"""The archive of accepted results: `runs/<id>/results/`, one file of length-prefixed messages for every step.

Results are appended in the order in which the learner took them, and reach the disk before they are purged from the bus.
Replay reads nothing else. If a crash left half a message at the end, it is cut off when the archive is opened. Each message
has a checksum: what the disk has changed is an error for whoever reads it.
"""

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import xxhash

from bus.codec import decode, encode
from bus.messages import Failure, Trajectory
from configs.errors import UserError
from runtime.files import sync

_HEADER = struct.Struct("<QIQ")
"""Of an entry: sequence, length, and xxh3-64 of its data."""


class CheckpointError(UserError):
    """The run cannot go on with what is in its folder; the text says why."""


class _Entry(NamedTuple):
    sequence: int
    begin: int
    """Offset of its header."""
    data: bytes

    @property
    def end(self) -> int:
        return self.begin + _HEADER.size + len(self.data)


class Archive:
    """Appends results with their position in the result stream."""

    def __init__(self, folder: Path, synced: int = 0) -> None:
        """Opens the archive in `folder`; what a crash cut short is removed, or what is appended would not be found.

        Up to sequence `synced` it is known to be on the disk: raises CheckpointError where that is damaged.
        """
        self._folder = folder
        self._synced = synced
        self._folder.mkdir(parents=True, exist_ok=True)
        self._unsynced: set[Path] = set()
        self.last = 0
        """Sequence of the last result in it."""
        self._cut(2**64)

    def cut(self, first: int) -> None:
        """Drops everything from sequence `first` on: what the bus still holds is read, and appended, again.

        Only what was purged from the bus is known to have reached the disk.
        """
        self._cut(first)

    def append(self, version: int, sequence: int, result: Trajectory | Failure) -> None:
        """Adds a result to the file of `version`'s batch.

        Adds nothing where the result is there already: a learner reads the log again after it was resumed.
        """
        if sequence <= self.last:
            return
        data = encode(result)
        path = self._folder / f"{version:06d}.results"
        with path.open("ab") as file:
            file.write(_HEADER.pack(sequence, len(data), xxhash.xxh3_64_intdigest(data)) + data)
        self.last = sequence
        self._unsynced.add(path)

    def sync(self) -> None:
        """Forces everything to the disk."""
        for path in (*sorted(self._unsynced), self._folder):
            sync(path)
        self._unsynced.clear()

    def _cut(self, first: int) -> None:
        self.last = 0
        for path in sorted(self._folder.glob("*.results")):
            end = 0
            for entry in _entries(path, self.last):
                if entry.sequence >= first:
                    break
                self.last, end = entry.sequence, entry.end
            if end < path.stat().st_size and 0 < _sequence_at(path, end) <= self._synced:
                raise CheckpointError(
                    f"{path} is damaged from byte {end} on, and the checkpoint counts on what is there: put back a copy of "
                    "the file, or start another run"
                )
            if end == 0:
                path.unlink()
                self._unsynced.discard(path)
                continue
            if end < path.stat().st_size:
                os.truncate(path, end)
                self._unsynced.add(path)
            if self.last > self._synced:
                # Written by a learner that ended before its next checkpoint.
                self._unsynced.add(path)


def raw_archive(folder: Path, after: int = 0) -> Iterator[tuple[int, bytes]]:
    """Yields all results beyond sequence `after` as (sequence, packed message), in order.

    Raises CheckpointError where something is wrong that no learner leaves: only the last entry of all may be cut short.
    """
    last = 0
    paths = sorted(folder.glob("*.results"))
    for path in paths:
        end = 0
        for entry in _entries(path, last):
            last, end = entry.sequence, entry.end
            if entry.sequence > after:
                yield entry.sequence, entry.data
        if path != paths[-1] and end < path.stat().st_size:
            raise CheckpointError(f"{path} is damaged from byte {end} on")


def last_archived(folder: Path, run: str) -> int:
    """Returns the sequence of the last whole result in the archive, 0 where there is none; changes nothing.

    Raises CheckpointError where its results are of another run than `run`.
    """
    for path in sorted(folder.glob("*.results"), reverse=True):
        entries = list(_entries(path, 0))
        if entries:
            found = decode(entries[-1].data, Trajectory, Failure).run
            if found != run:
                raise CheckpointError(
                    f"{folder} holds results of run {found}, this is {run}: use that run's own folder"
                )
            return entries[-1].sequence
    return 0


def read_archive(folder: Path) -> Iterator[tuple[int, Trajectory | Failure]]:
    """Yields all results as (sequence, result), in order.

    Raises CheckpointError as `raw_archive` does, MessageError where one is of another version.
    """
    for sequence, data in raw_archive(folder):
        yield sequence, decode(data, Trajectory, Failure)


def _sequence_at(path: Path, begin: int) -> int:
    with path.open("rb") as file:
        file.seek(begin)
        header = file.read(_HEADER.size)
    return _HEADER.unpack(header)[0] if len(header) == _HEADER.size else 0


def _entries(path: Path, last: int) -> Iterator[_Entry]:
    """Yields the whole entries of one file beyond sequence `last`, up to one that is cut short, was never written, or is not
    what was written."""
    with path.open("rb") as file:
        begin = 0
        while len(header := file.read(_HEADER.size)) == _HEADER.size:
            sequence, length, digest = _HEADER.unpack(header)
            data = file.read(length)
            # A file system that lost its power may leave zeros at the end.
            if len(data) < length or sequence == 0 or xxhash.xxh3_64_intdigest(data) != digest:
                return
            if sequence > last:
                yield _Entry(sequence, begin, data)
                last = sequence
            begin = file.tell()

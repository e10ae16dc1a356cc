"""The archive of accepted results: `runs/<id>/results/`, one file of length-prefixed messages for every step.

Results are appended in the order in which the learner took them, and reach the disk before they are purged from the bus.
Replay reads nothing else. Each entry names the one before by its checksum, so all entries are one chain, over all files:

    header: sequence | length | checksum of the entry before | own checksum | checksum of this header      data

What a crash or a power loss leaves behind the last whole entry of the chain is removed when the archive is opened. A
checkpoint says where the chain was (`Mark`): where that entry is missing, the disk has lost or changed what was there, and
nothing is removed.
"""

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import structlog
import xxhash

from bus.codec import decode, encode
from bus.messages import Failure, Trajectory
from configs.errors import UserError
from runtime.files import sync

log = structlog.get_logger()

_FIELDS = struct.Struct("<QIQQ")
_CHECK = struct.Struct("<I")
_HEADER_BYTES = _FIELDS.size + _CHECK.size


class CheckpointError(UserError):
    """The run cannot go on with what is in its folder; the text says why."""


class Mark(NamedTuple):
    """An entry of the chain, and with it everything before."""

    sequence: int
    digest: int
    """Checksum of its data, sequence and predecessor; 0 for both stands before the first entry."""


START = Mark(0, 0)


class Entry(NamedTuple):
    """Stands for a result in a file."""

    mark: Mark
    previous: int
    """Digest of the entry before."""
    begin: int
    """Offset of its header."""
    data: bytes

    @property
    def end(self) -> int:
        return self.begin + _HEADER_BYTES + len(self.data)


class Archive:
    """Appends results with their position in the result stream."""

    def __init__(self, folder: Path, mark: Mark = START) -> None:
        """Reads the archive in `folder` and changes nothing; `mark` is where its checkpoint says that it was.

        Reads the whole archive once. Raises CheckpointError where the chain does not come to `mark`. An archive that was
        moved away begins anew.
        """
        self._folder = folder
        self._folder.mkdir(parents=True, exist_ok=True)
        if mark != START and not self._files():
            log.warning("the archive of results was moved away: replay and transcripts lack what came before")
            mark = START
        self._required = mark
        """Where the chain has to come to."""
        self._unsynced: set[Path] = set()
        self.mark = START
        """The last result in it."""
        self._newest = ""
        """The file that has it."""
        self._is_cut = False
        self._follow(2**64)

    @property
    def last(self) -> int:
        """Returns the sequence of the last result in it."""
        return self.mark.sequence

    def cut(self, first: int) -> None:
        """Drops what is no part of the chain, and everything from sequence `first` on.

        What the bus still holds is read, and appended, again. Only what was purged from the bus is known to have reached the
        disk.
        """
        self._is_cut = True
        ends = self._follow(first)
        for path in self._files():
            end = ends.get(path, 0)
            if end == 0:
                path.unlink()
                self._unsynced.discard(path)
                continue
            if end < path.stat().st_size:
                os.truncate(path, end)
            # It may be of a learner that ended before its next checkpoint.
            self._unsynced.add(path)

    def append(self, version: int, sequence: int, result: Trajectory | Failure) -> None:
        """Adds a result to the file of `version`'s batch, or to that of a later one if there is one: files are in order.

        Adds nothing where the result is there already: a learner reads the log again after it was resumed.
        """
        if not self._is_cut:
            # Nobody would find what stands behind something that is torn.
            self.cut(2**64)
        if sequence <= self.last:
            return
        data = encode(result)
        digest = _digest(sequence, self.mark.digest, data)
        fields = _FIELDS.pack(sequence, len(data), self.mark.digest, digest)
        self._newest = max(self._newest, f"{version:06d}.results")
        path = self._folder / self._newest
        with path.open("ab") as file:
            file.write(fields + _CHECK.pack(xxhash.xxh32_intdigest(fields)) + data)
        self.mark = Mark(sequence, digest)
        self._unsynced.add(path)

    def sync(self) -> None:
        """Forces everything to the disk."""
        for path in (*sorted(self._unsynced), self._folder):
            sync(path)
        self._unsynced.clear()

    def _files(self) -> list[Path]:
        return sorted(self._folder.glob("*.results"))

    def _follow(self, first: int) -> dict[Path, int]:
        """Follows the chain up to sequence `first`; returns where it ends in each file that it comes to."""
        ends: dict[Path, int] = {}
        self.mark, self._newest = START, ""
        seen = self._required == START
        for path, entry in _chain(self._files()):
            if entry.mark.sequence >= first:
                break
            self.mark, self._newest, ends[path] = entry.mark, path.name, entry.end
            seen = seen or entry.mark == self._required
        if not seen and first > self._required.sequence:
            raise CheckpointError(
                f"the archive in {self._folder} is damaged behind its result {self.last}, before that of the checkpoint, "
                f"{self._required.sequence}: put back a copy of its files, or move all of them away to go on without what "
                "replay and transcripts would need of it"
            )
        return ends


def raw_archive(folder: Path, after: int = 0) -> Iterator[tuple[int, bytes]]:
    """Yields all results beyond sequence `after` as (sequence, packed message), in order.

    Raises CheckpointError where something is wrong that no learner at work leaves: all it leaves is a last entry that is cut
    short.
    """
    paths = sorted(folder.glob("*.results"))
    last, end, mark = (paths[0] if paths else folder), 0, START
    for path, entry in _chain(paths):
        last, end, mark = path, entry.end, entry.mark
        if entry.mark.sequence > after:
            yield entry.mark.sequence, entry.data
    for path in paths[paths.index(last) :] if paths else ():
        begin = end if path == last else 0
        if begin < path.stat().st_size and not (path == paths[-1] and is_being_written(path, begin, mark)):
            raise CheckpointError(f"{path} is damaged from byte {begin} on")


def last_archived(folder: Path, run: str) -> int:
    """Returns the sequence of the last whole result in the archive, 0 where there is none; changes nothing.

    Looks at the last file that has one. Raises CheckpointError where its results are of another run than `run`.
    """
    for path in sorted(folder.glob("*.results"), reverse=True):
        entries = list(entries_of(path))
        if entries:
            found = decode(entries[-1].data, Trajectory, Failure).run
            if found != run:
                raise CheckpointError(
                    f"{folder} holds results of run {found}, this is {run}: use that run's own folder"
                )
            return entries[-1].mark.sequence
    return 0


def read_archive(folder: Path) -> Iterator[tuple[int, Trajectory | Failure]]:
    """Yields all results as (sequence, result), in order.

    Raises CheckpointError as `raw_archive` does, MessageError where one is of another version.
    """
    for sequence, data in raw_archive(folder):
        yield sequence, decode(data, Trajectory, Failure)


def _digest(sequence: int, previous: int, data: bytes) -> int:
    return xxhash.xxh3_64_intdigest(data + _FIELDS.pack(sequence, len(data), previous, 0)) or 1


def _chain(paths: list[Path]) -> Iterator[tuple[Path, Entry]]:
    """Yields the entries of all files, with their file, as long as each names the one before."""
    mark = START
    for path in paths:
        end = 0
        for entry in entries_of(path):
            if entry.previous != mark.digest or entry.mark.sequence <= mark.sequence:
                return
            mark, end = entry.mark, entry.end
            yield path, entry
        if end < path.stat().st_size:
            # Entries of later files do not follow: they would be of another chain, or the same one with a gap.
            return


def entries_of(path: Path, begin: int = 0) -> Iterator[Entry]:
    """Yields the whole entries of a file from an offset on, up to one that is cut short, never written, or changed."""
    with path.open("rb") as file:
        file.seek(begin)
        while (header := _header(file.read(_HEADER_BYTES))) is not None:
            sequence, length, previous, digest = header
            data = file.read(length)
            if len(data) < length or _digest(sequence, previous, data) != digest:
                return
            yield Entry(Mark(sequence, digest), previous, begin, data)
            begin = file.tell()


def _header(packed: bytes) -> tuple[int, int, int, int] | None:
    """Returns sequence, length, checksum of the entry before and own checksum; None where this is no whole header."""
    if len(packed) < _HEADER_BYTES:
        return None
    fields, check = packed[: _FIELDS.size], packed[_FIELDS.size :]
    sequence, length, previous, digest = _FIELDS.unpack(fields)
    if sequence == 0 or _CHECK.unpack(check)[0] != xxhash.xxh32_intdigest(fields):
        return None
    return sequence, length, previous, digest


def is_being_written(path: Path, begin: int, mark: Mark) -> bool:
    """Returns whether a file has, from `begin` on, an entry that is not there as a whole, or one that has followed `mark`
    since it was read."""
    with path.open("rb") as file:
        file.seek(begin)
        packed = file.read(_HEADER_BYTES)
        if len(packed) < _HEADER_BYTES:
            return True
        header = _header(packed)
        if header is None:
            # A file system that lost its power may leave zeros.
            return not any(packed) and not any(file.read())
        sequence, length, previous, digest = header
        data = file.read(length)
        follows = previous == mark.digest and _digest(sequence, previous, data) == digest
        return len(data) < length or follows

"""The archive of accepted results: `runs/<id>/results/`, one file of length-prefixed messages for every step.

Results are appended in the order in which the learner read them, and reach the disk before they are purged from the bus;
replay reads nothing else. A file that was cut short by a crash is read up to its last whole message.
"""

import os
import struct
from collections.abc import Iterator
from pathlib import Path

from bus.codec import decode, encode
from bus.messages import Failure, Trajectory

_LENGTH = struct.Struct("<QI")


class Archive:
    """Appends results with their position in the result stream."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._folder.mkdir(parents=True, exist_ok=True)
        self._last = max((sequence for sequence, _ in read_archive(folder)), default=0)

    def append(self, step: int, sequence: int, result: Trajectory | Failure) -> None:
        """Adds a result unless it is there already (a learner that reads the log again)."""
        if sequence <= self._last:
            return
        data = encode(result)
        with (self._folder / f"{step:06d}.results").open("ab") as file:
            file.write(_LENGTH.pack(sequence, len(data)) + data)
        self._last = sequence

    def sync(self) -> None:
        """Forces everything to the disk."""
        for path in sorted(self._folder.glob("*.results"))[-2:]:
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)


def read_archive(folder: Path) -> Iterator[tuple[int, Trajectory | Failure]]:
    """All results as (sequence, result), in order. Raises MessageError where one is damaged."""
    for path in sorted(folder.glob("*.results")):
        data = path.read_bytes()
        position = 0
        while position + _LENGTH.size <= len(data):
            sequence, length = _LENGTH.unpack_from(data, position)
            position += _LENGTH.size
            if position + length > len(data):
                break
            yield sequence, decode(data[position : position + length], Trajectory, Failure)
            position += length

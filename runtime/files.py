"""Files that are whole or absent, and files that one process holds."""

import fcntl
import os
from pathlib import Path
from typing import IO, Any

from configs.errors import UserError


def write_whole(path: Path, content: str | bytes, mode: int = 0o666) -> None:
    """Replaces the content of `path`: a reader sees the earlier content or the new one, also after a crash in between.

    `mode` is that of the file, less the process's umask. Only one process at a time may write a path.
    """
    draft = path.with_name(f".{path.name}.draft")
    # One that a crash left behind would keep its own mode.
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(descriptor)
    draft.replace(path)


def make_folder(folder: Path, field: str) -> None:
    """Makes a folder and those above it. Raises UserError, which names the field that says where, if this user may not."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot make the folder {folder} ({error.strerror}): choose another one with {field}"
        ) from error


def sync(path: Path) -> None:
    """Forces a file's content, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def try_lock(file: int | IO[Any]) -> bool:
    """Takes the lock of an open file or folder, until it is closed; returns False where another process holds it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True

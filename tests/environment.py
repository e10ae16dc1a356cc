"""The Python environment that the tests run in: a run of the suite must leave every file of it as it was.

Other checkouts and other runs share it. A file that a process of ours adds or cuts off there is an error of every later run.
"""

import contextlib
import hashlib
import os
import sysconfig
from pathlib import Path

LIBRARY = Path(sysconfig.get_path("stdlib"))
"""The standard library, of the interpreter that the environment was made from."""
FOLDERS = (*sorted({Path(sysconfig.get_path(name)) for name in ("purelib", "platlib", "scripts")}), LIBRARY)
"""Hold what is installed, and the library."""


def files(folders: tuple[Path, ...] = FOLDERS) -> dict[str, tuple[int, int]]:
    """Returns size in bytes and time of the last change in ns of every file, by path; takes about a second for 80,000.

    What pytest keeps of its plugins' byte code is left out: it belongs to pytest, which makes anew what it cannot read.
    """
    found = {}
    for folder in folders:
        for parent, folders_in_it, names in os.walk(folder):
            if Path(parent) == LIBRARY:
                # What is installed beside it belongs to another environment, or is looked at by itself.
                folders_in_it[:] = [name for name in folders_in_it if name not in ("site-packages", "dist-packages")]
            for name in names:
                if "-pytest-" in name:
                    continue
                path = os.path.join(parent, name)
                with contextlib.suppress(FileNotFoundError):  # Written beside its place and renamed meanwhile.
                    state = os.lstat(path)
                    found[path] = (state.st_size, state.st_mtime_ns)
    return found


def changes(before: dict[str, tuple[int, int]], after: dict[str, tuple[int, int]]) -> list[str]:
    """Returns a line for each file that was added, removed or changed, in order of their paths."""
    lines = []
    for path in sorted(before.keys() | after.keys()):
        if path not in before:
            lines.append(f"added: {path}")
        elif path not in after:
            lines.append(f"removed: {path}")
        elif before[path] != after[path]:
            lines.append(f"changed: {path}, {before[path][0]} bytes before, {after[path][0]} now")
    return lines


def digest(state: dict[str, tuple[int, int]]) -> str:
    """Returns a short digest of all paths, sizes and times."""
    return hashlib.sha256(repr(sorted(state.items())).encode()).hexdigest()[:16]

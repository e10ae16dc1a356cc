"""A folder of a user whose own files have the names of our packages, and of some that those import."""

import sys
from pathlib import Path

from runtime.logs import PACKAGES

ZEROTIR = Path(sys.executable).parent / "zerotir"
"""The command as a user starts it: `python -m launch.cli` would look in the working folder first, for whatever we do."""

OTHERS = ("numpy", "torch", "vllm", "deepspeed", "nats", "random", "signal", "pickle", "tokenize", "runpy")


def write_user_folder(folder: Path) -> Path:
    """Fills `folder`, which must not exist, and returns it."""
    folder.mkdir()
    for name in (*PACKAGES, *OTHERS):
        (folder / f"{name}.py").write_text(f'raise ImportError("{name} was imported from the user\'s folder")\n')
    return folder

"""What a process of ours has from the one that started it: an end with it, and an interpreter that keeps to itself.

The kernel tells a process when the one that started it ends, however that ends. It does so when the thread that started it
ends: that thread must live as long as the process.
"""

import ctypes
import multiprocessing
import os
import shutil
import signal
import sys

_PR_SET_PDEATHSIG = 1

TOLD_WHEN_PARENT_DIES = [setpriv, "--pdeathsig", "TERM"] if (setpriv := shutil.which("setpriv")) else []
"""Put before a command: it gets SIGTERM. Nothing where util-linux's `setpriv`, which sandboxes need anyway, is absent."""


def keep_to_itself() -> None:
    """Has this process, and every Python process that descends from it, write no byte code and not look in the working
    folder for modules.

    Python does not notice that a disk is full, or a file's size limited, while it writes byte code: every later import of
    the module that was cut off would fail. And a user's own `tasks.py` must not stand in for ours. Both settings are in the
    environment, which reaches processes that libraries start as well.
    """
    sys.dont_write_bytecode = True
    os.environ.update(PYTHONDONTWRITEBYTECODE="1", PYTHONSAFEPATH="1")


def die_with_parent() -> None:
    """Has this process killed when the one that started it ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def engine_process() -> None:
    """vLLM calls this, as a plugin, in every process of an engine: without it they would outlive an actor that is killed."""
    actor = multiprocessing.parent_process()
    if actor is None:
        return  # This is the actor itself.
    die_with_parent()
    if os.getppid() != actor.pid:
        os._exit(1)  # It had died before.

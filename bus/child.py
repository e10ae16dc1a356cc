"""Processes that end with the one that started them, however that ends: the kernel tells them.

It does so when the thread that started the child ends: that thread must live as long as the process.
"""

import ctypes
import multiprocessing
import os
import shutil
import signal

_PR_SET_PDEATHSIG = 1

TOLD_WHEN_PARENT_DIES = [setpriv, "--pdeathsig", "TERM"] if (setpriv := shutil.which("setpriv")) else []
"""Put before a command: it gets SIGTERM. Nothing where util-linux's `setpriv`, which sandboxes need anyway, is absent."""


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

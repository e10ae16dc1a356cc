"""Sets up our processes and ends them: they die with their parent, write no byte code, import nothing of the user's folder.

The kernel signals a process when the thread that started it ends, however that happens. So that thread must live as long as
the process.
"""

import atexit
import contextlib
import ctypes
import multiprocessing
import os
import shutil
import signal
import sys
from typing import NoReturn

_PR_SET_PDEATHSIG = 1

TOLD_WHEN_PARENT_DIES = [setpriv, "--pdeathsig", "TERM"] if (setpriv := shutil.which("setpriv")) else []
"""Put before a command: it gets SIGTERM. Nothing where util-linux's `setpriv`, which sandboxes need anyway, is absent."""


def isolate_interpreter() -> None:
    """Makes this process, and every Python process below it, write no byte code and import nothing from the working folder.

    Python does not notice a full disk, or a limit on a file's size, while it writes byte code: every later import of a
    module that was cut off fails. And a `tasks.py` of the user's must not be imported instead of ours. The environment
    carries both settings to processes that libraries start.
    """
    sys.dont_write_bytecode = True
    os.environ.update(PYTHONDONTWRITEBYTECODE="1", PYTHONSAFEPATH="1")


def end_process(status: int) -> NoReturn:
    """Ends this process once exit functions have run and standard output is written; the interpreter stays as it is.

    Threads are not waited for, and other files that are open must have been written.

    PyTorch's Gloo threads live on, also after their process group was destroyed, while anything refers to it (DeepSpeed's
    engine does). One that lets go of a tensor while the interpreter is taken apart aborts the process, "terminate called
    without an active exception": work that was done would have failed (pytorch/pytorch#190489).
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        # A disk that is full, or a pipe that nobody reads.
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


def die_with_parent() -> None:
    """Has this process killed when the one that started it ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def engine_process() -> None:
    """Sets up a process of an engine, which ends with its actor, however that ends; vLLM calls this as a plugin in each."""
    _allow_tiles()
    actor = multiprocessing.parent_process()
    if actor is None:
        return  # This is the actor itself.
    die_with_parent()
    if os.getppid() != actor.pid:
        os._exit(1)  # It had died before.


def _allow_tiles() -> None:
    """Asks Linux for the tile registers of processors with AMX; does nothing on others.

    Without, the first instruction that uses them ends the process (SIGILL). oneDNN asks too, but not for a prompt of few
    tokens: then vLLM's own attention in bfloat16 comes first, and does not ask.
    """
    import torch

    torch.cpu._init_amx()

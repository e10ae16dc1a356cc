"""A role as a child process: started as the user would start it, stopped with everything that it started.

Where util-linux's `setpriv` is installed, as sandboxes need it anyway, a role is told to stop when its supervisor dies,
however that ends.
"""

import asyncio
import contextlib
import os
import shutil
import signal
import sys
from pathlib import Path

import structlog

from launch.cores import Share

log = structlog.get_logger()

STOP_TIMEOUT_S = 11.0
_TOLD_WHEN_PARENT_DIES = [setpriv, "--pdeathsig", "TERM"] if (setpriv := shutil.which("setpriv")) else []


class RoleProcess:
    """One `zerotir ROLE` command, in a process group of its own so that nothing of it stays behind."""

    def __init__(self, name: str, arguments: list[str], output: Path, share: Share | None) -> None:
        self.name = name
        self._arguments = arguments
        self._output = output
        self._share = share
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Starts the command; what it prints goes to its own file."""
        everything = os.sched_getaffinity(0)
        environment = {**os.environ, **(self._share.environment if self._share else {})}
        with self._output.open("ab") as output:
            try:
                # A child inherits the affinity of the thread that starts it.
                if self._share is not None:
                    os.sched_setaffinity(0, self._share.affinity)
                self._process = await asyncio.create_subprocess_exec(
                    *_TOLD_WHEN_PARENT_DIES,
                    sys.executable,
                    "-m",
                    "launch.cli",
                    *self._arguments,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                    env=environment,
                )
            finally:
                os.sched_setaffinity(0, everything)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def code(self) -> int | None:
        """Exit status, None while it runs."""
        assert self._process is not None
        return self._process.returncode

    async def wait(self) -> int:
        """Waits for its end; the caller bounds it."""
        assert self._process is not None
        return await self._process.wait()

    async def stop(self) -> None:
        """SIGTERM, a bounded wait, then SIGKILL to whatever is left of its process group."""
        if self._process is None:
            return
        if self.code is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()
            try:
                await asyncio.wait_for(self._process.wait(), STOP_TIMEOUT_S)
            except TimeoutError:
                log.warning("role did not stop in time, killing it", role=self.name, pid=self.pid)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        await asyncio.wait_for(self._process.wait(), STOP_TIMEOUT_S)

    def last_words(self, lines: int = 12) -> str:
        """The end of what it printed, for an error message."""
        return "\n".join(self._output.read_text(errors="replace").splitlines()[-lines:])

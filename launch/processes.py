"""A role as a child process: started as the user would start it, stopped with everything that it started.

Where util-linux's `setpriv` is installed, as sandboxes need it anyway, a role is told to stop when its supervisor dies,
however that ends.
"""

import asyncio
import contextlib
import json
import os
import signal
import sys
from pathlib import Path

import structlog

from launch.cores import Share
from runtime.child import TOLD_WHEN_PARENT_DIES

log = structlog.get_logger()

STOPPED = 130
"""Exit status of what was told to stop before its work was done."""
STOP_TIMEOUT_S = 11.0
PRINTED_LINES = 12


class RoleProcess:
    """One `zerotir ROLE` command, in a process group of its own so that nothing of it stays behind."""

    def __init__(self, name: str, arguments: list[str], output: Path, share: Share | None) -> None:
        self.name = name
        self._arguments = arguments
        self._output = output
        self._share = share
        self._process: asyncio.subprocess.Process | None = None
        self._logged_before = 0

    async def start(self) -> None:
        """Starts the command; what it prints goes to its own file."""
        log_file = self._output.with_suffix(".jsonl")
        self._logged_before = log_file.stat().st_size if log_file.exists() else 0
        everything = os.sched_getaffinity(0)
        environment = {**os.environ, **(self._share.environment if self._share else {})}
        gives_way = ["nice", "-n", str(self._share.niceness)] if self._share and self._share.niceness else []
        with self._output.open("ab") as output:
            try:
                # A child inherits the affinity of the thread that starts it.
                if self._share is not None:
                    os.sched_setaffinity(0, self._share.affinity)
                self._process = await asyncio.create_subprocess_exec(
                    *TOLD_WHEN_PARENT_DIES,
                    *gives_way,
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
        """Returns the exit status, None while it runs."""
        assert self._process is not None
        return self._process.returncode

    async def wait(self) -> int:
        """Waits for its end; the caller bounds it."""
        assert self._process is not None
        return await self._process.wait()

    async def stop(self) -> None:
        """Sends SIGTERM, waits for a bounded time, then sends SIGKILL to whatever is left of its process group."""
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

    def ending(self) -> str:
        """Returns how it ended, in words, with the error that it reported; without one, the end of what it printed."""
        assert self.code is not None
        if self.code < 0:
            number = -self.code
            names = {each.value: each.name for each in signal.Signals}
            by = " by hand, or by the kernel for want of memory (`dmesg` tells)" if number == signal.SIGKILL else ""
            return f"was killed by signal {number} ({names.get(number, 'unknown')}){by}"
        if error := self._reported_error():
            return f"ended with exit status {self.code}: {error}"
        printed = self._output.read_text(errors="replace").splitlines()[-PRINTED_LINES:]
        return "\n  ".join(
            [f"ended with exit status {self.code}, it printed " + ("last:" if printed else "nothing"), *printed]
        )

    def _reported_error(self) -> str | None:
        """Returns the last error in its log since it was started."""
        log_file = self._output.with_suffix(".jsonl")
        if not log_file.exists():
            return None
        with log_file.open(errors="replace") as lines:
            lines.seek(self._logged_before)
            found = None
            for line in lines:
                with contextlib.suppress(ValueError):  # A process that was killed leaves half a line.
                    record = json.loads(line)
                    found = record["event"] if record["level"] == "error" else found
        return found

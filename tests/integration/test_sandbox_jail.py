"""The jail, with real programs: honest ones work, hostile ones get nothing, and each ending is told apart."""

import ast
import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from bus.messages import ExecutionResult, Outcome
from configs.schema import SandboxConfig
from sandbox.jail import Jail

# An address space that no other jail on the machine has: it tells this test's processes from all others.
MEMORY_MB = 400 + os.getpid() % 97
CONFIG = SandboxConfig(memory_mb=MEMORY_MB, cpu_s=2, max_output_bytes=10_000, max_file_mb=4)


def processes_left() -> list[int]:
    """Living processes on this machine that carry this test's limit."""
    left = []
    for limits in Path("/proc").glob("[0-9]*/limits"):
        try:
            state = limits.with_name("stat").read_text().rpartition(")")[2].split()[0]
            if f" {MEMORY_MB * 1024**2} " in limits.read_text() and state != "Z":
                left.append(int(limits.parent.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return left


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.fixture(scope="module")
def jail() -> Jail:
    return Jail(CONFIG)


@pytest.fixture
async def run(jail):
    """Runs a program, and afterwards looks for processes that it left."""

    async def run(code: str, timeout_s: float = 20.0) -> ExecutionResult:
        result = await jail.run(code, timeout_s)
        assert processes_left() == []
        return result

    return run


def succeeded(result: ExecutionResult) -> str:
    assert (result.outcome, result.exit_code, result.stderr) == (Outcome.EXITED, 0, ""), result
    return result.stdout


async def test_the_leftover_check_sees_a_jailed_process(jail):
    """Otherwise every other test here would pass whatever is left."""
    running = asyncio.create_task(jail.run("import time; time.sleep(60)", 60))
    await until(lambda: processes_left() != [])
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert processes_left() == []


async def test_check_says_what_is_in_force(jail):
    line = await jail.check()
    assert "\n" not in line
    assert f"{MEMORY_MB} MiB" in line


async def test_an_nsjail_that_is_killed_is_a_failure_and_leaves_no_jail(jail):
    running = asyncio.create_task(jail.run("import time; time.sleep(60)", 60))
    await until(lambda: processes_left() != [])
    os.kill(parent_of(processes_left()[0]), signal.SIGKILL)
    result = await running
    assert (result.outcome, result.exit_code) == (Outcome.SANDBOX_FAILURE, None)
    assert "returned -9" in result.detail
    await until(lambda: processes_left() == [])


# Honest programs


async def test_output_and_exit_code(run):
    result = await run("import sys\nprint('out')\nprint('err', file=sys.stderr)\nsys.exit(3)")
    assert (result.stdout, result.stderr, result.exit_code) == ("out\n", "err\n", 3)
    assert (result.outcome, result.signal, result.truncated) == (Outcome.EXITED, None, False)


async def test_every_package_that_is_configured(run):
    code = "import sympy, numpy, mpmath\nprint(sympy.factor('x**2 - 1'), int(numpy.arange(5).sum()), mpmath.mp.dps)"
    assert succeeded(await run(code)) == "(x - 1)*(x + 1) 10 15\n"


async def test_packages_that_are_not_configured_are_not_there(run):
    assert (await run("import pydantic")).stderr.endswith("ModuleNotFoundError: No module named 'pydantic'\n")
    assert (await run("import sys; sys.path.append('/python/lib/python3.12/site-packages'); import pip")).exit_code == 1


async def test_the_traceback_shows_the_programs_own_lines(run):
    result = await run("def f(a):\n    return a + missing\nf(1)")
    assert result.exit_code == 1
    lines = result.stderr.splitlines()
    assert lines[:2] == ["Traceback (most recent call last):", '  File "/box/main.py", line 3, in <module>']
    assert "    return a + missing" in lines
    assert lines[-1] == "NameError: name 'missing' is not defined"


@pytest.mark.parametrize(
    ("code", "last_line"),
    [
        ("print(1", "SyntaxError: '(' was never closed"),
        ("x = 'a\0b'", "SyntaxError: source code string cannot contain null bytes"),
        ("name = input()", "EOFError: EOF when reading a line"),
        ("raise ValueError('é€')", "ValueError: é€"),
        ("'\udc80'", "SyntaxError: source code is not valid Unicode at position 1"),
        ("def f(): f()\nf()", "RecursionError: maximum recursion depth exceeded"),
        ("(" * 5000, "SyntaxError: too many nested parentheses"),
        ("import sys; sys.exit('bye')", "bye"),
    ],
)
async def test_errors_end_with_the_line_that_python_prints(run, code, last_line):
    result = await run(code)
    assert (result.outcome, result.exit_code) == (Outcome.EXITED, 1)
    assert result.stderr.splitlines()[-1] == last_line


async def test_exit_255_is_the_programs_own(run):
    assert (await run("exit(255)")).exit_code == 255
    assert (await run("import os; os._exit(255)")).exit_code == 255


async def test_the_longest_program_runs_and_a_longer_one_is_refused(run):
    end = "\nprint('end')\n"
    longest = "#" * (CONFIG.max_code_bytes - len(end)) + end
    assert succeeded(await run(longest)) == "end\n"
    assert "longer than the limit" in (await run("#" + longest)).stderr


async def test_output_that_is_not_utf8_is_shown_with_replacement_characters(run):
    assert succeeded(await run("import os; os.write(1, b'a\\xff')")) == "a\ufffd"


async def test_output_before_a_limit_is_kept(run):
    result = await run("print('so far')\nwhile True: pass", timeout_s=1.0)
    assert (result.outcome, result.stdout) == (Outcome.TIMEOUT, "so far\n")


async def test_threads_processes_and_files_of_its_own(run):
    code = """
import subprocess, sys, tempfile, threading, os
t = threading.Thread(target=print, args=("thread",)); t.start(); t.join()
print(subprocess.run([sys.executable, "-c", "print('child')"], capture_output=True, text=True).stdout, end="")
with tempfile.TemporaryFile("w+") as f:
    f.write("file"); f.seek(0); print(f.read())
"""
    assert succeeded(await run(code)) == "thread\nchild\nfile\n"


async def test_a_program_is_the_main_module(run):
    assert succeeded(await run("import sys\nclass A: pass\nprint(__name__, sys.modules['__main__'].A is A)")) == (
        "__main__ True\n"
    )


async def test_many_at_once_do_not_mix(run, jail):
    results = await asyncio.gather(*(jail.run(f"print({n})", 20) for n in range(12)))
    assert [result.stdout for result in results] == [f"{n}\n" for n in range(12)]
    assert processes_left() == []


async def test_jails_share_no_files(run):
    await run("open('/box/left', 'w').write('x')")
    assert succeeded(await run("import os; print(os.listdir('/box'))")) == "['main.py']\n"


# Limits


async def test_wall_time(run):
    result = await run("import time; time.sleep(60)", timeout_s=0.5)
    assert (result.outcome, result.exit_code, result.signal) == (Outcome.TIMEOUT, None, None)


async def test_a_program_that_ignores_signals_ends_at_its_time(run):
    code = """
import signal
for number in range(1, 65):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
while True: signal.pause()
"""
    assert (await run(code, timeout_s=0.5)).outcome is Outcome.TIMEOUT


async def test_cpu_time(run):
    assert (await run("while True: pass")).outcome is Outcome.CPU_LIMIT


async def test_address_space(run):
    result = await run("x = bytearray(1 << 30)")
    assert (result.outcome, result.stderr.splitlines()[-1]) == (Outcome.EXITED, "MemoryError")


async def test_fork_bomb(run):
    result = await run(
        """
import os
made = 0
try:
    while True:
        if os.fork() == 0:
            while True: os.sched_yield()
        made += 1
except OSError as error:
    print(made, type(error).__name__)
"""
    )
    assert result.stdout == f"{CONFIG.max_processes - 1} BlockingIOError\n"


async def test_fork_bomb_that_goes_on(run):
    result = await run("import os\nwhile True:\n    try: os.fork()\n    except OSError: pass", timeout_s=2.0)
    assert result.outcome in (Outcome.TIMEOUT, Outcome.CPU_LIMIT)


@pytest.mark.parametrize("descriptor", [1, 2])
async def test_output_flood(run, descriptor):
    result = await run(f"import os\nwhile True: os.write({descriptor}, b'y' * 3000)")
    assert (result.outcome, result.truncated) == (Outcome.OUTPUT_LIMIT, True)
    kept, other = (result.stdout, result.stderr) if descriptor == 1 else (result.stderr, result.stdout)
    assert (kept, other) == ("y" * CONFIG.max_output_bytes, "")


async def test_a_program_ends_where_its_output_does(run):
    result = await run("import os, time\nos.write(1, b'y' * 20_000)\ntime.sleep(3)\nos.write(2, b'went on')")
    assert (result.outcome, result.stderr) == (Outcome.OUTPUT_LIMIT, "")


async def test_output_of_exactly_the_limit_is_whole(run):
    result = await run(f"import os; os.write(1, b'y' * {CONFIG.max_output_bytes})")
    assert (len(succeeded(result)), result.truncated) == (CONFIG.max_output_bytes, False)


async def test_disk_fill(run):
    code = """
import os
try:
    for n in range(100):
        with open(f"/box/{n}", "wb") as f: f.write(bytes(1 << 20))
except OSError as error:
    print(n, error.strerror)
"""
    assert succeeded(await run(code)) == f"{CONFIG.max_file_mb - 1} No space left on device\n"


async def test_file_flood(run):
    code = "import os\ntry:\n    for n in range(100000): os.mkdir(f'/box/{n}')\nexcept OSError as e: print(e.strerror)"
    assert succeeded(await run(code)) == "No space left on device\n"


async def test_a_child_that_outlives_the_program_is_ended(run):
    assert succeeded(await run("import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(60)")) == ""


@pytest.mark.parametrize(
    ("code", "number"),
    [("import ctypes; ctypes.string_at(0)", 11), ("import os; os.abort()", 11)],
    ids=["invalid memory", "abort"],
)
async def test_crash(run, code, number):
    result = await run(code)
    assert (result.outcome, result.exit_code, result.signal) == (Outcome.CRASHED, None, number)


# What a program may not reach


ATTEMPT = """
def attempt(do):
    try:
        got = do()
    except OSError:
        print("refused")
    else:
        print("allowed", got)
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    result = libc.syscall(number, *arguments)
    if result == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
"""

SYSTEM_CALLS = {
    "unshare of a user namespace": (272, 0x10000000),
    "unshare of a mount namespace": (272, 0x00020000),
    "clone into a user namespace": (56, 0x10000000 | 17, 0, 0, 0, 0),
    "clone3": (435, 0, 0),
    "setns": (308, 0, 0),
    "mount": (165, b"none", b"/box", b"tmpfs", 0, 0),
    "umount": (166, b"/box", 0),
    "fsopen": (430, b"tmpfs", 0),
    "open_tree": (428, -100, b"/", 1),
    "pivot_root": (155, b"/box", b"/box"),
    "chroot": (161, b"/box"),
    "add_key": (248, b"user", b"a", b"b", 1, -4),
    "request_key": (249, b"user", b"a", 0, 0),
    "keyctl": (250, 0, -3, 1),
    "io_uring_setup": (425, 4, bytes(120)),
    "shmget": (29, 0, 4096, 0o1666),
    "semget": (64, 0, 1, 0o1666),
    "msgget": (68, 0, 0o1666),
    "ptrace of itself": (101, 0, 0, 0, 0),
    "process_vm_readv": (310, 1, 0, 0, 0, 0, 0),
    "bpf": (321, 0, bytes(72), 72),
    "perf_event_open": (298, bytes(72), 0, -1, -1, 0),
    "userfaultfd": (323, 1),
    "memfd_create": (319, b"x", 0),
    "execveat": (322, -100, b"/python/bin/python3", 0, 0, 0),
    "pidfd_open": (434, 1, 0),
    "landlock_create_ruleset": (444, 0, 0, 1),
    "prctl that undoes the death with nsjail": (157, 1, 0),
    "personality": (135, 0x0400000),
    "kexec_load": (246, 0, 0, 0, 0),
    "init_module": (175, 0, 0, b""),
    "mq_open": (240, b"q", 0o102, 0o600, 0),
    "name_to_handle_at": (303, -100, b"/box", bytes(72), bytes(72), 0),
    "mknod of a device": (133, b"/box/device", 0o20666, 0x101),
    "a call of the x32 interface": (0x40000000 | 39,),
    "a call that no kernel has": (1000,),
}


@pytest.mark.parametrize("arguments", SYSTEM_CALLS.values(), ids=SYSTEM_CALLS.keys())
async def test_system_calls_that_are_refused_by_the_filter(run, arguments):
    """An error of the filter, not of the arguments: EPERM or ENOSYS, and the program goes on."""
    code = f"{ATTEMPT}\ntry:\n    print(call(*{arguments!r}))\nexcept OSError as error:\n    print(error.errno)"
    assert succeeded(await run(code)) in ("1\n", "38\n")


async def test_the_filter_lets_ordinary_calls_through(run):
    """The same way of calling reaches the kernel, so the refusals above are the filter's."""
    assert succeeded(await run(f"{ATTEMPT}\nprint(call(39), call(102))")) == "1 65534\n"


async def test_sockets_of_every_family(run):
    """EPERM for all, also for families that the kernel does not have: the filter's answer, not the kernel's."""
    code = """
import errno, socket
for family in range(48):
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW):
        try: socket.socket(family, kind); print("allowed", family, kind)
        except OSError as error: print(errno.errorcode[error.errno])
"""
    assert set(succeeded(await run(code)).split()) == {"EPERM"}


async def test_socket_pairs(run):
    assert succeeded(await run(f"{ATTEMPT}\nimport socket\nattempt(socket.socketpair)")) == "refused\n"


@pytest.mark.parametrize(
    "path",
    [
        *["/proc/self/status", "/proc/1/root", "/sys/kernel", "/etc/shadow", "/etc/passwd", "/root", "/home", "/tmp"],
        *["/run", "/var", "/mnt", "/usr/bin", "/dev/mem", "/dev/shm", "/dev/tty", "/dev/fuse"],
        str(Path(__file__).parent),
    ],
)
async def test_paths_of_the_host(run, path):
    assert succeeded(await run(f"import os; print(os.path.lexists({path!r}))")) == "False\n"


async def test_what_the_root_folder_holds(run):
    listed = succeeded(await run("import os; print(sorted(os.listdir('/')), sorted(os.listdir('/dev')))"))
    folders, devices = listed.strip().split("] ")
    assert set(ast.literal_eval(folders + "]")) <= {"box", "dev", "lib", "lib64", "packages", "python", "usr"}
    assert devices == "['null', 'urandom', 'zero']"


@pytest.mark.parametrize("folder", ["/", "/python", "/python/bin", "/packages", "/packages/sympy", "/lib64", "/dev"])
async def test_writes_outside_the_box(run, folder):
    code = f"{ATTEMPT}\nattempt(lambda: open('{folder}/new', 'w'))\nattempt(lambda: os.chmod('{folder}', 0o777))"
    assert succeeded(await run(code)) == "refused\nrefused\n"


async def test_writes_to_what_is_mounted(run):
    code = f"""{ATTEMPT}
attempt(lambda: open('/packages/sympy/__init__.py', 'a'))
attempt(lambda: os.remove('/python/bin/python3'))
"""
    assert succeeded(await run(code)) == "refused\nrefused\n"


async def test_what_is_mounted_is_read_only_even_for_its_owner(tmp_path, monkeypatch):
    """As for a service that an ordinary user runs, who owns the packages; here all may write to them."""
    package = tmp_path / "owned_by_all"
    package.mkdir()
    (package / "__init__.py").write_text("")
    for path in (package / "__init__.py", package):
        path.chmod(0o777)
    monkeypatch.syspath_prepend(tmp_path)
    jail = Jail(CONFIG.model_copy(update={"packages": ("owned_by_all",)}))
    code = f"""{ATTEMPT}
import owned_by_all
attempt(lambda: open(owned_by_all.__file__, "a"))
attempt(lambda: open("/packages/owned_by_all/new.py", "w"))
"""
    assert succeeded(await jail.run(code, 20)) == "refused\nrefused\n"
    assert [path.name for path in package.iterdir()] == ["__init__.py"]


async def test_a_dropped_program_does_not_run(run):
    code = f"""{ATTEMPT}
import shutil, subprocess
shutil.copyfile("/python/bin/python3", "/box/program")
os.chmod("/box/program", 0o755)
attempt(lambda: subprocess.run(["/box/program", "-c", "print('ran')"]))
loader = "/lib64/ld-linux-x86-64.so.2"
print(subprocess.run([loader, "/box/program", "-c", "print('ran')"], capture_output=True, text=True).stdout)
"""
    assert succeeded(await run(code)) == "refused\n\n"


async def test_no_rights_beyond_an_ordinary_user(run):
    code = """
import os
for attempt in (lambda: os.setuid(0), lambda: os.setgid(0), lambda: os.setgroups([0]), lambda: os.chown("/box", 0, 0)):
    try: attempt(); print("allowed")
    except PermissionError: print("refused")
print(os.getuid(), os.getgid(), os.getgroups())
"""
    assert succeeded(await run(code)).splitlines() == ["refused"] * 4 + ["65534 65534 []"]


async def test_limits_cannot_be_raised(run):
    code = f"""{ATTEMPT}
import resource
for name in ("AS", "CPU", "NPROC", "FSIZE", "NOFILE", "CORE"):
    limit = getattr(resource, "RLIMIT_" + name)
    attempt(lambda: resource.setrlimit(limit, (resource.getrlimit(limit)[1] + 1,) * 2))
"""
    result = await run(code.replace("except OSError", "except (OSError, ValueError)"))
    assert succeeded(result) == "refused\n" * 6


async def test_environment(run):
    os.environ["ZEROTIR_TEST_SECRET"] = "secret"
    seen = succeeded(await run("import os, sys; print(os.environ, sys.argv, sys.orig_argv[:1], os.uname().nodename)"))
    assert "secret" not in seen
    assert os.uname().nodename not in seen


async def test_descriptors(run):
    """Its three standard streams and nothing of nsjail's or ours."""
    code = """
import os
def is_open(n):
    try: os.fstat(n)
    except OSError: return False
    return True
print([n for n in range(64) if is_open(n)])
"""
    assert succeeded(await run(code)) == "[0, 1, 2]\n"


async def test_its_source_is_read_only(run):
    code = f"{ATTEMPT}\nattempt(lambda: os.write(0, b'x'))\nattempt(lambda: os.ftruncate(0, 0))"
    assert succeeded(await run(code)) == "refused\nrefused\n"


async def test_killing_everybody_reaches_only_itself(run):
    """Process 1 of its own namespace: other processes have no number there."""
    bystander = await asyncio.create_subprocess_exec("sleep", "60")
    try:
        code = "import os, signal\nfor pid in [-1, 1, *range(2, 33000)]:\n"
        code += "    try: os.kill(pid, 9); print(pid)\n    except ProcessLookupError: pass"
        assert succeeded(await run(code)) == "1\n"
        assert bystander.returncode is None
    finally:
        bystander.kill()
        await bystander.wait()


async def test_forged_log_lines_are_output_and_nothing_else(run):
    code = """
import os
for n in range(1, 10):
    for line in ("[I][2026-01-01T00:00:00+0000] pid=2 ([STANDALONE MODE]) exited with status: 0, (PIDs left: 0)",
                 "[F][2026-01-01T00:00:00+0000][1] main():1 Couldn't launch the child process"):
        try: os.write(n, b"\\n" + line.encode() + b"\\n")
        except OSError: pass
os._exit(7)
"""
    result = await run(code)
    assert (result.outcome, result.exit_code) == (Outcome.EXITED, 7)
    assert result.stderr.count("exited with status: 0") == 1
    assert result.stdout.count("Couldn't launch") == 1


async def test_memory_is_not_executable_from_the_box(run):
    code = """
import mmap
with open("/box/code", "wb") as f: f.write(bytes(4096))
with open("/box/code", "rb") as f:
    try: mmap.mmap(f.fileno(), 4096, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_EXEC); print("mapped")
    except PermissionError: print("refused")
"""
    assert succeeded(await run(code)) == "refused\n"

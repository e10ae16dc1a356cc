"""What a program may not reach: the host, other processes, the kernel."""

import ast
import asyncio
import os
from pathlib import Path

import pytest

from bus.messages import Outcome
from sandbox.jail import Jail
from tests.integration.sandbox import traces
from tests.integration.sandbox.conftest import CONFIG
from tests.integration.sandbox.results import succeeded

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


HOG = """
import fcntl, os, time
pipes = []
for _ in range(30):
    pipes.append(os.pipe())
    try: fcntl.fcntl(pipes[-1][1], fcntl.F_SETPIPE_SZ, 2**20)
    except PermissionError: break
os.write(1, b"x")
time.sleep(60)
"""


async def test_quotas_of_a_user_are_each_jails_own(jail):
    """Beyond its quota a user's new pipes have two pages instead of 16; three such programs would use up one user's."""
    if jail.users.shared:
        pytest.skip(jail.users.shared)
    hogs = [await jail.start(loaded=False) for _ in range(3)]
    running = [asyncio.create_task(hog.run(HOG, 60)) for hog in hogs]
    await traces.until(lambda: all(hog._process.stdout.data for hog in hogs))
    try:
        size = "import fcntl, os; print(fcntl.fcntl(os.pipe()[0], fcntl.F_GETPIPE_SZ))"
        assert succeeded(await jail.run(size, 20)) == "65536\n"
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    traces.assert_none(jail)


async def test_each_jail_has_a_user_of_its_own(jail):
    if jail.users.shared:
        pytest.skip(jail.users.shared)
    waiting = [await jail.start(loaded=False) for _ in range(3)]
    try:
        owners = {Path(f"/proc/{pid}").stat().st_uid for pid in traces.processes()}
    finally:
        await asyncio.gather(*(jail.end() for jail in waiting))
    assert len(owners - {os.geteuid()}) == 3
    assert all(owner in jail.users.uids for owner in owners - {os.geteuid()})


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

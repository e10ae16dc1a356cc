"""Control groups: bounds of a jail as a whole, on version 1 and version 2.

Limits of single processes (`rlimit`) let sixteen of them take sixteen times as much. So each jail, its nsjail included,
lies in a group of its own: memory with the working folder and without swap, processes, and CPU. The groups are made
here and not by nsjail, which removes its own together with the counter of what the kernel killed in it. A group whose
jail has ended, and which holds no process any more, waits for the next jail: making and removing one in each hierarchy
would be a good part of the service's work for an execution.

    <the service's own group>/zerotir-<token>/<number>     one a jail, in each hierarchy

A service holds a lock on each of its folders while it lives, so the next one can tell, and clear, what a killed one left.
"""

import asyncio
import contextlib
import errno
import itertools
import os
import re
import secrets
import signal
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from configs.schema import SandboxConfig
from runtime.files import try_lock
from sandbox.program import STOP_S

NEEDED = ("memory", "pids", "cpu")
"""Controllers."""
PREFIX = "zerotir-"
SERVICE_LEAF = "service-zerotir"
LOCK_S = 30.0
OVERHEAD_MB = 32
"""Memory of nsjail and of the kernel's own records, beside the program's."""
PERIOD_US = 100_000
DELEGATE = "systemd-run --user --scope -p Delegate=yes zerotir sandbox CONFIG"


class CgroupsUnavailable(RuntimeError):
    """This process cannot make the groups; the text says why and what fixes it."""


@dataclass(frozen=True)
class Hierarchy:
    """Says where one controller's groups are made: this process's own folder."""

    version: int
    folder: Path


def find_hierarchies(mountinfo: str, membership: str) -> dict[str, Hierarchy]:
    """Returns the needed controllers' hierarchies, all of one version; version 1 where it has them, as a mixed host uses it.

    Args:
        mountinfo: text of `/proc/self/mountinfo`.
        membership: text of `/proc/self/cgroup`.

    Raises CgroupsUnavailable where a controller's file system is not mounted. Whether the folders may be written to is
    not looked at here.
    """
    own = {}
    for line in membership.splitlines():
        _, controllers, path = line.split(":", 2)
        own.update(dict.fromkeys(controllers.split(","), path))
    first, second = {}, None
    for line in mountinfo.splitlines():
        fields, _, rest = line.partition(" - ")
        root, point = fields.split()[3:5]
        kind, _, options = rest.split(" ", 2)
        if kind == "cgroup":
            for name in set(options.split(",")) & set(NEEDED) & set(own):
                first[name] = Hierarchy(1, _inside(own[name], root, point))
        elif kind == "cgroup2" and "" in own:
            second = Hierarchy(2, _inside(own[""], root, point))
    if set(first) == set(NEEDED):
        return {name: first[name] for name in NEEDED}
    if second is None:
        missing = ", ".join(sorted(set(NEEDED) - set(first)))
        raise CgroupsUnavailable(
            f"no cgroup file system for {missing} is mounted: `mount -t cgroup2 none /sys/fs/cgroup`"
        )
    return dict.fromkeys(NEEDED, second)


def _inside(path: str, root: str, point: str) -> Path:
    """Returns the folder of group `path`, where the file system's folder `root` is mounted at `point`."""
    relative = os.path.relpath(path, root)
    # In a container the group may lie above what is mounted: the mount's own root is then all that can be used.
    return Path(point) if relative.startswith("..") else Path(point, relative)


def settings(version: int, config: SandboxConfig) -> dict[str, dict[str, str]]:
    """Returns what is written into the files of a jail's group, in this order, by controller."""
    memory = str((config.memory_mb + OVERHEAD_MB) * 1024**2)
    quota = str(int(config.cpus * PERIOD_US))
    # nsjail itself is the one process more.
    pids = {"pids.max": str(config.max_processes + 1)}
    if version == 1:
        return {
            # Memory and swap together are limited to what memory alone is: no swap.
            "memory": {"memory.limit_in_bytes": memory, "memory.memsw.limit_in_bytes": memory},
            "pids": pids,
            "cpu": {"cpu.cfs_period_us": str(PERIOD_US), "cpu.cfs_quota_us": quota},
        }
    return {
        "memory": {"memory.max": memory, "memory.swap.max": "0"},
        "pids": pids,
        "cpu": {"cpu.max": f"{quota} {PERIOD_US}"},
    }


KILL_COUNTER = {1: "memory.oom_control", 2: "memory.events"}
SWAP_FILES = ("memory.memsw.limit_in_bytes", "memory.swap.max")


def kills(text: str) -> int:
    """Returns how many processes the kernel killed for want of memory, by a group's counters or `/proc/vmstat`."""
    found = re.search(r"^oom_kill (\d+)$", text, re.MULTILINE)
    return int(found[1]) if found else 0


class JailGroup:
    """The group of one jail, and of others after it."""

    def __init__(
        self,
        version: int,
        folders: Mapping[str, Path],
        limits: Mapping[str, Mapping[str, str]],
        idle: "list[JailGroup]",
    ) -> None:
        """Makes it with its limits; it goes to `idle` when it is given back.

        Raises OSError where the kernel refuses, and leaves nothing then.
        """
        self._folders = list(dict.fromkeys(folders.values()))
        self._counter = f"{folders['memory']}/{KILL_COUNTER[version]}"
        # As strings: joining paths takes longer than to ask the kernel.
        self._process_files = [f"{folder}/cgroup.procs" for folder in self._folders]
        self._kills_before = 0
        self._idle = idle
        try:
            for folder in self._folders:
                folder.mkdir()
            for name, files in limits.items():
                for file, value in files.items():
                    path = folders[name] / file
                    # A kernel that does not account swap has no such file; where there is no swap it is not missed.
                    if file not in SWAP_FILES or path.exists() or _swap_in_use():
                        _write(str(path), value)
        except OSError:
            remove(self._folders)
            raise

    def add(self, pid: int) -> None:
        """Moves a process in; its children are born there. Takes up to 20 ms of waiting for the kernel."""
        for file in self._process_files:
            _write(file, str(pid))

    @property
    def memory_kills(self) -> int:
        """Returns how many processes of its present jail the kernel killed for want of memory."""
        return kills(_read(self._counter)) - self._kills_before

    async def give_back(self) -> None:
        """Ends whatever is still in it and leaves it to the next jail. Raises RuntimeError where that takes too long."""
        deadline = time.monotonic() + STOP_S
        while any([end_processes(file) for file in self._process_files]):
            if time.monotonic() > deadline:
                raise RuntimeError(_STUCK.format(self._folders[0]))
            await asyncio.sleep(0.005)
        self._kills_before += self.memory_kills
        self._idle.append(self)


_STUCK = f"processes in {{}} did not end within {STOP_S:.0f} s of SIGKILL: look at their kernel stacks"


def _swap_in_use() -> bool:
    return len(Path("/proc/swaps").read_text().splitlines()) > 1


def remove(folders: Iterable[Path]) -> bool:
    """Removes groups; where processes keep one, kills them and returns False: try again."""
    for folder in folders:
        try:
            folder.rmdir()
        except FileNotFoundError:
            continue
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            end_processes(f"{folder}/cgroup.procs")
            return False
    return True


def _read(file: str) -> str:
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, 65536).decode()
    finally:
        os.close(descriptor)


def _write(file: str, value: str) -> None:
    descriptor = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, value.encode())
    finally:
        os.close(descriptor)


def end_processes(file: str) -> bool:
    """Returns whether a group holds processes, by its file of them; they have been sent SIGKILL then."""
    found = _read(file).split()
    for pid in map(int, found):
        # 0 stands for a process that this PID namespace does not see.
        if pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    return bool(found)


class Cgroups:
    """The groups of one service's jails; its own ends with it."""

    def __init__(self, config: SandboxConfig) -> None:
        """Clears what services that were killed have left, and makes and tries the service's own group.

        Raises CgroupsUnavailable where this process may not, or where a limit cannot be set.
        """
        found = find_hierarchies(Path("/proc/self/mountinfo").read_text(), Path("/proc/self/cgroup").read_text())
        self.version = found["memory"].version
        self._limits = settings(self.version, config)
        self._numbers = itertools.count()
        self._idle: list[JailGroup] = []
        bases = {name: hierarchy.folder for name, hierarchy in found.items()}
        try:
            if self.version == 2:
                bases = dict.fromkeys(NEEDED, delegated(bases["memory"]))
            self._folders = _make_service_group(self, bases)
            if self.version == 2:
                _enable(self._folders["memory"])
            # The first is made now, which shows whether it can be.
            self._idle.append(self.take())
        except OSError as error:
            remedy = "run the sandbox as root" if self.version == 1 else f"`{DELEGATE}`"
            raise CgroupsUnavailable(f"cgroup v{self.version}: {error}: {remedy}") from error

    def take(self) -> JailGroup:
        """Returns a group for one jail, without processes. Raises OSError."""
        if self._idle:
            return self._idle.pop()
        number = str(next(self._numbers))
        folders = {name: folder / number for name, folder in self._folders.items()}
        return JailGroup(self.version, folders, self._limits, self._idle)


def delegated(own: Path) -> Path:
    """Returns the folder of version 2 below which groups can be made, from this process's own.

    There only leaves may hold processes, so this process moves into one. Raises CgroupsUnavailable where that does not
    do, because controllers are not handed down or other processes are there; nothing is changed then. Raises OSError.
    """
    base = own.parent if own.name == SERVICE_LEAF else own
    absent = set(NEEDED) - set((base / "cgroup.controllers").read_text().split())
    if absent:
        raise CgroupsUnavailable(f"{base} has no controller {', '.join(sorted(absent))}: `{DELEGATE}`")
    if set(NEEDED) <= set((base / "cgroup.subtree_control").read_text().split()):
        return base
    leaf = base / SERVICE_LEAF
    # The root of all groups is exempt; it alone has no type.
    moves = own == base and (base / "cgroup.type").exists()
    if moves:
        leaf.mkdir(exist_ok=True)
        (leaf / "cgroup.procs").write_text("0")
    try:
        _enable(base)
    except OSError as error:
        if moves:
            (base / "cgroup.procs").write_text("0")
            leaf.rmdir()
        raise CgroupsUnavailable(
            f"{base} cannot be divided, other processes are in it ({error}): `{DELEGATE}`"
        ) from error
    return base


def _enable(folder: Path) -> None:
    (folder / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in NEEDED))


def _make_service_group(owner: object, bases: Mapping[str, Path]) -> dict[str, Path]:
    """Returns a group that is locked until `owner` ends, after the groups that nobody holds are gone.

    Each hierarchy has a lock of its own: on version 1 two services may share one and be apart in another.
    """
    folders = sorted(set(bases.values()))
    with contextlib.ExitStack() as stack:
        for base in folders:
            stack.enter_context(_locked(base))
        for base in folders:
            for left in base.glob(f"{PREFIX}*"):
                _sweep(left)
        token = f"{PREFIX}{secrets.token_hex(4)}"
        locks = {}
        for base in folders:
            folder = base / token
            folder.mkdir()
            locks[folder] = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
            if not try_lock(locks[folder]):
                raise CgroupsUnavailable(f"another process holds {folder}, which was made just now")
    weakref.finalize(owner, _sweep_own, locks)
    return {name: base / token for name, base in bases.items()}


def _sweep_own(locks: Mapping[Path, int]) -> None:
    for folder, lock in locks.items():
        os.close(lock)
        _sweep(folder)


def _sweep(group: Path) -> None:
    """Removes a service's group in one hierarchy with all that is in it, unless it is alive and holds its lock."""
    try:
        lock = os.open(group, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        if not try_lock(lock):
            return
        deadline = time.monotonic() + STOP_S
        while not remove([*group.glob("[0-9]*"), group]):
            if time.monotonic() > deadline:
                raise RuntimeError(_STUCK.format(group))
            time.sleep(0.005)
    finally:
        os.close(lock)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keeps other services from clearing away while one of them makes its group.

    Raises CgroupsUnavailable after `LOCK_S` seconds.
    """
    lock = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    deadline = time.monotonic() + LOCK_S
    try:
        while not try_lock(lock):
            if time.monotonic() > deadline:
                raise CgroupsUnavailable(
                    f"another sandbox service has held {folder} for {LOCK_S:.0f} s: end it, it hangs"
                )
            time.sleep(0.02)
        yield
    finally:
        os.close(lock)

"""What executions might leave on the machine, as far as this test run's jails are concerned."""

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path

from sandbox.jail import Jail

HUNG_S = 60.0
"""Beyond a program's own limit, an answer that is not there by then will never come, however busy the machine."""

# An address space that no other jail on the machine has: it tells this run's processes from all others.
MEMORY_MB = 400 + os.getpid() % 97


def processes() -> list[int]:
    """Living processes on this machine that carry this run's limit."""
    left = []
    for limits in Path("/proc").glob("[0-9]*/limits"):
        try:
            state = limits.with_name("stat").read_text().rpartition(")")[2].split()[0]
            if f" {MEMORY_MB * 1024**2} " in limits.read_text() and state != "Z":
                left.append(int(limits.parent.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return left


def groups(jail: Jail) -> list[Path]:
    """The groups of `jail`'s jails that hold processes, in every hierarchy."""
    if jail.cgroups is None:
        return []
    leaves = [leaf for folder in set(jail.cgroups._folders.values()) for leaf in folder.iterdir() if leaf.is_dir()]
    return [leaf for leaf in leaves if (leaf / "cgroup.procs").read_text()]


def mounts() -> list[str]:
    """Mounts of a jail that this process can see."""
    return [
        line for line in Path("/proc/self/mountinfo").read_text().splitlines() if "nsjail" in line or "/box" in line
    ]


def files(jail: Jail) -> list[Path]:
    """Files of the users that jails run as, unless they run as this one, in the folders where anyone may leave one.

    Not nsjail's two mount points, which it makes once on a machine; nothing may lie in them.
    """
    found = [Path(folder, name) for folder in ("/tmp", "/var/tmp", "/dev/shm") for name in os.listdir(folder)]
    found += [path for point in Path("/tmp").glob("nsjail.*") for path in point.iterdir()]
    return [
        path
        for path in found
        if path.exists()
        and path.lstat().st_uid in jail.users.uids
        and path.lstat().st_uid != os.geteuid()
        and path.suffix not in (".root", ".tmp")
    ]


def assert_none(jail: Jail, waiting: int = 0) -> None:
    """Nothing is left but `waiting` jails that wait for their program."""
    assert len(processes()) == waiting
    if jail.cgroups is not None:
        assert len(groups(jail)) == waiting * len(set(jail.cgroups._folders.values()))
    assert mounts() == []
    assert files(jail) == []


def parent_of(pid: int) -> int:
    """The process that started `pid`: nsjail, for a program."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def block_until_none() -> None:
    """Waits until every process of this run is dead, and lets nothing else run on the caller's loop meanwhile."""
    deadline = time.monotonic() + HUNG_S
    while processes():
        assert time.monotonic() < deadline
        time.sleep(0.01)


async def until(condition: Callable[[], bool]) -> None:
    """Waits for what happens by itself soon."""
    async with asyncio.timeout(HUNG_S):
        while not condition():
            await asyncio.sleep(0.01)

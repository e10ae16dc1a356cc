"""Writes nsjail's configuration: what a jail contains and what it may use.

The jail's file system is an empty read-only tmpfs with: the base interpreter and its standard library under `/python`,
the configured packages under `/packages`, the C library's folders, `/dev/{null,zero,urandom}`, and `/box`, a small
writable tmpfs without devices, set-user-id or execution. No `/proc`, no `/sys`, nothing of the host's users or
configuration. All namespaces are new; the loopback interface stays down.
"""

import importlib.util
import os
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nsjail.config import Exe, MountPt, NsJailConfig
from nsjail.enums import LogLevel, Mode, RLimitType
from nsjail.serializers import to_textproto

from configs.errors import UserError
from configs.schema import SandboxConfig

MAX_OPEN_FILES = 64
MAX_INODES = 4096
WARM_UP_CPU_S = 60
HEAP_BYTES = 64 * 2**20
"""Heap that an interpreter with packages takes at once, as address space; `bootstrap.py` backs it by huge pages."""
HERE = Path(__file__).parent


class SandboxUnavailable(UserError):
    """Jails cannot run on this machine; the text says what is missing and what fixes it."""


@dataclass(frozen=True)
class Mount:
    """A file or folder of the host and where it lies, read-only, in the jail."""

    source: Path
    target: str
    hidden: tuple[str, ...] = ()
    """Folders directly inside it that are empty in the jail."""


def interpreter_mounts() -> list[Mount]:
    """Returns the base interpreter that this environment was made from: executable, shared library, standard library."""
    executable = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    stdlib = Path(os.__file__).resolve().parent
    # What is installed beside the standard library is not part of it.
    hidden = tuple(name for name in ("site-packages", "dist-packages") if (stdlib / name).is_dir())
    mounts = [
        Mount(executable, "/python/bin/python3"),
        Mount(stdlib, f"/python/{sys.platlibdir}/{stdlib.name}", hidden),
    ]
    shared = Path(sys.base_prefix) / "lib" / (sysconfig.get_config_var("INSTSONAME") or "")
    if shared.is_file():
        mounts.append(Mount(shared.resolve(), f"/python/lib/{shared.name}"))
    return mounts


def package_mounts(packages: Sequence[str]) -> list[Mount]:
    """Returns the importable packages and the shared libraries that their wheels carry. Raises SandboxUnavailable."""
    mounts = []
    for name in packages:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            raise SandboxUnavailable(
                f"sandbox.packages names {name!r}, which is not installed: `pip install {name}`, or take it out"
            )
        source = Path(spec.origin)
        if spec.submodule_search_locations:
            source = source.parent
        mounts.append(Mount(source.resolve(), f"/packages/{source.name}"))
        libraries = source.with_name(f"{name}.libs")
        if libraries.is_dir():
            mounts.append(Mount(libraries.resolve(), f"/packages/{libraries.name}"))
    return mounts


def library_mounts() -> list[Mount]:
    """Returns the folders where the dynamic loader and the C library are, at the loader's default paths."""
    triplet = sysconfig.get_config_var("MULTIARCH") or ""
    folders = (
        ["/lib64", "/usr/lib64", f"/lib/{triplet}", f"/usr/lib/{triplet}"] if triplet else ["/lib64", "/usr/lib64"]
    )
    mounts: dict[Path, Mount] = {}
    for folder in folders:
        real = Path(folder).resolve()
        if real.is_dir():
            mounts.setdefault(real, Mount(real, folder))
    return list(mounts.values())


def nsjail_config(config: SandboxConfig, mounts: Sequence[Mount], imports: Sequence[str]) -> str:
    """Returns nsjail's configuration in protobuf's text form, but for the users, which `sandbox.users` adds.

    The interpreter imports `imports` before it asks for its program, which it finds on descriptor 0; 1 and 3 are pipes, and
    nsjail's log goes to its descriptor 2. Limits of the jail as a whole are not here but in `sandbox.cgroups`.
    """
    environment = [
        "PATH=/python/bin",
        "LD_LIBRARY_PATH=/python/lib",
        "HOME=/box",
        "TMPDIR=/box",
        "LANG=C.UTF-8",
        # One thread: pools are as large as the host's cores and would count against the limits.
        "OMP_NUM_THREADS=1",
        "OPENBLAS_NUM_THREADS=1",
    ]
    heap = 0
    if imports:
        heap = HEAP_BYTES
        # The C library's heap is one area, which Python's own allocator's is not.
        environment += ["PYTHONMALLOC=malloc", f"GLIBC_TUNABLES=glibc.malloc.top_pad={heap}"]
    points = [_bind(str(mount.source), mount.target) for mount in mounts]
    points += [
        MountPt(dst=f"{mount.target}/{name}", fstype="tmpfs", is_dir=True, options="size=4096")
        for mount in mounts
        for name in mount.hidden
    ]
    points += [_bind(f"/dev/{name}", f"/dev/{name}", device=True) for name in ("null", "zero", "urandom")]
    points.append(
        MountPt(
            dst="/box",
            fstype="tmpfs",
            options=f"size={config.max_file_mb}m,nr_inodes={MAX_INODES},mode=0777",
            is_dir=True,
            rw=True,
            nosuid=True,
            nodev=True,
            noexec=True,
        )
    )
    return to_textproto(
        NsJailConfig(
            name="zerotir",
            mode=Mode.ONCE,
            hostname="jail",
            cwd="/box",
            # A jail may wait long: whoever started it ends it, and with the service all its jails end.
            time_limit=0,
            # Not nsjail's 19: beside busy engines an honest program would starve until its wall limit.
            nice_level=0,
            log_fd=2,
            log_level=LogLevel.INFO,
            pass_fd=[3],
            envar=environment,
            rlimit_as=config.memory_mb,
            # `bootstrap.py` lowers it to the program's own before that begins.
            rlimit_cpu=config.cpu_s + WARM_UP_CPU_S,
            rlimit_fsize=config.max_file_mb,
            rlimit_nofile=MAX_OPEN_FILES,
            rlimit_nproc=config.max_processes,
            rlimit_nproc_type=RLimitType.VALUE,
            rlimit_core=0,
            rlimit_msgqueue=0,
            rlimit_msgqueue_type=RLimitType.VALUE,
            rlimit_memlock=0,
            rlimit_memlock_type=RLimitType.VALUE,
            iface_no_lo=True,
            mount=points,
            seccomp_string=(HERE / "policy.kafel").read_text().splitlines(),
            exec_bin=Exe(
                path="/python/bin/python3",
                # No folder of a user's or a script's, no site module, nothing written beside sources, no output held
                # back, UTF-8. Of the environment everything is ours.
                arg=[
                    *("-s", "-P", "-S", "-B", "-u", "-X", "utf8"),
                    *("-c", (HERE / "bootstrap.py").read_text(), str(config.cpu_s), str(heap), *imports),
                ],
            ),
        )
    )


def _bind(source: str, target: str, device: bool = False) -> MountPt:
    return MountPt(src=source, dst=target, is_bind=True, rw=device, nosuid=True, nodev=not device)

"""The files that a jail sees: an interpreter, its library and a few packages, copied to a world-readable folder.

A copy, because the environment often lies where the jail's unprivileged user cannot reach it (a home folder), and because
what is not copied cannot be read. Made once per interpreter and package set, byte-compiled, whole or not at all.
"""

import compileall
import fcntl
import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import stat
import sys
import sysconfig
from pathlib import Path

import structlog

log = structlog.get_logger()

LEFT_OUT = ("site-packages", "test", "tests", "idlelib", "tkinter", "turtledemo", "ensurepip", "lib2to3", "__pycache__")


class RuntimeUnavailableError(RuntimeError):
    """The jail's files cannot be prepared; the text says what to do."""


def jail_runtime(packages: tuple[str, ...]) -> Path:
    """Folder with `bin/python3` and `lib/python3.x`, prepared if need be. Raises RuntimeUnavailableError."""
    versions = [f"{name}={_version(name)}" for name in packages]
    key = hashlib.sha256("\n".join([sys.version, sys.base_prefix, *versions]).encode()).hexdigest()[:16]
    parent = Path(f"/var/tmp/zerotir-jail-{os.getuid()}")  # noqa: S108 (its owner and mode are checked)
    parent.mkdir(mode=0o755, exist_ok=True)
    status = parent.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise RuntimeUnavailableError(f"{parent} does not belong to this user alone: rm -r {parent}")
    folder = parent / key
    with (parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            draft = folder.with_suffix(".draft")
            shutil.rmtree(draft, ignore_errors=True)
            log.info("copying the jail's interpreter and packages", folder=str(folder), packages=list(packages))
            _copy(draft, packages)
            draft.rename(folder)
    return folder


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise RuntimeUnavailableError(
            f"sandbox.packages names {package!r}, which is not installed: pip install {package}"
        ) from None


def _copy(target: Path, packages: tuple[str, ...]) -> None:
    library = Path(sysconfig.get_path("stdlib"))
    destination = target / "lib" / library.name
    shutil.copytree(library, destination, ignore=shutil.ignore_patterns(*LEFT_OUT), symlinks=False)
    (target / "bin").mkdir()
    interpreter = target / "bin" / "python3"
    shutil.copy(Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}", interpreter)
    for shared in Path(sys.base_prefix, "lib").glob("libpython*.so*"):
        shutil.copy(shared, target / "lib")
    for name in packages:
        spec = importlib.util.find_spec(name)
        assert spec is not None
        source = Path(spec.origin or "").parent
        shutil.copytree(source, destination / name, ignore=shutil.ignore_patterns("tests", "__pycache__"))
        # Wheels keep the shared libraries that they bring beside the package.
        for extra in source.parent.glob(f"{name}.libs"):
            shutil.copytree(extra, destination / extra.name)
    compileall.compile_dir(destination, quiet=2, workers=1, legacy=False)
    for path in [target, *target.rglob("*")]:
        path.chmod(0o755 if path.is_dir() or path == interpreter else 0o644)

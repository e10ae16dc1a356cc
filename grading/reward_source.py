"""The source of the user's own reward function, `tasks.grading.reward_function`: a file, or an installed module.

It is a part of the run: the run's configuration holds its digest (`with_digest`), and what is loaded is that source or
nothing (`load`). A file is loaded by itself: its folder is not on the import path, so that the file is all of the source.
Of an installed module the source is every file of its package. What either imports from elsewhere is not looked at.
"""

import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Iterable, Iterator
from hashlib import sha256
from pathlib import Path
from types import ModuleType

from configs.errors import nearest
from configs.schema import RunConfig
from grading.errors import RewardFunctionError
from grading.reward_function import RewardFunction, told
from runtime.files import write_whole

KEPT = "reward_function.py"
"""File of a run's folder that holds the source, where that is a file."""
MODULE = "reward_function"
"""Name under which a file is loaded."""
ARGUMENTS = ("problem", "answer", "turns", "calls")


def with_digest(config: RunConfig) -> RunConfig:
    """Returns the configuration with the digest of its reward function's source; as it is where it has no such function.

    Raises RewardFunctionError where there is no source, or another one than the configuration says.
    """
    grading = config.tasks.grading
    if grading.reward_function is None:
        return config
    found = source_digest(grading.reward_function)
    if grading.reward_function_digest not in (None, found):
        raise _changed(grading.reward_function, found, grading.reward_function_digest)
    grading = grading.model_copy(update={"reward_function_digest": found})
    return config.model_copy(update={"tasks": config.tasks.model_copy(update={"grading": grading})})


def keep_source(run: Path, config: RunConfig) -> None:
    """Writes the source of a run's reward function to its folder, where that is a file.

    Raises RewardFunctionError where it is not the one that the configuration, as of `with_digest`, names.
    """
    grading = config.tasks.grading
    if grading.reward_function and (file := _file(grading.reward_function)):
        source = _read(file)
        if (found := _digest([source])) != grading.reward_function_digest:
            raise _changed(grading.reward_function, found, str(grading.reward_function_digest))
        write_whole(run / KEPT, source)


def source_digest(name: str) -> str:
    """Returns the digest of a reward function's source: its file, or all files of the installed package.

    Raises RewardFunctionError where there is none.
    """
    if file := _file(name):
        return _digest([_read(file)])
    package = name.partition(":")[0].partition(".")[0]
    try:
        spec = importlib.util.find_spec(package)
    except ValueError:
        spec = None
    folders = [Path(folder) for folder in (spec and spec.submodule_search_locations) or ()]
    try:
        files = sorted((str(path.relative_to(folder)), path) for folder in folders for path in _files(folder, set()))
    except OSError as error:
        raise RewardFunctionError(
            f"tasks.grading.reward_function: cannot read {error.filename}: {error.strerror}"
        ) from error
    if spec and not folders and spec.origin and spec.origin.endswith(".py"):
        files = [(Path(spec.origin).name, Path(spec.origin))]
    if not files:
        raise RewardFunctionError(
            f"tasks.grading.reward_function: no module {package!r} is installed here whose source can be read; a file is "
            "named as path/to/file.py:name"
        )
    return _digest(part for shown, path in files for part in (shown.encode(), _read(path)))


def load(name: str, digest: str) -> RewardFunction:
    """Loads a reward function from the source of that digest. Runs the source: only in the processes that grade.

    Raises RewardFunctionError where the source is another one, cannot be imported, or holds no function of these arguments.
    """
    where, _, attribute = name.rpartition(":")
    _require_digest(name, digest)
    file = _file(name)
    try:
        module = _load_file(name, file, digest) if file else _load_module(where)
    except RewardFunctionError:
        raise
    except BaseException as error:
        traceback.print_exc()
        hint = ""
        if isinstance(error, ModuleNotFoundError) and file:
            hint = "; it can import what is installed, and nothing that lies beside its file"
        elif isinstance(error, ImportError | MemoryError):
            hint = "; the processes that grade have 2 GiB of address space, which is too little for PyTorch"
        raise RewardFunctionError(
            f"the reward function {name} cannot be loaded: {told(error, str(file))}{hint}"
        ) from error
    # While it was imported a module's files may have changed.
    _require_digest(name, digest)
    function = getattr(module, attribute, None)
    if not callable(function):
        functions = [each for each, value in vars(module).items() if inspect.isfunction(value)]
        raise RewardFunctionError(f"{where} has no function {attribute!r}{nearest(attribute, functions)}")
    if inspect.iscoroutinefunction(function):
        raise RewardFunctionError(f"the reward function {name} is asynchronous: make it one that returns its value")
    try:
        inspect.signature(function).bind(**dict.fromkeys(ARGUMENTS))
    except ValueError:
        pass  # One in C that does not tell: its first call will.
    except TypeError as error:
        raise RewardFunctionError(
            f"the reward function {name} is called with the arguments {', '.join(ARGUMENTS)}, by name: {error}"
        ) from error
    return RewardFunction(function, str(module.__file__))


def _load_file(name: str, file: Path, digest: str) -> ModuleType:
    """Runs the bytes that have the digest, whatever the file holds by now."""
    source = _read(file)
    if (found := _digest([source])) != digest:
        raise _changed(name, found, digest)
    module = ModuleType(MODULE)
    module.__file__ = str(file)
    sys.modules[MODULE] = module
    exec(compile(source, str(file), "exec"), vars(module))  # noqa: S102 (the user's own file)
    return module


def _load_module(name: str) -> ModuleType:
    """Imports a module from its source: byte code may be older than that, and have the same time and size."""
    prefix, sys.pycache_prefix = sys.pycache_prefix, os.devnull
    try:
        return importlib.import_module(name)
    finally:
        sys.pycache_prefix = prefix


def _require_digest(name: str, digest: str) -> None:
    if (found := source_digest(name)) != digest:
        raise _changed(name, found, digest)


def _files(folder: Path, seen: set[Path]) -> Iterator[Path]:
    """Yields the files of a package, also behind links, but for hidden ones and byte code."""
    if (real := folder.resolve()) in seen:
        return
    seen.add(real)
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name == "__pycache__" or path.suffix == ".pyc":
            continue
        if path.is_dir():
            yield from _files(path, seen)
        elif path.is_file():
            yield path


def _file(name: str) -> Path | None:
    where = name.rpartition(":")[0]
    return Path(os.path.expanduser(where)) if where.endswith(".py") else None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise RewardFunctionError(f"tasks.grading.reward_function: cannot read {path}: {error.strerror}") from error


def _digest(parts: Iterable[bytes]) -> str:
    digest = sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8) + part)
    return digest.hexdigest()[:16]


def _changed(name: str, found: str, expected: str) -> RewardFunctionError:
    kept = f" (the run's folder has it as {KEPT})" if _file(name) else ""
    return RewardFunctionError(
        f"the source of the reward function {name} is another one (digest {found}) than the configuration names "
        f"(tasks.grading.reward_function_digest {expected}): put that one back{kept}, or start another run without the "
        "digest"
    )

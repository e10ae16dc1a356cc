"""The source of the user's own reward function, `tasks.grading.reward_function`: a file, or an installed module.

It is a part of the run: the run's configuration holds its digest (`with_digest`), and what is loaded is that source or
nothing (`load`). A file is loaded by itself: its folder is not on the import path, so that the file is all of the source.
Of an installed module the source is its whole package; the versions of other packages are not looked at.
"""

import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Sequence
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


def keep_source(run: Path, name: str | None) -> None:
    """Writes the source of a reward function to a run's folder, unless it is there, or an installed module's."""
    if name and (file := _file(name)) and not (run / KEPT).exists():
        write_whole(run / KEPT, _read(file))


def source_digest(name: str) -> str:
    """Returns the digest of a reward function's source: its file, or all Python files of the installed package.

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
    files = sorted((path.relative_to(folder), path) for folder in folders for path in folder.rglob("*.py"))
    if spec and not folders and spec.origin and spec.origin.endswith(".py"):
        files = [(Path(Path(spec.origin).name), Path(spec.origin))]
    if not files:
        raise RewardFunctionError(
            f"tasks.grading.reward_function: no Python module {package!r} is installed here; a file is named as "
            "path/to/file.py:name"
        )
    return _digest([part for shown, path in files for part in (str(shown).encode(), _read(path))])


def load(name: str, digest: str) -> RewardFunction:
    """Loads a reward function from the source of that digest. Runs the source: only in the processes that grade.

    Raises RewardFunctionError where the source is another one, cannot be imported, or holds no function of four arguments.
    """
    where, _, attribute = name.rpartition(":")
    if (found := source_digest(name)) != digest:
        raise _changed(name, found, digest)
    file = _file(name)
    try:
        module = _load_file(file, digest) if file else importlib.import_module(where)
    except RewardFunctionError:
        raise
    except ModuleNotFoundError as error:
        raise RewardFunctionError(
            f"the reward function {name} cannot be loaded: {told(error, str(file))}; it can import what is installed, and "
            "nothing that lies beside its file"
        ) from error
    except BaseException as error:
        traceback.print_exc()
        raise RewardFunctionError(f"the reward function {name} cannot be loaded: {told(error, str(file))}") from error
    function = getattr(module, attribute, None)
    if not callable(function):
        functions = [each for each, value in vars(module).items() if inspect.isfunction(value)]
        raise RewardFunctionError(f"{where} has no function {attribute!r}{nearest(attribute, functions)}")
    if inspect.iscoroutinefunction(function):
        raise RewardFunctionError(f"the reward function {name} is asynchronous: make it one that returns its value")
    try:
        inspect.signature(function).bind("", "", [], [])
    except TypeError as error:
        raise RewardFunctionError(
            f"the reward function {name} is called with (problem, answer, turns, calls): {error}"
        ) from error
    return function


def _load_file(file: Path, digest: str) -> ModuleType:
    """Runs the bytes that have the digest, whatever the file holds by now."""
    source = _read(file)
    if (found := _digest([source])) != digest:
        raise _changed(str(file), found, digest)
    module = ModuleType(MODULE)
    module.__file__ = str(file)
    sys.modules[MODULE] = module
    exec(compile(source, str(file), "exec"), vars(module))  # noqa: S102 (the user's own file)
    return module


def _file(name: str) -> Path | None:
    where = name.rpartition(":")[0]
    return Path(where).expanduser() if where.endswith(".py") else None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise RewardFunctionError(f"tasks.grading.reward_function: cannot read {path}: {error.strerror}") from error


def _digest(parts: Sequence[bytes]) -> str:
    digest = sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8) + part)
    return digest.hexdigest()[:16]


def _changed(name: str, found: str, expected: str) -> RewardFunctionError:
    return RewardFunctionError(
        f"the source of the reward function {name} is another one (digest {found}) than the configuration names "
        f"(tasks.grading.reward_function_digest {expected}): put that one back, a run's folder keeps it as {KEPT}, or start "
        "another run without the digest"
    )

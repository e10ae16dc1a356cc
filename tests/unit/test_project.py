"""The project's own shape: imports point one way, the command line is quick and explains itself."""

import ast
import importlib
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions, requires, version
from pathlib import Path

import pytest

from launch.extras import EXTRAS
from runtime.logs import PACKAGES
from tests.processes import zerotir

ROOT = Path(__file__).parents[2]
EVERY_ROLE = {"bus", "configs", "runtime"}
MAY_IMPORT = {
    "configs": set(),
    "runtime": {"configs"},
    "tasks": {"configs", "runtime"},
    "grading": {"configs", "runtime"},
    "bus": {"configs", "runtime"},
    "weights": EVERY_ROLE,
    "scaling": EVERY_ROLE,
    "tracking": EVERY_ROLE,
    "sandbox": EVERY_ROLE,
    "learner.algorithm": {"configs"},
    "learner.tickets": EVERY_ROLE | {"tasks"},
    "learner.training": EVERY_ROLE | {"learner.algorithm", "weights"},
    "learner": EVERY_ROLE | {"learner.algorithm", "learner.tickets", "learner.training", "tasks", "weights"},
    "actors": EVERY_ROLE | {"grading", "sandbox", "tasks", "weights"},
    "transcripts": EVERY_ROLE,
    "page": EVERY_ROLE | {"learner.tickets", "sandbox", "scaling", "transcripts"},
    "evaluation": EVERY_ROLE | {"actors", "grading", "sandbox", "tasks", "transcripts", "weights"},
}
MAY_IMPORT["launch"] = set(MAY_IMPORT)
"""What each folder may import, beside itself; the folders are in the order of their floors."""


def test_every_folder_has_a_floor_and_imports_from_those_below():
    below = set[str]()
    for folder, allowed in MAY_IMPORT.items():
        assert allowed <= below, f"{folder} is below what it imports"
        below.add(folder)
    assert {path.parent for path in modules()} == {ROOT / folder.replace(".", "/") for folder in MAY_IMPORT}


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_imports_point_one_way_and_resolve_inside_the_project(folder: str):
    assert Path(importlib.import_module(folder).__file__ or "").is_relative_to(ROOT)
    for path in (ROOT / folder.replace(".", "/")).glob("*.py"):
        for name in imported(path):
            assert folder_of(name) in MAY_IMPORT[folder] | {folder, None}, f"{path.relative_to(ROOT)} imports {name}"


def test_lists_of_our_packages_are_whole():
    """They stand in files that cannot look at the folders."""
    packages = {folder for folder in MAY_IMPORT if "." not in folder}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    assert set(PACKAGES) == packages
    assert set(project["setuptools"]["packages"]["find"]["include"]) == {f"{package}*" for package in packages}
    assert set(project["mypy"]["files"]) == packages | {"benchmarks", "tests"}
    compiled = re.findall(r"compileall -q ([a-z ]+)$", (ROOT / "scripts" / "setup").read_text(), re.MULTILINE)
    assert [set(names.split()) for names in compiled] == [packages]


def test_every_functions_docstring_begins_with_a_verb():
    shape = subprocess.run(
        [sys.executable, ROOT / "scripts" / "shape"], capture_output=True, text=True, timeout=120, check=False
    )
    assert shape.returncode == 0, shape.stdout


def folder_of(name: str) -> str | None:
    """Returns the innermost of our folders that holds the module `name`; None for a module of somebody else."""
    parts = name.split(".")
    prefixes = [".".join(parts[:count]) for count in range(len(parts), 0, -1)]
    return next((prefix for prefix in prefixes if prefix in MAY_IMPORT), None)


def modules() -> list[Path]:
    """Returns the paths of all our modules."""
    return [path for folder in MAY_IMPORT if "." not in folder for path in (ROOT / folder).rglob("*.py")]


def imported(path: Path) -> Iterator[str]:
    """Yields the name of every module that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def test_the_extra_of_every_package_beyond_the_base_is_known():
    """So that a command whose extra is missing can name it."""
    distributions = {re.split(r"[\[>=; ]", each)[0] for each in requires("zerotir") or () if "extra ==" not in each}
    base = {
        module for module, owners in packages_distributions().items() if distributions & {o.lower() for o in owners}
    }
    of_extras = {module for modules in EXTRAS.values() for module in modules}
    needed = {name.partition(".")[0] for path in modules() for name in imported(path)}
    # Packages that those of the base are made of.
    base |= {"nkeys", "pydantic_core"}
    assert needed - set(MAY_IMPORT) - set(sys.stdlib_module_names) - base - of_extras == set()
    assert of_extras <= needed | {"sympy"}


def test_help_imports_nothing_heavy():
    code = (
        "import sys, launch.cli\n"
        "try: launch.cli.parser().parse_args(['--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'vllm', 'nats', 'pydantic', 'deepspeed')))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=120, check=False).returncode == 0


@pytest.mark.parametrize(
    ("line", "offered"),
    [("zerotir ev", "eval"), ("zerotir config quickst", "quickstart"), ("zerotir learner tiny --ra", "--ranks")],
)
def test_the_shell_is_told_what_may_come_next(tmp_path: Path, line: str, offered: str):
    answer = tmp_path / "answer"
    asked = {"_ARGCOMPLETE": "1", "_ARGCOMPLETE_STDOUT_FILENAME": str(answer), "_ARGCOMPLETE_IFS": "\n"}
    asked |= {"COMP_LINE": line, "COMP_POINT": str(len(line)), "_ARGCOMPLETE_COMP_WORDBREAKS": " "}
    subprocess.run([sys.executable, "-m", "launch.cli"], env={**os.environ, **asked}, timeout=120, check=True)
    assert offered in {each.strip() for each in answer.read_text().split("\n")}


def test_a_wrong_configuration_ends_with_one_line():
    result = zerotir("config", "quickstart", "--set", "learner.stepps=3")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "zerotir: quickstart: unknown field learner.stepps: did you mean steps?\n"


def test_the_version_is_that_of_the_package():
    result = zerotir("--version")
    assert (result.returncode, result.stdout) == (0, f"zerotir {version('zerotir')}\n")


def test_config_prints_what_it_resolved():
    result = zerotir("config", "tiny", "--set", "learner.steps=7")
    assert result.returncode == 0
    assert "steps: 7" in result.stdout


def test_a_role_without_a_run_says_how_to_start_one(tmp_path):
    result = zerotir("actor", "tiny", "--bus", str(tmp_path / "bus.json"))
    assert result.returncode == 2
    assert "zerotir up" in result.stderr
    assert "Traceback" not in result.stderr

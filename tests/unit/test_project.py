"""The project's own shape: imports point one way, the command line is quick and explains itself."""

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions, requires, version
from pathlib import Path

import pytest

from launch.extras import EXTRAS

ROOT = Path(__file__).parents[2]
MAY_IMPORT = {
    "configs": set(),
    "bus": {"configs"},
    "tasks": {"configs"},
    "sandbox": {"bus", "configs"},
    "actors": {"bus", "configs", "sandbox", "tasks"},
    "evaluation": {"actors", "bus", "configs", "sandbox", "tasks"},
    "learner": {"bus", "configs", "tasks"},
    "scaling": {"bus", "configs"},
    "launch": {"actors", "bus", "configs", "evaluation", "learner", "sandbox", "scaling", "tasks"},
}


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_point_one_way_and_resolve_inside_the_project(package: str):
    assert Path(importlib.import_module(package).__file__ or "").is_relative_to(ROOT)
    allowed = MAY_IMPORT[package] | {package}
    for path in (ROOT / package).rglob("*.py"):
        for name in imported(path):
            top = name.partition(".")[0]
            assert top not in MAY_IMPORT or top in allowed, f"{path.relative_to(ROOT)} imports {name}"


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
    files = [path for package in MAY_IMPORT for path in (ROOT / package).rglob("*.py")]
    modules = {name.partition(".")[0] for path in files for name in imported(path)}
    # Packages that those of the base are made of.
    base |= {"nkeys", "pydantic_core"}
    assert modules - set(MAY_IMPORT) - set(sys.stdlib_module_names) - base - of_extras == set()
    assert of_extras <= modules | {"sympy", "accelerate"}


def zerotir(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "launch.cli", *arguments], capture_output=True, text=True, timeout=120, check=False
    )


def test_help_imports_nothing_heavy():
    code = (
        "import sys, launch.cli\n"
        "try: launch.cli._parser().parse_args(['--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'vllm', 'nats', 'pydantic', 'deepspeed')))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=120, check=False).returncode == 0


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

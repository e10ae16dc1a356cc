"""The wheel, installed without any extra: what needs no more works, and the rest says which extra it needs."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
UV = ROOT / ".tools" / "bin" / "uv"
TIMEOUT_S = 300


@pytest.fixture(scope="module")
def zerotir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command in the new environment."""
    if not UV.exists():
        pytest.skip("`make setup` puts uv into .tools, which builds and installs the wheel")
    home = tmp_path_factory.mktemp("wheel")
    # A build leaves files in the tree.
    skipped = shutil.ignore_patterns(".*", "build", "runs", "*.egg-info", "__pycache__")
    source = shutil.copytree(ROOT, home / "source", ignore=skipped)
    run("build", "--wheel", "--python", sys.executable, "--out-dir", str(home), str(source))
    [wheel] = home.glob("*.whl")
    environment = home / "environment"
    run("venv", "--python", getattr(sys, "_base_executable", sys.executable), str(environment))
    run("pip", "install", "--python", str(environment / "bin" / "python"), str(wheel))
    return environment / "bin" / "zerotir"


def run(*arguments: str) -> None:
    # The machine's own certificates, as in scripts/setup.
    environment = {**os.environ, "UV_SYSTEM_CERTS": "1"}
    subprocess.run([UV, "--quiet", *arguments], env=environment, timeout=TIMEOUT_S, check=True)


def call(zerotir: Path, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    bare = {"PATH": str(home), "HOME": str(home), "LANG": "C.UTF-8"}
    return subprocess.run(
        [zerotir, *arguments], cwd=home, env=bare, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ("--help", "tool-using language models"),
        ("scaling --help", "correlations, fits, forecasts and plots"),
        ("config tiny", "name: tiny"),
        ("config zerotir-7b --set learner.steps=7", "steps: 7"),
        ("matrix quickstart --list", "quickstart-seed0"),
    ],
)
def test_what_needs_no_extra_works(zerotir: Path, tmp_path: Path, arguments: str, shown: str):
    done = call(zerotir, tmp_path, *arguments.split())
    assert (done.returncode, done.stderr) == (0, "")
    assert shown in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        ("config tiny --check", "gpu"),
        ("scaling RUN", "scaling"),
        ("replay RUN", "gpu"),
        ("eval tiny --checkpoint RUN", "sandbox"),
        ("sandbox tiny --check", "sandbox"),
        ("bus tiny", "bus"),
        ("page RUN", "page"),
        ("track RUN --to wandb", "wandb"),
    ],
)
def test_a_command_whose_extra_is_missing_names_it(zerotir: Path, tmp_path: Path, arguments: str, extra: str):
    (tmp_path / "RUN").mkdir()
    (tmp_path / "RUN" / "config.yaml").write_text(call(zerotir, tmp_path, "config", "tiny").stdout)
    done = call(zerotir, tmp_path, *arguments.split())
    assert done.returncode == 2
    assert f"`pip install 'zerotir[{extra}]'`" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("command", ["transcripts RUN", "trace RUN --ticket 1"])
def test_what_reads_a_run_s_folder_needs_no_extra_for_that(zerotir: Path, tmp_path: Path, command: str):
    (tmp_path / "RUN").mkdir()
    (tmp_path / "RUN" / "config.yaml").write_text(call(zerotir, tmp_path, "config", "tiny").stdout)
    done = call(zerotir, tmp_path, *command.split())
    assert (done.returncode, done.stdout) == (2, "")
    assert "zerotir: RUN holds no results" in done.stderr


@pytest.mark.slow
def test_the_files_that_pages_are_made_of_are_in_it(zerotir: Path):
    installed = next((zerotir.parent.parent / "lib").glob("python*/site-packages"))
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    parts = [path for path in tracked.stdout.split() if path.endswith((".html", ".css", ".js"))]
    assert len(parts) > 10
    assert [path for path in parts if not (installed / path).exists()] == []

"""Processes of ours import nothing from the user's working folder and write no byte code."""

import os
import resource
import signal
import subprocess
from pathlib import Path

import pytest

from bus.metrics import steps_of
from tests import environment
from tests.processes import processes_of, wait_for
from tests.user_folder import ZEROTIR, write_user_folder

TIMEOUT_S = 200


@pytest.mark.timeout(TIMEOUT_S + 60)
def test_a_run_in_a_folder_with_modules_of_our_names_uses_none_of_them(tmp_path: Path):
    home, output = write_user_folder(tmp_path / "mine"), tmp_path / "up.txt"
    with output.open("wb") as file:
        up = subprocess.Popen(
            [ZEROTIR, "up", "emulated", "--set", "learner.steps=2000", "--set", "tasks.grading.rule=boxed"],
            cwd=home,
            env={**os.environ, "ZEROTIR_TEST_RUN": str(home)},
            stdout=file,
            stderr=file,
        )
    try:
        wait_for(lambda: "  step   2/2000" in output.read_text(), up, output)
        kept = {line: environment_of(int(line.split()[0])) for line in processes_of(home) if "python" in line}
        up.send_signal(signal.SIGINT)
        assert up.wait(timeout=TIMEOUT_S) == 130, output.read_text()
    finally:
        if up.poll() is None:
            up.terminate()
            up.wait(timeout=60)
    assert "user's folder" not in output.read_text()
    [folder] = (home / "runs").glob("emulated-*")
    assert len(steps_of(folder)) >= 2
    # Those that roles start as well: graders, for one.
    assert any("grading.worker" in line for line in kept)
    for line, variables in kept.items():
        # The command that was started by hand has them from its own first line on; what ends just now has none.
        if int(line.split()[0]) != up.pid and variables:
            assert {"PYTHONSAFEPATH=1", "PYTHONDONTWRITEBYTECODE=1"} <= variables, line
    assert not list(home.rglob("*.pyc"))


def environment_of(pid: int) -> set[str]:
    """Returns the variables with which a process was started; none of one that has ended."""
    try:
        return set(Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")) - {""}
    except (FileNotFoundError, ProcessLookupError):
        return set()


def test_a_command_writes_no_byte_code_however_little_a_file_may_hold(tmp_path: Path):
    """Stands for an environment that nobody has compiled, on a disk that is full after 4 KiB."""
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(
        [ZEROTIR, "config", "tiny"],
        env={**variables, "PYTHONPYCACHEPREFIX": str(tmp_path)},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    written = {path.relative_to(tmp_path) for path in tmp_path.rglob("*.pyc")}
    # What the interpreter reads before the command line can say so: `zerotir config` needs pydantic and `configs` later.
    assert any(path.match("launch/cli.*") for path in written)
    assert not [path for path in written if {"pydantic", "yaml", "configs"} & set(path.parts)]


def test_what_changed_in_an_environment_is_found(tmp_path: Path):
    for name in ("kept", "cut", "removed"):
        (tmp_path / name).write_bytes(bytes(100))
    before = environment.files((tmp_path,))
    assert environment.changes(before, environment.files((tmp_path,))) == []
    (tmp_path / "cut").write_bytes(bytes(50))
    (tmp_path / "removed").unlink()
    (tmp_path / "added").touch()
    after = environment.files((tmp_path,))
    assert environment.changes(before, after) == [
        f"added: {tmp_path / 'added'}",
        f"changed: {tmp_path / 'cut'}, 100 bytes before, 50 now",
        f"removed: {tmp_path / 'removed'}",
    ]
    assert environment.digest(before) != environment.digest(after)

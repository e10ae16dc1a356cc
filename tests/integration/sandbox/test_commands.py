"""`zerotir sandbox --check` and `--run FILE`, as a user types them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FIELDS = ["outcome", "exit_code", "signal", "stdout", "stderr", "truncated", "seconds"]


def zerotir(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "launch.cli", "sandbox", "tiny", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, **environment},
    )


@pytest.fixture
def program(tmp_path: Path):
    def program(source: bytes) -> str:
        path = tmp_path / "program.py"
        path.write_bytes(source)
        return str(path)

    return program


def test_check_says_what_is_in_force():
    result = zerotir("--check", "--set", "sandbox.packages=[numpy]")
    assert (result.returncode, result.stderr) == (0, "")
    lines = dict(line.split(maxsplit=1) for line in result.stdout.splitlines() if not line.startswith("per process"))
    assert {"nsjail", "namespaces", "user", "seccomp", "files", "cgroups", "packages", "pool"} <= set(lines)
    assert "net" in lines["namespaces"]
    assert lines["packages"].startswith("numpy ")
    assert "512 MiB" in result.stdout


def test_check_names_the_limits_that_are_weaker_without_cgroups():
    result = zerotir("--check", "--set", "sandbox.cgroups=off")
    assert result.returncode == 0
    assert "weaker limits without cgroups: memory and CPU" in result.stdout


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("sandbox.packages=[no_such_package]", "pip install no_such_package"),
        ("sandbox.memory_mb=40", "raise sandbox.memory_mb"),
        ("sandbox.max_code_bytes=16000000", "sandbox.max_file_mb"),
    ],
)
def test_check_fails_where_something_that_is_asked_for_is_missing(setting, words):
    result = zerotir("--check", "--set", setting)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("zerotir: ")
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_run_prints_one_json_object(program):
    result = zerotir("--run", program(b"import sys\nprint('out')\nprint('err', file=sys.stderr)\nsys.exit(3)"))
    assert (result.returncode, result.stderr) == (0, "")
    record = json.loads(result.stdout)
    assert list(record) == FIELDS
    assert record.pop("seconds") > 0
    assert list(record.values()) == ["exited", 3, None, "out\n", "err\n", False]


@pytest.mark.parametrize(
    ("source", "settings", "expected"),
    [
        (b"import time; time.sleep(60)", ["rollout.tool_timeout_s=0.5"], {"outcome": "timeout", "exit_code": None}),
        (b"import ctypes; ctypes.string_at(0)", [], {"outcome": "crashed", "signal": 11}),
        (b"while True: print('y' * 1000)", [], {"outcome": "output_limit", "truncated": True}),
        (b"'\xff'", [], {"outcome": "exited", "exit_code": 1}),
        (b"", [], {"outcome": "exited", "exit_code": 1, "stderr": "SyntaxError: there is no code\n"}),
    ],
    ids=["time", "crash", "flood", "not UTF-8", "empty"],
)
def test_run_tells_endings_apart(program, source, settings, expected):
    arguments = [argument for setting in settings for argument in ("--set", setting)]
    result = zerotir("--run", program(source), *arguments)
    assert result.returncode == 0
    assert json.loads(result.stdout).items() >= expected.items()


def test_run_without_a_file_is_the_users_to_mend(tmp_path):
    result = zerotir("--run", str(tmp_path / "absent.py"))
    assert (result.returncode, result.stdout) == (2, "")
    assert "cannot read" in result.stderr


def test_run_fails_where_the_sandbox_does(program):
    result = zerotir("--run", program(b"print(1)"), "--set", "sandbox.memory_mb=1")
    assert result.returncode == 1
    assert json.loads(result.stdout)["outcome"] == "sandbox_failure"
    assert "nsjail returned" in result.stderr

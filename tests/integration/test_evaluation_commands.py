"""`zerotir eval` as a user types it: beside a live run, and on a checkpoint, stopped by Ctrl-C and gone on with."""

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.processes import ZEROTIR, processes_of, wait_for

pytestmark = pytest.mark.slow

TIMEOUT_S = 240


def start(home: Path, *arguments: str) -> tuple[subprocess.Popen[bytes], Path]:
    """A command and the file that it writes to."""
    output = home / f"{arguments[0]}-{len(list(home.iterdir()))}.txt"
    with output.open("w") as file:
        environment = {**os.environ, "ZEROTIR_TEST_RUN": str(home)}
        return subprocess.Popen([*ZEROTIR, *arguments], stdout=file, stderr=file, env=environment), output


def scores(folder: Path) -> list[dict[str, Any]]:
    """The evaluator's whole lines in a run's metrics."""
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    records = [json.loads(line) for line in lines if line.endswith("\n")]
    return [record for record in records if record["role"] == "evaluator"]


def test_a_live_run_s_evaluator_reports_versions_and_is_seen(tmp_path: Path):
    up, output = start(
        tmp_path, "up", "tiny",
        *("--set", f"launch.runs_dir={tmp_path}/runs", "--set", "launch.evaluator=true", "--set", "learner.steps=5000"),
        *("--set", "evaluation.data={sums: {recipe: digit_sums, size: 4}}", "--set", "evaluation.every=3"),
        *("--set", "evaluation.max_tool_calls=[0, 1]", "--set", "evaluation.samples=2"),
    )  # fmt: skip
    try:
        folder = wait_for(lambda: next((tmp_path / "runs").glob("tiny-*"), None), up, output)
        wait_for(lambda: len({record["step"] for record in scores(folder)}) >= 2, up, output)
        status = subprocess.run(
            [*ZEROTIR, "status", "--bus", str(folder / "bus.json")],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout
    finally:
        up.send_signal(signal.SIGINT)
        code = up.wait(timeout=60)
    assert code == 130
    assert processes_of(tmp_path) == []
    [line] = [line for line in status.splitlines() if line.startswith("  evaluator ")]
    assert "evaluating version" in line or "waiting for version" in line
    steps = [record["step"] for record in scores(folder)]
    first, second = sorted(set(steps))[:2]
    assert second >= first + 3
    for step in (first, second):
        found = [record for record in scores(folder) if record["step"] == step]
        assert [record["id"] for record in found] == ["evaluator/sums/0", "evaluator/sums/1"]
        assert all(record["samples"] == 8 and record["missing"] == 0 for record in found)
        [results] = (folder / "evaluation").glob(f"*.{step}/results.json")
        assert json.loads(results.read_text())["complete"]


@pytest.mark.timeout(400)
def test_a_run_ends_once_its_last_version_is_scored_and_others_have_left(tmp_path: Path):
    up, output = start(
        tmp_path, "up", "tiny",
        *("--set", f"launch.runs_dir={tmp_path}/runs", "--set", "launch.evaluator=true", "--set", "learner.steps=4"),
        *("--set", "evaluation.data={sums: {recipe: digit_sums, size: 4}}", "--set", "evaluation.every=3"),
        *("--set", "evaluation.max_tool_calls=[0]", "--set", "evaluation.samples=2"),
    )  # fmt: skip
    sandbox = None
    try:
        folder = wait_for(lambda: next((tmp_path / "runs").glob("tiny-*"), None), up, output)
        wait_for(lambda: (folder / "credentials").exists() and "ready" in output.read_text(), up, output)
        command = ("sandbox", str(folder / "config.yaml"), "--bus", str(folder / "credentials/sandbox.json"))
        sandbox, words = start(tmp_path, *command, "--id", "other")
        assert up.wait(timeout=300) == 0, output.read_text()
        assert sandbox.wait(timeout=60) == 0, words.read_text()
    finally:
        for process in filter(None, (up, sandbox)):
            if process.poll() is None:
                process.kill()
                process.wait()
    assert "the run is done" in words.read_text()
    text = output.read_text()
    assert "evaluator has scored the last version" in text
    assert "is started again" not in text
    [results] = (folder / "evaluation").glob("*.4/results.json")
    assert json.loads(results.read_text())["complete"]
    # A resume of what is done scores what is not scored yet.
    shutil.rmtree(folder / "evaluation")
    up, output = start(tmp_path, "up", "--resume", str(folder))
    try:
        assert up.wait(timeout=300) == 0, output.read_text()
    finally:
        up.kill()
        up.wait()
    [results] = (folder / "evaluation").glob("*.4/results.json")
    assert json.loads(results.read_text())["complete"]
    assert processes_of(tmp_path) == []


def test_ctrl_c_stops_and_the_same_command_goes_on(tmp_path: Path):
    out = tmp_path / "out"
    command = ("eval", "tiny", "--checkpoint", "random-tiny", "--max-tool-calls", "0,1", "--out", str(out))
    first, output = start(tmp_path, *command)
    path = out / "samples.jsonl"
    try:
        wait_for(lambda: path.exists() and path.read_bytes().count(b"\n") >= 9, first, output)
    finally:
        first.send_signal(signal.SIGINT)
        code = first.wait(timeout=60)
    assert code == 130
    assert "stopped; what is finished is kept, the same command goes on" in output.read_text()
    assert "INCOMPLETE" in (out / "results.md").read_text()
    begun = path.read_bytes()
    # The first problems of the same, so that it ends soon: 3 problems, 2 budgets, 4 samples.
    second, output = start(tmp_path, *command, "--limit", "3")
    try:
        code = second.wait(timeout=TIMEOUT_S)
    finally:
        second.kill()
    assert code == 0, output.read_text()[-3000:]
    assert "samples are there already" in output.read_text()
    assert path.read_bytes().startswith(begun)
    results = json.loads((out / "results.json").read_text())
    assert results["complete"]
    assert [row["samples"] for row in results["rows"]] == [12, 12]
    assert processes_of(tmp_path) == []

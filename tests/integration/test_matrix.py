"""`zerotir matrix` on the tiny model, every part real: interrupted, gone on with, finished, reported, and not run again."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bus.metrics import steps_of
from tests.processes import processes_of

STEPS = 12
TIMEOUT_S = 420

MATRIX = f"""
name: both
set: [learner.steps={STEPS}, learner.checkpoint.every=2]
experiments:
  - config: tiny
    max_tool_calls: [0, 2]
"""


class MatrixRun:
    """The command, in a folder of its own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.folder = home / "runs" / "matrix-both"
        (home / "both.yaml").write_text(MATRIX)

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "launch.cli", "matrix", str(self.home / "both.yaml")]
        return subprocess.Popen(
            [*command, "--set", f"launch.runs_dir={self.home}/runs", *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
            env={**os.environ, "ZEROTIR_TEST_RUN": str(self.home)},
        )  # fmt: skip

    def attempts(self) -> dict[str, list[int | None]]:
        found = json.loads((self.folder / "matrix.json").read_text())
        return {name: [attempt["code"] for attempt in attempts] for name, attempts in found.items()}


@pytest.mark.slow
@pytest.mark.timeout(2 * TIMEOUT_S + 60)
def test_an_interrupted_matrix_goes_on_where_it_was_and_reports_all_as_one(tmp_path: Path):
    matrix = MatrixRun(tmp_path)
    first, second = matrix.folder / "tiny-calls0-seed0", matrix.folder / "tiny-calls2-seed0"

    interrupted = matrix.start()
    try:
        deadline = time.monotonic() + TIMEOUT_S
        # Interrupted in the middle of the second run, after its first checkpoint.
        while len(steps_of(second)) < 4:
            assert interrupted.poll() is None, interrupted.communicate()[0][-3000:]
            assert time.monotonic() < deadline, "the second run did not come to its fourth step"
            time.sleep(0.1)
        beside, _ = matrix.start().communicate(timeout=60)
        assert "at work in" in beside
        interrupted.send_signal(signal.SIGINT)
        output, _ = interrupted.communicate(timeout=90)
    finally:
        if interrupted.poll() is None:
            interrupted.send_signal(signal.SIGINT)
            interrupted.wait(timeout=90)
    assert interrupted.returncode == 130
    assert "the same command goes on" in output
    assert processes_of(tmp_path) == []
    assert matrix.attempts() == {first.name: [0], second.name: [130]}
    done = len(steps_of(second))
    assert 4 <= done < STEPS
    before = (first / "metrics.jsonl").read_bytes()

    listed, _ = matrix.start("--list").communicate(timeout=60)
    assert f"finished        {STEPS} of {STEPS}" in listed
    assert f"interrupted  {done:>5} of {STEPS}" in listed

    resumed = matrix.start()
    output, _ = resumed.communicate(timeout=TIMEOUT_S)
    assert resumed.returncode == 0, output[-3000:]
    assert f"{first.name}: finished before" in output
    assert re.search(rf"{second.name}: goes on; about .* left for 1 run", output)
    assert (first / "metrics.jsonl").read_bytes() == before
    assert [record["step"] for record in steps_of(second)] == list(range(1, STEPS + 1))
    assert matrix.attempts() == {first.name: [0], second.name: [130, 0]}
    # It went on from a checkpoint: its first steps were trained once.
    lines = [json.loads(line) for line in (second / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["role"] == "learner"].count(1) == 1

    report = json.loads((matrix.folder / "scaling" / "report.json").read_text())
    assert [setting["setting"]["label"] for setting in report["settings"]] == [
        "tiny, max_tool_calls 0",
        "tiny, max_tool_calls 2",
    ]
    assert report["settings"][0]["setting"]["runs"][0]["missing"] == {}
    # A random model's lengths decide whether enough steps lie in the range of compute that both runs share.
    assert "step" in {comparison["axis"] for comparison in report["comparisons"]}

    changed, _ = matrix.start("--set", "learner.optimizer.lr=0.5").communicate(timeout=60)
    assert "begun with another configuration" in changed

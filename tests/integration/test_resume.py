"""A learner that is killed in the middle of a run on the tiny model, every part real: the run goes on over the same logs."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bus.address import BusAddress
from bus.messages import Trajectory
from bus.metrics import steps_of
from learner.replay import difference
from learner.tickets.archive import read_archive
from tests.processes import Roles, processes_of, zerotir

STEPS = 10
TIMEOUT_S = 300
RANDOM_KILLS_S = 600


class Up:
    """`zerotir up tiny` in a folder of its own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.output = home / "up.txt"

    def start(self, *arguments: str) -> "subprocess.Popen[bytes]":
        overrides = [f"launch.runs_dir={self.home}/runs", f"learner.steps={STEPS}", "learner.checkpoint.every=3"]
        command = [sys.executable, "-m", "launch.cli", "up", "tiny", *arguments]
        command += [part for override in overrides for part in ("--set", override)]
        with self.output.open("ab") as file:
            environment = {**os.environ, "ZEROTIR_TEST_RUN": str(self.home)}
            return subprocess.Popen(command, stdout=file, stderr=file, env=environment)

    def until[T](self, condition: Callable[[], T | None], process: "subprocess.Popen[bytes]") -> T:
        deadline = time.monotonic() + TIMEOUT_S
        while not (value := condition()):
            assert process.poll() is None, self.output.read_text()[-3000:]
            assert time.monotonic() < deadline, self.output.read_text()[-3000:]
            time.sleep(0.05)
        return value


def pid_of(folder: Path, role: str) -> int:
    [line] = [line for line in processes_of(folder) if f"launch.cli {role} " in line]
    return int(line.split()[0])


@pytest.mark.slow
@pytest.mark.timeout(2 * TIMEOUT_S + 60)
def test_a_killed_learner_goes_on_from_its_checkpoint_and_loses_nothing(tmp_path: Path):
    up = Up(tmp_path)
    first = up.start()
    try:
        folder = up.until(lambda: next((tmp_path / "runs").glob("tiny-*"), None), first)
        # After the checkpoint of step 3, before that of step 6.
        up.until(lambda: len(steps_of(folder)) >= 5, first)
        killed_at = len(steps_of(folder))
        os.kill(pid_of(folder, "learner"), signal.SIGKILL)
        assert first.wait(timeout=TIMEOUT_S) == 0, up.output.read_text()[-3000:]
    finally:
        if first.poll() is None:
            first.terminate()
            first.wait(timeout=60)
    assert "learner was killed by signal 9 (SIGKILL)" in up.output.read_text()
    assert "it is started again (1 of 5 restarts in a row)" in up.output.read_text()
    assert processes_of(tmp_path) == []

    steps = steps_of(folder)
    assert [step["step"] for step in steps] == list(range(1, STEPS + 1))
    last = steps[-1]
    assert last["tickets_issued"] == STEPS * 4 * 4
    assert last["tickets_trained"] + last["tickets_filtered"] + last["tickets_failed"] == last["tickets_issued"]
    assert all(step["staleness_max"] <= 1 for step in steps)
    # Nothing was generated again for what the log held, and nothing was archived twice.
    tickets = [result.ticket for _, result in read_archive(folder / "results") if isinstance(result, Trajectory)]
    assert len(tickets) == len(set(tickets)) == STEPS * 4 * 4
    logs = [json.loads(line) for line in (folder / "logs" / "learner.jsonl").read_text().splitlines()]
    resumed = next(line for line in logs if line["event"] == "resumed")
    assert resumed["step"] == 3 * (killed_at // 3)
    assert [line["epoch"] for line in logs if line["event"] == "took over the weight log"] == [1]
    # Versions that were trained again are compared with the log: all the same, or a new snapshot that says so.
    again = [line for line in logs if line["event"] == "weights reproduce what the log holds"]
    anew = [line for line in logs if line["event"].startswith("weights do not continue the log")]
    assert again or anew
    assert processes_of(tmp_path) == []


@pytest.mark.slow
@pytest.mark.timeout(2 * TIMEOUT_S + 60)
def test_what_is_set_on_resume_has_its_effect_or_is_refused(tmp_path: Path):
    runs = tmp_path / "runs"
    done = zerotir("up", "tiny", "--set", f"launch.runs_dir={runs}", "--set", "learner.steps=2")
    assert done.returncode == 0, done.stdout[-3000:]
    [folder] = runs.glob("tiny-*")
    resume = ("up", "--resume", str(folder))
    refused = zerotir(*resume, "--set", "bus.url=nats://a:4222")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith("zerotir: bus.url has no effect on a run that goes on: leave it at None")
    # Another program has the port that the run had.
    port = BusAddress.read(folder / "bus.json").port
    with socket.create_server(("127.0.0.1", port)):
        done = zerotir(*resume, "--set", "learner.steps=4", "--set", "learner.optimizer.lr=1e-7")
    assert done.returncode == 0, done.stdout[-3000:]
    assert BusAddress.read(folder / "bus.json").port != port
    assert "changed: learner.optimizer.lr: 0.001 -> 1e-07" in done.stdout
    assert [step["learning_rate"] for step in steps_of(folder)] == [1e-3, 1e-3, 1e-7, 1e-7]


@pytest.mark.slow
@pytest.mark.timeout(RANDOM_KILLS_S + 60)
def test_a_learner_killed_at_random_moments_ends_at_the_weights_of_a_replay(tmp_path: Path):
    steps, kills = 20, 5
    folder = tmp_path / "run"
    settings = ("model.dtype=bfloat16", "learner.checkpoint.every=3", "learner.batch_timeout_s=120")
    roles = Roles(folder, f"learner.steps={steps}", *settings)
    moments = random.Random(f"{tmp_path}")
    deadline = time.monotonic() + RANDOM_KILLS_S
    try:
        roles.start_all_but_the_learner(deadline)
        killed: list[int] = []
        while True:
            learner = roles.start("learner")
            before = len(steps_of(folder))
            # Up to three steps after its first, at any moment of the next.
            target = before + moments.randint(1, 4)
            pause = moments.uniform(0.0, 1.0)
            while learner.poll() is None and (len(killed) == kills or len(steps_of(folder)) < target):
                assert time.monotonic() < deadline, roles.output("learner")
                time.sleep(0.02)
            if learner.poll() is not None:
                assert learner.returncode == 0, roles.output("learner")
                break
            time.sleep(pause)
            learner.kill()
            learner.wait(timeout=60)
            killed.append(len(steps_of(folder)))
        # Back to an older checkpoint: what the bus no longer holds comes from the archive.
        shutil.rmtree(folder / "model")
        shutil.rmtree(max((folder / "checkpoints").glob("step-*")))
        assert roles.start("learner").wait(timeout=TIMEOUT_S) == 0, roles.output("learner")
        out = tmp_path / "replay"
        replayed = subprocess.run(
            [sys.executable, "-m", "launch.cli", "replay", str(folder), "--out", str(out)],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=True,
        )
    finally:
        roles.stop()
    assert len(killed) >= 3
    assert f"optimiser state: the same as in step-{steps:06d}, bit for bit" in replayed.stdout, killed
    found = difference(folder / "model", out / "model")
    assert found.weights > 100_000
    assert found.different == 0
    # The same batches as well, and not one of them twice.
    recorded, again = steps_of(folder), steps_of(out)
    assert [step["step"] for step in recorded] == [step["step"] for step in again] == list(range(1, steps + 1))
    for name in ("loss", "grad_norm", "reward", "trained_tokens"):
        assert [step[name] for step in again] == [step[name] for step in recorded], name
    assert processes_of(folder) == []

"""`zerotir up emulated`: every part real but the engine, which says so everywhere."""

import json
import os
import signal
import subprocess
import time
from functools import partial
from pathlib import Path

import pytest

from bus.metrics import steps_of
from launch.up import PROGRESS_STEPS, RESTARTS
from tests.processes import ZEROTIR, processes_of, wait_for, words_of


def start(home: Path, *settings: str, resume: Path | None = None) -> tuple["subprocess.Popen[bytes]", Path]:
    output = home / ("resumed.txt" if resume else "up.txt")
    overrides = [part for setting in (*settings, f"launch.runs_dir={home}/runs") for part in ("--set", setting)]
    overrides += ["--resume", str(resume)] if resume else []
    with output.open("wb") as file:
        environment = {**os.environ, "ZEROTIR_TEST_RUN": str(home)}
        config = [] if resume else ["emulated"]
        up = subprocess.Popen([*ZEROTIR, "up", *config, *overrides], stdout=file, stderr=file, env=environment)
    return up, output


def status(home: Path) -> str:
    command = [*ZEROTIR, "status", "--bus", str(home / "runs" / "latest" / "bus.json")]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_an_emulated_run_closes_its_books_and_never_hides_what_it_is(tmp_path: Path):
    low = "alarms.disk_free_gib=1000000"
    up, output = start(tmp_path, "learner.steps=8", "actor.engine.emulation.tokens_per_s=80", low)
    try:
        wait_for(lambda: "step   2/8" in output.read_text() and "ALARM disk" in output.read_text(), up, output)
        # The run cannot end before it was looked at, however fast the machine.
        [learner] = [int(line.split()[0]) for line in processes_of(tmp_path) if " learner " in line]
        os.kill(learner, signal.SIGSTOP)
        try:
            seen = status(tmp_path)
        finally:
            os.kill(learner, signal.SIGCONT)
        assert up.wait(timeout=200) == 0, output.read_text()
    finally:
        if up.poll() is None:
            up.kill()
            up.wait()
    assert "EMULATED engine" in seen
    assert "\n  ALARM disk (learner, for " in seen
    for role in ("actor    actor-0", "actor    actor-1", "learner  learner", "sandbox  sandbox", "bus      bus"):
        assert role in seen
    assert "0 filtered + 0 failed" in seen
    text = output.read_text()
    assert "by an emulated engine" in text
    assert "128 issued = 128 trained + 0 filtered + 0 failed + 0 open" in text
    assert all("EMULATED" in line for line in text.splitlines() if "  step " in line)
    [folder] = (tmp_path / "runs").glob("emulated-*")
    assert all(record["emulated"] == 1.0 for record in lines(folder / "metrics.jsonl"))
    for role in ("actor-0", "learner", "sandbox"):
        assert {record.get("engine") for record in lines(folder / "logs" / f"{role}.jsonl")} == {"emulated"}
    assert processes_of(tmp_path) == []


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ctrl_c_stops_a_run_and_resuming_shows_only_the_steps_that_it_takes(tmp_path: Path):
    up, output = start(tmp_path, "learner.steps=2000")
    try:
        wait_for(lambda: "step   5/2000" in output.read_text(), up, output)
        up.send_signal(signal.SIGINT)
        assert up.wait(timeout=200) == 130, output.read_text()
        [folder] = (tmp_path / "runs").glob("emulated-*")
        assert f"stopped; go on with: zerotir up --resume {folder}" in output.read_text()
        last = steps_of(folder)[-1]["step"]
        # The run's own configuration, and a change that it cannot take.
        up, output = start(tmp_path, "learner.group_size=8", resume=folder)
        assert up.wait(timeout=60) == 2
        assert "learner.group_size is 4 in this run and cannot be 8" in output.read_text()
        # Tickets in flight belong to the two steps after the last.
        up, output = start(tmp_path, f"learner.steps={last + 3}", resume=folder)
        assert up.wait(timeout=200) == 0, output.read_text()
    finally:
        if up.poll() is None:
            up.kill()
            up.wait()
    text = output.read_text()
    assert f"changed: learner.steps: 2000 -> {last + 3}" in text
    assert f"goes on with a run of which {last} steps were measured, the last: step {last}" in text
    shown = [int(line.split("  step ")[1].split("/")[0]) for line in text.splitlines() if "  step " in line]
    # From the newest checkpoint on: one is written every second step.
    assert shown == list(range(shown[0], last + 4))
    assert last - 2 < shown[0] <= last + 1
    assert processes_of(tmp_path) == []


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_up_restarts_a_dead_bus_and_nothing_outlives_a_killed_up(tmp_path: Path):
    up, output = start(tmp_path, "learner.steps=2000")
    try:
        wait_for(lambda: "step   2/2000" in output.read_text(), up, output)
        [server] = [line for line in processes_of(tmp_path) if "nats-server -c" in line]
        os.kill(int(server.split()[0]), signal.SIGKILL)
        wait_for(lambda: "ready again, nats-server had ended with status -9" in output.read_text(), up, output)
        before = output.read_text().count("  step ")
        wait_for(lambda: output.read_text().count("  step ") > before + 2, up, output)
        os.kill(up.pid, signal.SIGKILL)
        up.wait()
        deadline = time.monotonic() + 60
        while left := processes_of(tmp_path):
            assert time.monotonic() < deadline, left
            time.sleep(0.2)
    finally:
        up.kill()
        for line in processes_of(tmp_path):
            os.kill(int(line.split()[0]), signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_run_with_a_reward_function_goes_on_with_that_one_alone(tmp_path: Path):
    file = tmp_path / "rewards.py"
    source = "def reward(problem, answer, turns, calls):\n    return {'reward': 0.5, 'calls': len(calls)}\n"
    file.write_text(source)
    up, output = start(tmp_path, "learner.steps=3", f"tasks.grading.reward_function={file}:reward")
    try:
        assert up.wait(timeout=200) == 0, output.read_text()
        [folder] = (tmp_path / "runs").glob("emulated-*")
        measured = [record for record in steps_of(folder) if "reward" in record]
        assert [(record["reward"], record["accuracy"]) for record in measured] == [(0.5, 1.0)] * 3
        assert all(record["reward_calls"] >= 0 for record in measured)
        file.write_text("RIGHT = 0.7\n" + source)
        up, output = start(tmp_path, "learner.steps=5", resume=folder)
        assert up.wait(timeout=60) == 2
        assert "is another one" in output.read_text()
        file.write_bytes((folder / "reward_function.py").read_bytes())
        up, output = start(tmp_path, "learner.steps=5", resume=folder)
        assert up.wait(timeout=200) == 0, output.read_text()
        # One that cannot be loaded ends the run at once: no role is started again.
        file.write_text("import nowhere\n")
        up, output = start(tmp_path, f"tasks.grading.reward_function={file}:reward")
        assert up.wait(timeout=200) == 2
        assert "No module named 'nowhere'" in words_of(output)
        assert "restarts)" not in output.read_text()
    finally:
        if up.poll() is None:
            up.kill()
            up.wait()


def pid_of(home: Path, role: str) -> int | None:
    """Returns the process id of a role's command; None while there is none."""
    found = [int(line.split()[0]) for line in processes_of(home) if f"launch.cli {role} " in line]
    return found[0] if found else None


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_second_start_is_refused_and_a_learner_that_was_told_to_stop_is_not_done(tmp_path: Path):
    up, output = start(tmp_path, "learner.steps=2000")
    try:
        wait_for(lambda: "step   2/2000" in output.read_text(), up, output)
        [folder] = (tmp_path / "runs").glob("emulated-*")
        recorded = (folder / "config.yaml").read_bytes()
        again, refused = start(tmp_path, resume=folder)
        assert again.wait(timeout=60) == 2
        assert f"is on already: `zerotir up` is process {up.pid} on " in refused.read_text()
        bus = [*ZEROTIR, "bus", "emulated", "--folder", str(folder), "--set", "bus.timeout_s=77"]
        done = subprocess.run(bus, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 2
        assert f"the bus of the run in {folder} is on already: `zerotir bus` is process" in done.stdout + done.stderr
        assert "is on already" not in (folder / "logs" / "bus.jsonl").read_text()
        assert (folder / "config.yaml").read_bytes() == recorded
        seen = output.read_text().count("  step ")
        wait_for(lambda: output.read_text().count("  step ") > seen + 2, up, output)
        learner = pid_of(tmp_path, "learner")
        assert learner is not None
        os.kill(learner, signal.SIGTERM)
        assert up.wait(timeout=200) == 130, output.read_text()
        assert "learner was told to stop before its last step" in output.read_text()
        assert f"stopped; go on with: zerotir up --resume {folder}" in output.read_text()
        last = steps_of(folder)[-1]["step"]
        up, output = start(tmp_path, f"learner.steps={last + 3}", resume=folder)
        assert up.wait(timeout=200) == 0, output.read_text()
    finally:
        if up.poll() is None:
            up.kill()
            up.wait()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_deaths_among_progress_never_end_a_run_and_deaths_in_a_row_do(tmp_path: Path):
    settings = ("learner.steps=5000", "actor.engine.emulation.call_ratio=1", "actor.engine.emulation.median_tokens=10")
    up, output = start(tmp_path, *settings)

    def shown() -> int:
        return output.read_text().count("  step ")

    try:
        wait_for(lambda: shown() >= 2, up, output)
        for _ in range(RESTARTS + 2):
            victim = wait_for(lambda: pid_of(tmp_path, "actor"), up, output)
            os.kill(victim, signal.SIGKILL)
            enough = shown() + PROGRESS_STEPS + 2
            wait_for(partial(lambda enough: shown() >= enough, enough), up, output)
        # Without a sandbox there are no steps.
        killed = set()
        while up.poll() is None:
            sandbox = pid_of(tmp_path, "sandbox")
            if sandbox and sandbox not in killed:
                killed.add(sandbox)
                os.kill(sandbox, signal.SIGKILL)
            time.sleep(0.05)
        assert up.wait(timeout=200) == 1, output.read_text()
    finally:
        if up.poll() is None:
            up.kill()
            up.wait()
    assert len(killed) == RESTARTS + 1
    text = output.read_text()
    assert text.count("(1 of 5 restarts in a row)") == RESTARTS + 3
    assert "FAILED: sandbox was killed by signal 9 (SIGKILL)" in text
    assert "and so 5 times before with nothing done" in text
    assert processes_of(tmp_path) == []

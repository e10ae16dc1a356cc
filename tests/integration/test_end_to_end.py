"""The whole pipeline on the tiny model: real nats-server, nsjail, vLLM and DeepSpeed, two actors, one of which leaves.

One run serves every test of this file; each asserts one property of what it left behind.
"""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from bus.messages import DeadLetter, Trajectory
from learner.archive import read_archive
from tests.bad_results import BAD, unusable
from tests.integration.intruder import GARBAGE, intrude

STEPS = 40
TIMEOUT_S = 480


@dataclass
class FinishedRun:
    folder: Path
    output: str
    code: int
    leaver_code: int
    steps: list[dict]
    trajectories: list[Trajectory]
    left: list[str]
    letters: list[DeadLetter]


def processes_of(folder: Path) -> list[str]:
    """Command lines of living processes that name this run's folder, or are engines (vLLM renames its processes)."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                environment = (entry / "environ").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if str(folder) in command or f"ZEROTIR_TEST_RUN={folder}" in environment:
                found.append(f"{entry.name} {command}")
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """`zerotir up tiny` with a second actor that is started by hand, and stopped once it was trained on."""
    home = tmp_path_factory.mktemp("run")
    environment = {**os.environ, "ZEROTIR_TEST_RUN": str(home)}
    zerotir = [sys.executable, "-m", "launch.cli"]
    output = home / "up.txt"
    with output.open("w") as file:
        up = subprocess.Popen(
            [*zerotir, "up", "tiny", "--set", f"learner.steps={STEPS}", "--set", f"launch.runs_dir={home}/runs",
             "--set", "learner.batch_groups=6"],
            stdout=file, stderr=file, env=environment,
        )  # fmt: skip
        try:
            folder = wait_for(lambda: next((home / "runs").glob("tiny-*"), None), up, output)
            wait_for(lambda: (folder / "bus.json").exists(), up, output)
            leaver = subprocess.Popen(
                [*zerotir, "actor", str(folder / "config.yaml"), "--bus", str(folder / "bus.json"), "--id", "leaver"],
                stdout=file, stderr=file, env=environment,
            )  # fmt: skip
            wait_for(lambda: any(t.actor == "leaver" for t in archived(folder)), up, output)
            # In a thread: this one has the tests' event loop.
            with ThreadPoolExecutor(1) as thread:
                letters = thread.submit(intrude, folder).result(timeout=120)
            leaver.send_signal(signal.SIGTERM)
            leaver_code = leaver.wait(timeout=30)
            code = up.wait(timeout=TIMEOUT_S)
        finally:
            for process in (up, leaver) if "leaver" in locals() else (up,):
                if process.poll() is None:
                    process.terminate()
                    process.wait(timeout=60)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return FinishedRun(
        folder=folder,
        output=output.read_text(),
        code=code,
        leaver_code=leaver_code,
        steps=[line for line in lines if line["role"] == "learner" and line["step"] is not None],
        trajectories=archived(folder),
        left=processes_of(home),
        letters=letters,
    )


def wait_for(condition, up: subprocess.Popen, output: Path):
    deadline = time.monotonic() + TIMEOUT_S
    while not (value := condition()):
        assert up.poll() is None, f"the run ended early:\n{output.read_text()[-3000:]}"
        assert time.monotonic() < deadline, f"waited in vain:\n{output.read_text()[-3000:]}"
        time.sleep(0.1)
    return value


def archived(folder: Path) -> list[Trajectory]:
    results = folder / "results"
    return [result for _, result in read_archive(results) if isinstance(result, Trajectory)] if results.exists() else []


def test_the_run_ends_well_and_leaves_no_process(run: FinishedRun):
    assert run.code == 0, run.output[-3000:]
    assert run.leaver_code == 0, run.output[-3000:]
    assert run.left == []
    assert "summary of tiny-" in run.output


def test_code_of_the_model_ran_in_the_sandbox(run: FinishedRun):
    calls = [call for trajectory in run.trajectories for call in trajectory.tool_calls]
    assert calls
    # A random model's programs do not do much, but the interpreter in the jail has read them.
    assert any("Error" in call.output for call in calls)
    executions = sum("code_ratio" in step and step["code_ratio"] > 0 for step in run.steps)
    assert executions == STEPS


def test_trajectories_of_both_actors_were_trained_on(run: FinishedRun):
    assert {trajectory.actor for trajectory in run.trajectories} == {"actor-0", "leaver"}
    assert any(step["actors"] == 2 for step in run.steps)


def test_weight_versions_grow_and_staleness_is_bounded(run: FinishedRun):
    versions = [trajectory.lowest_version for trajectory in sorted(run.trajectories, key=lambda t: t.ticket)]
    assert versions[0] == 0
    assert max(versions) >= STEPS - 2
    assert all(step["staleness_max"] <= 1 for step in run.steps)
    assert [step["step"] for step in run.steps] == list(range(1, STEPS + 1))


def test_every_ticket_is_accounted_for(run: FinishedRun):
    last = run.steps[-1]
    assert last["tickets_issued"] == STEPS * 6 * 4
    ended = last["tickets_trained"] + last["tickets_filtered"] + last["tickets_failed"]
    assert ended == last["tickets_issued"]
    assert last["tickets_open"] == 0
    tickets = [trajectory.ticket for trajectory in run.trajectories]
    assert len(tickets) == len(set(tickets))


def test_bad_messages_went_to_the_dead_letters_with_the_reason_and_stopped_nobody(run: FinishedRun):
    results = [letter for letter in run.letters if letter.stream.endswith("-RESULTS")]
    sent = (BAD | unusable(run.folder.name)).values()
    assert [letter.data for letter in results] == [data for data, _ in sent]
    for letter, (_, reason) in zip(results, sent, strict=True):
        assert reason in letter.reason
    # Both who follow the metrics bury what they cannot read.
    assert GARBAGE in {letter.data for letter in run.letters if letter.stream.endswith("-METRICS")}
    assert run.code == 0
    assert "intruder" not in {trajectory.actor for trajectory in run.trajectories}
    assert run.steps[-1]["tickets_ignored"] >= len(results)


def test_inserted_tokens_are_masked_and_sampled_ones_have_probabilities(run: FinishedRun):
    with_calls = [trajectory for trajectory in run.trajectories if trajectory.tool_calls]
    for trajectory in with_calls:
        assert trajectory.loss_mask[trajectory.tool_calls[0].start :][:5].sum() in (0, 5)
        assert (trajectory.logprobs[trajectory.loss_mask == 0] == 0).all()
        assert trajectory.response_length <= 160


def test_the_learner_agrees_with_the_engine_on_log_probabilities(run: FinishedRun):
    # On policy (the first step) the two differ by rounding alone; later by the age of keys and values in the cache.
    assert abs(run.steps[0]["behaviour_kl"]) < 1e-6
    assert abs(run.steps[0]["importance_weight_mean"] - 1.0) < 1e-3


def test_the_checkpoint_loads_and_has_learned_weights(run: FinishedRun):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from configs.models import model_folder

    trained = AutoModelForCausalLM.from_pretrained(run.folder / "model")
    first = AutoModelForCausalLM.from_pretrained(model_folder("random-tiny"))
    tokenizer = AutoTokenizer.from_pretrained(run.folder / "model")
    assert tokenizer.decode(tokenizer.encode("1+1=2")) == "1+1=2"
    assert any(not torch.equal(a, b) for a, b in zip(trained.parameters(), first.parameters(), strict=True)), (
        "training changed nothing"
    )


def test_logs_metrics_and_plots_are_there(run: FinishedRun):
    for role in ("bus", "sandbox", "actor-0", "leaver", "learner"):
        [first, *_] = (run.folder / "logs" / f"{role}.jsonl").read_text().splitlines()
        record = json.loads(first)
        assert record["id"] == role
        assert record["run"] == run.folder.name
    assert {path.name for path in (run.folder / "plots").iterdir()} == {
        "accuracy.png", "code_ratio.png", "response_length.png", "staleness.png"
    }  # fmt: skip
    roles = {json.loads(line)["role"] for line in (run.folder / "metrics.jsonl").read_text().splitlines()}
    assert roles == {"actor", "sandbox", "learner"}

"""The whole pipeline on the tiny model: real nats-server, nsjail, vLLM and DeepSpeed, two actors, one of which leaves.

One run serves every test of this file; each asserts one property of what it left behind. Nothing in it is a race: while one
actor has to be trained on, the other is suspended, and while neither works the run waits.
"""

import contextlib
import json
import os
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from bus.messages import DeadLetter, ToolCall, Trajectory
from bus.metrics import steps_of
from learner.tickets.archive import read_archive
from learner.tickets.token_values import read_values
from tests.bad_results import BAD, unusable
from tests.integration.intruder import GARBAGE, intrude
from tests.processes import TIMEOUT_S, ZEROTIR, processes_of, wait_for, words_of

STEPS, GROUPS, SAMPLES = 8, 6, 4


@dataclass
class FinishedRun:
    folder: Path
    output: str
    code: int
    leaver_code: int
    status: subprocess.CompletedProcess[str]
    """Of `zerotir status` while the run was on."""
    first_metrics: tuple[str, str]
    """What `zerotir metrics` wrote until its reader went away, to standard output and to standard error."""
    steps: list[dict]
    trajectories: list[Trajectory]
    left: list[str]
    letters: list[DeadLetter]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """`zerotir up tiny` with a second actor that is started by hand, and stopped once it was trained on."""
    home = tmp_path_factory.mktemp("run")
    output = home / "up.txt"
    environment = {**os.environ, "ZEROTIR_TEST_RUN": str(home)}
    processes: list[subprocess.Popen[bytes]] = []

    def start(*arguments: object) -> "subprocess.Popen[bytes]":
        with output.open("ab") as file:
            process = subprocess.Popen([*ZEROTIR, *map(str, arguments)], stdout=file, stderr=file, env=environment)
        processes.append(process)
        return process

    def pid_of(role: str, id: str) -> int:
        def find() -> int | None:
            command = f"launch.cli {role} "
            found = [line for line in processes_of(home) if command in line and line.endswith(f"--id {id}")]
            return int(found[0].split()[0]) if found else None

        return wait_for(find, up, output)

    def said(actor: str, what: str) -> bool:
        log = folder / "logs" / f"{actor}.jsonl"
        return log.exists() and f'"{what}"' in log.read_text()

    try:
        settings = (f"launch.runs_dir={home}/runs", f"learner.batch_groups={GROUPS}", f"learner.steps={STEPS}")
        up = start("up", "tiny", *(part for setting in settings for part in ("--set", setting)))
        learner, actor = pid_of("learner", "learner"), pid_of("actor", "actor-0")
        folder = wait_for(lambda: next((home / "runs").glob("tiny-*"), None), up, output)
        # It has said what its model is, and loads its own engine.
        wait_for(lambda: said("actor-0", "loading the engine"), up, output)
        os.kill(learner, signal.SIGSTOP)
        leaver = start("actor", folder / "config.yaml", "--bus", folder / "bus.json", "--id", "leaver")
        wait_for(lambda: all(said(id, "waiting for weights") for id in ("actor-0", "leaver")), up, output)
        # With its engine, a process of the same group.
        os.killpg(actor, signal.SIGSTOP)
        os.kill(learner, signal.SIGCONT)
        wait_for(lambda: archived(folder), up, output)
        leaver.send_signal(signal.SIGTERM)
        leaver_code = leaver.wait(timeout=TIMEOUT_S)
        # In a thread: this one has the tests' event loop.
        with ThreadPoolExecutor(1) as thread:
            letters = thread.submit(intrude, folder).result(timeout=TIMEOUT_S)
        status = subprocess.run(
            [*ZEROTIR, "status", "--bus", str(folder / "bus.json")],
            capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
        )  # fmt: skip
        first_metrics = read_a_line_and_leave([*ZEROTIR, "metrics", "--bus", str(folder / "bus.json")])
        os.killpg(actor, signal.SIGCONT)
        code = up.wait(timeout=TIMEOUT_S)
    finally:
        for line in processes_of(home):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(line.split()[0]), signal.SIGCONT)
        for process in processes:
            if process.poll() is None:
                process.terminate()
        for process in processes:
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
    return FinishedRun(
        folder=folder,
        output=words_of(output),
        code=code,
        leaver_code=leaver_code,
        status=status,
        first_metrics=first_metrics,
        steps=steps_of(folder),
        trajectories=archived(folder),
        left=processes_of(home),
        letters=letters,
    )


def read_a_line_and_leave(command: list[str]) -> tuple[str, str]:
    """As `| head -n 1` does; what the command wrote to standard output so far, and to standard error until its end."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        line = process.stdout.readline()
        process.stdout.close()
        process.wait(timeout=TIMEOUT_S)
        assert process.returncode == 0
        return line, process.stderr.read()


def calls_of(trajectories: list[Trajectory]) -> list[ToolCall]:
    return [call for trajectory in trajectories for call in trajectory.tool_calls]


def archived(folder: Path) -> list[Trajectory]:
    results = folder / "results"
    return [result for _, result in read_archive(results) if isinstance(result, Trajectory)] if results.exists() else []


def test_the_run_ends_well_and_leaves_no_process(run: FinishedRun):
    assert run.code == 0, run.output
    assert run.leaver_code == 0, run.output
    assert run.left == []
    assert f"summary of {run.folder.name}: {STEPS} steps" in run.output


def test_status_and_metrics_say_what_there_is_and_nothing_else(run: FinishedRun):
    assert run.status.returncode == 0
    # What the intruder wrote is warned of, beside what is asked for.
    assert "unreadable presence" not in run.status.stdout
    assert all("unreadable presence" in line and "actor.intruder" in line for line in run.status.stderr.splitlines())
    for who in ("learner  learner", "sandbox  sandbox", "bus      bus"):
        assert who in run.status.stdout
    line, errors = run.first_metrics
    assert "executions" in line
    assert all("bad message" in error for error in errors.splitlines())


def test_code_of_the_model_ran_in_the_sandbox(run: FinishedRun):
    # A random model's programs do not much, but the interpreter in the jail has read them.
    assert any("Error" in call.output for call in calls_of(run.trajectories))
    assert any(step["code_ratio"] > 0 for step in run.steps)


def test_trajectories_of_both_actors_were_trained_on(run: FinishedRun):
    assert {trajectory.actor for trajectory in run.trajectories} == {"actor-0", "leaver"}


def test_weight_versions_grow_and_staleness_is_bounded(run: FinishedRun):
    versions = [trajectory.lowest_version for trajectory in sorted(run.trajectories, key=lambda t: t.ticket)]
    assert versions[0] == 0
    assert max(versions) >= STEPS - 2
    assert all(step["staleness_max"] <= 1 for step in run.steps)
    assert [step["step"] for step in run.steps] == list(range(1, STEPS + 1))


def test_every_ticket_is_accounted_for(run: FinishedRun):
    last = run.steps[-1]
    assert last["tickets_issued"] == STEPS * GROUPS * SAMPLES
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
    # Both who follow the metrics dead-letter what they cannot read.
    assert GARBAGE in {letter.data for letter in run.letters if letter.stream.endswith("-METRICS")}
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
    # The first batch was sampled with the weights that it was trained from.
    assert run.steps[0]["engine_gap"] < 1e-4


def test_the_checkpoint_loads_and_has_learned_weights(run: FinishedRun):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from runtime.models import model_folder

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


def test_what_each_step_made_of_its_tokens_is_kept(run: FinishedRun):
    sampled = {item.ticket: int(item.loss_mask.sum()) for item in run.trajectories}
    for step in run.steps:
        values = read_values(run.folder / "tokens", step["step"])
        assert len(values) == step["trained_trajectories"]
        assert {ticket: len(each.log_ratios) for ticket, each in values.items()} == {
            ticket: sampled[ticket] for ticket in values
        }
        if values:
            ratios = np.concatenate([each.log_ratios for each in values.values()]).astype(np.float64)
            kl = np.mean(np.exp(ratios) - 1 - ratios)
            assert kl == pytest.approx(step["behaviour_kl"], rel=0.02, abs=1e-6)

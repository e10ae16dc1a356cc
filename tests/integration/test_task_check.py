"""What no step could train on is found before a model is loaded; what some could not is told."""

import json
from pathlib import Path

import pytest
import structlog

from configs.loading import load_config
from configs.schema import RunConfig
from grading.reward_source import with_digest
from launch.task_check import require_usable_tasks
from runtime.models import ModelError, model_folder
from tasks.problems import ProblemError, ProblemOrder, load_problems
from tasks.prompts import PromptError, keep_template, load_template
from tests.processes import zerotir


def of(answers: list[str], folder: Path, *overrides: str) -> tuple[RunConfig, ProblemOrder]:
    rows = [json.dumps({"id": str(n), "problem": f"{n}+0=", "answer": answer}) for n, answer in enumerate(answers)]
    (folder / "problems.jsonl").write_text("\n".join(rows) + "\n")
    source = f"tasks.problems={{file: '{folder / 'problems.jsonl'}'}}"
    config = load_config("tiny", [source, *overrides])
    return config, ProblemOrder(load_problems(config.tasks.problems, 0), 0)


async def check(config: RunConfig, order: ProblemOrder, template: str = "{problem}") -> None:
    await require_usable_tasks(config, template, order, model_folder("random-tiny"))


async def test_good_problems_pass(tmp_path: Path):
    with structlog.testing.capture_logs() as logs:
        await check(*of(["1", "2", "3"], tmp_path))
    assert not [line for line in logs if line["log_level"] == "warning"]


async def test_prompts_that_are_all_too_long_are_refused(tmp_path: Path):
    with pytest.raises(ProblemError, match=r"problems .* has 4 tokens, rollout\.max_prompt_tokens is 2"):
        await check(*of(["1", "2", "3"], tmp_path, "rollout.max_prompt_tokens=2"))


@pytest.mark.parametrize(
    ("rule", "golds"), [("boxed", ["\\frac{", "}", "{{"]), ("last_number", ["a lot", "who knows", "many"])]
)
async def test_golds_that_no_rule_reads_are_refused(tmp_path: Path, rule: str, golds: list[str]):
    config, order = of(golds, tmp_path, f"tasks.grading.rule={rule}")
    with pytest.raises(ProblemError, match=r"problems cannot be trained on, for instance: .*gold answer"):
        await check(config, order)


async def test_a_reward_function_that_always_fails_is_refused(tmp_path: Path):
    (tmp_path / "rewards.py").write_text("def reward(problem, answer, turns, calls): return 1 / len(calls)\n")
    config, order = of(["1", "2"], tmp_path, f"tasks.grading.reward_function={tmp_path / 'rewards.py'}:reward")
    with pytest.raises(ProblemError, match=r"8 of 8 problems cannot be trained on, .* raised ZeroDivisionError"):
        await check(with_digest(config), order)


async def test_some_bad_problems_are_told(tmp_path: Path):
    with structlog.testing.capture_logs() as logs:
        await check(*of(["1", "a lot", "3"], tmp_path, "tasks.grading.rule=last_number"))
    [told] = [line for line in logs if line["log_level"] == "warning"]
    assert " problems cannot be trained on, for instance: the gold answer" in told["event"]
    assert told["problems"] == ["1"]


async def test_a_chat_template_that_the_model_lacks_is_refused(tmp_path: Path):
    with pytest.raises(ProblemError, match=r"16 of 16 problems .*tasks\.prompt\.chat"):
        await check(*of(["1", "2"], tmp_path, "tasks.prompt.chat=true"))


async def test_problems_of_one_name_are_several(tmp_path: Path):
    rows = [{"id": "gsm", "problem": "1" * (200 if number == 0 else 1), "answer": "1"} for number in range(9)]
    (tmp_path / "set.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = load_config("tiny", [f"tasks.problems={{file: '{tmp_path / 'set.jsonl'}'}}"])
    with structlog.testing.capture_logs() as logs:
        await check(config, ProblemOrder(load_problems(config.tasks.problems, 0), 0))
    [told] = [line for line in logs if line["log_level"] == "warning"]
    assert "of 16 problems cannot be trained on" in told["event"]


async def test_a_model_without_a_tokenizer_is_one_line(tmp_path: Path):
    config, order = of(["1"], tmp_path)
    (tmp_path / "model").mkdir()
    with pytest.raises(ModelError, match=r"model has no usable tokenizer: [^\n]*$"):
        await require_usable_tasks(config, "{problem}", order, tmp_path / "model")


def test_a_run_keeps_the_template_that_it_began_with(tmp_path: Path):
    file, run = tmp_path / "mine.txt", tmp_path / "run"
    run.mkdir()
    file.write_text("Q: {problem}\nA:\n\n")
    assert keep_template(run, str(file)) == "Q: {problem}\nA:\n"
    file.unlink()
    assert keep_template(run, str(file)) == "Q: {problem}\nA:\n"
    (tmp_path / "other").mkdir()
    with pytest.raises(PromptError, match="no prompt template"):
        keep_template(tmp_path / "other", str(tmp_path / "elsewhere.txt"))
    assert keep_template(tmp_path / "other", "tiny") == load_template("tiny")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("rollout.max_prompt_tokens=2", "rollout.max_prompt_tokens is 2"),
        ("tasks.prompt.chat=true", "tasks.prompt.chat"),
    ],
)
def test_a_run_that_could_train_on_nothing_does_not_begin(tmp_path: Path, setting: str, reason: str):
    done = zerotir("up", "tiny", "--set", setting, "--set", f"launch.runs_dir={tmp_path}")
    assert done.returncode != 0
    assert reason in done.stdout + done.stderr
    [run] = tmp_path.glob("tiny-*")
    assert not (run / "model").exists()

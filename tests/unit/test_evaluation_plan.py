"""What is asked, in which order, and how it is said on the command line."""

import json
import re
import sys
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from configs.loading import load_config
from evaluation.plan import Plan, choose, make_plan, refuse_known
from launch.cli import command
from tasks.problems import ProblemError
from tests.processes import zerotir

ROWS = [{"id": f"q{n}", "problem": f"{n} + {n}?", "answer": str(2 * n)} for n in range(10)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "my set.v1.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def planned(*data: object, overrides: tuple[str, ...] = (), limits_of_calls=(), samples=None, limit=None) -> Plan:
    config = load_config("tiny", list(overrides))
    return make_plan(config, choose(config, [str(each) for each in data], limits_of_calls, samples, limit), "{problem}")


def test_a_file_is_asked_whole_under_the_configuration_s_limit(file: Path):
    plan = planned(file)
    assert [data.name for data in plan.data] == ["my-set-v1"]
    assert [problem.id for problem in plan.data[0].problems] == [row["id"] for row in ROWS]
    assert (plan.max_tool_calls, plan.samples) == ((2,), 4)
    assert len(plan.jobs()) == 10 * 4
    assert len({job.key for job in plan.jobs()}) == 10 * 4


def test_the_command_line_comes_before_the_configuration(file: Path):
    data = f"evaluation.data={{mine: {{file: {file}, limit: 6, rule: boxed}}}}"
    plan = planned("mine", overrides=(data, "evaluation.samples=3", "evaluation.max_tool_calls=[8]"))
    assert [len(plan.data[0].problems), plan.samples, *plan.max_tool_calls] == [6, 3, 8]
    assert plan.data[0].grading.rule == "boxed"
    plan = planned("mine", overrides=(data,), limits_of_calls=(4, 0, 4), samples=2, limit=1)
    assert [len(plan.data[0].problems), plan.samples, *plan.max_tool_calls] == [1, 2, 0, 4]


def test_an_evaluation_on_what_is_trained_on_is_refused_and_names_it(file: Path, tmp_path: Path):
    others = tmp_path / "others.jsonl"
    others.write_text(json.dumps({"id": "new", "problem": "7 + 5?", "answer": "12"}) + "\n")
    training = ("tasks.problems={file: " + str(file) + "}",)
    config = load_config("tiny", list(training))
    for data, shared in ((file, True), (others, False)):
        chosen = config.model_copy(update={"evaluation": choose(config, [str(data)], (), None, None)})
        plan = make_plan(chosen, chosen.evaluation, "{problem}")
        if shared:
            with pytest.raises(ProblemError, match=r"10 problems of the evaluation set 'my-set-v1' .*q0 is q0"):
                refuse_known(chosen, plan)
        else:
            refuse_known(chosen, plan)


@pytest.mark.parametrize("limit", [None, 3])
def test_the_training_problems_themselves_are_let_through_with_a_warning(file: Path, limit: int | None):
    """Where the user has named no data: that is what the configuration has."""
    config = load_config("tiny", ["tasks.problems={file: " + str(file) + "}"])
    chosen = config.model_copy(update={"evaluation": choose(config, [], (), None, limit)})
    with capture_logs() as logs:
        refuse_known(chosen, make_plan(chosen, chosen.evaluation, "{problem}"))
    assert [line["event"] for line in logs if line["log_level"] == "warning"] == [
        "my-set-v1 is what the run trains on: this measures what was learned by heart as well"
    ]


def test_training_problems_that_are_elsewhere_are_needed_in_a_run_alone(file: Path, tmp_path: Path):
    config = load_config("tiny", ["tasks.problems={file: " + str(tmp_path / "elsewhere.jsonl") + "}"])
    config = config.model_copy(update={"evaluation": choose(config, [str(file)], (), None, None)})
    plan = make_plan(config, config.evaluation, "{problem}")
    with pytest.raises(ProblemError, match="there is no such file"):
        refuse_known(config, plan)
    with capture_logs() as logs:
        refuse_known(config, plan, required=False)
    assert "was not compared with the training problems" in logs[0]["event"]


def test_a_mix_with_training_problems_is_refused(file: Path):
    training = "tasks.problems={file: " + str(file) + "}"
    config = load_config("tiny", [training, "evaluation.data={held: {mix: {m: {file: " + str(file) + "}}, size: 8}}"])
    config = config.model_copy(update={"evaluation": config.evaluation})
    with pytest.raises(ProblemError, match="problems of the evaluation set 'held' are training problems too"):
        refuse_known(config, make_plan(config, config.evaluation, "{problem}"))


def test_sampling_of_its_own_and_limits_of_calls_reach_the_rollouts(file: Path):
    plan = planned(file, overrides=("evaluation.temperature=0.6", "evaluation.top_p=0.95"), limits_of_calls=(0, 3))
    limits = {job.max_tool_calls: plan.limits(job) for job in plan.jobs()}
    assert {limit: each.max_tool_calls for limit, each in limits.items()} == {0: 0, 3: 3}
    assert {(each.temperature, each.top_p) for each in limits.values()} == {(0.6, 0.95)}


def test_any_part_of_the_jobs_stands_for_the_whole(file: Path, tmp_path: Path):
    short = tmp_path / "short.jsonl"
    short.write_text("".join(json.dumps(row) + "\n" for row in ROWS[:5]))
    jobs = planned(file, short, limits_of_calls=(0, 2), samples=2).jobs()
    assert len(jobs) == 15 * 2 * 2
    half = jobs[: len(jobs) // 2]
    for name, share in (("short", 1 / 3), ("my-set-v1", 2 / 3)):
        assert sum(job.data.name == name for job in half) / len(half) == pytest.approx(share, abs=0.1)
    assert sum(job.max_tool_calls == 0 for job in half) / len(half) == pytest.approx(0.5, abs=0.1)


def test_without_data_a_recipe_makes_problems_that_training_does_not_get():
    from tasks.problems import load_problems

    config = load_config("tiny", ["tasks.problems.recipe=two_digit_products"])
    plan = make_plan(config, choose(config, [], (), None, 20), "{problem}")
    trained = [problem.text for problem in load_problems(config.tasks.problems, config.seed)][:20]
    asked = [problem.text for problem in plan.data[0].problems]
    assert (plan.data[0].name, len(asked)) == ("two_digit_products", 20)
    assert asked != trained
    again = make_plan(config, choose(config, [], (), None, 20), "{problem}")
    assert again.data[0] == plan.data[0]


def test_settings_change_with_what_the_samples_depend_on_and_with_nothing_else(file: Path):
    base = planned(file).settings("w")
    assert planned(file, limits_of_calls=(0, 1), samples=9, limit=3).settings("w") == base
    assert planned(file).settings("v") != base
    assert planned(file, overrides=("evaluation.temperature=0.5",)).settings("w") != base
    file.write_text(file.read_text().replace("18", "19"))
    assert planned(file).settings("w") != base


def test_problems_that_cannot_be_told_apart_are_refused(tmp_path: Path):
    path = tmp_path / "twice.jsonl"
    path.write_text((json.dumps(ROWS[0]) + "\n") * 2)
    with pytest.raises(ProblemError, match="data set 'twice' has two problems of id 'q0'"):
        planned(path)


def test_two_files_of_one_name_are_refused(file: Path):
    with pytest.raises(ProblemError, match="two data sets have one name: my-set-v1, my-set-v1"):
        planned(file, file)


def test_the_measured_configuration_loads():
    config = load_config(str(Path(__file__).parents[2] / "benchmarks" / "evaluation.yaml"))
    assert set(config.evaluation.data) == {"gsm8k", "math500"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--samples", "0"], "argument --samples: '0' is not a positive number"),
        (["--limit", "-3"], "argument --limit: '-3' is not a positive number"),
        (
            ["--max-tool-calls", "0,two"],
            "argument --max-tool-calls: '0,two' is not a list of numbers such as 0,1,2,4,8",
        ),
        (["--checkpoint", "random-tiny", "--follow"], "zerotir: --follow is for a live run"),
        (["--set", "evaluation.data={a b: {file: x.jsonl}}"], "evaluation.data.a b"),
        (["--set", "evaluation.evry=3"], "unknown field evaluation.evry: did you mean every?"),
    ],
)
def test_wrong_arguments_end_with_one_line(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sys, "argv", ["zerotir", "eval", "tiny", *arguments])
    with pytest.raises(SystemExit) as ended:
        sys.exit(command())
    assert ended.value.code == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert message in output.err


def test_a_checkpoint_that_is_none_is_named(tmp_path: Path):
    result = zerotir("eval", "tiny", "--checkpoint", str(tmp_path), "--out", str(tmp_path / "out"))
    assert result.returncode == 2
    assert f"the folder {tmp_path} holds no config.json" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("text", "subset", "split"),
    [
        ("openai/gsm8k", None, None),
        ("openai/gsm8k:test", None, "test"),
        ("openai/gsm8k:main:test", "main", "test"),
        ("openai/gsm8k:main:test[:10]", "main", "test[:10]"),
    ],
)
def test_a_data_set_of_the_hub_on_the_command_line(text: str, subset: str | None, split: str | None):
    [(name, source)] = choose(load_config("tiny"), [text], (), None, None).data.items()
    assert name == re.sub(r"[:\[\]]+", "-", text.removeprefix("openai/"))
    assert (source.dataset, source.subset, source.split) == ("openai/gsm8k", subset, split)


def test_a_file_of_an_unknown_kind_is_no_data_set_of_the_hub(tmp_path: Path):
    file = tmp_path / "set.tsv"
    file.write_text("problem\tanswer\n")
    [source] = choose(load_config("tiny"), [str(file)], (), None, None).data.values()
    assert source.file == str(file)


def test_a_file_that_is_not_there_is_missed_at_once():
    with pytest.raises(ProblemError, match=r"absent\.jsonl: there is no such file"):
        choose(load_config("tiny"), ["absent.jsonl"], (), None, None)


@pytest.mark.parametrize("text", ["a:b:c:d", "a::test", ":test", "a:"])
def test_what_is_no_data_set(text: str):
    with pytest.raises(ProblemError, match="write NAME, NAME:SPLIT or NAME:SUBSET:SPLIT"):
        choose(load_config("tiny"), [text], (), None, None)

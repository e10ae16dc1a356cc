"""The source of a reward function: what cannot be loaded, and what digest tells one from another."""

import os
import py_compile
from pathlib import Path

import pytest

from configs.loading import load_config
from configs.tasks import GradingConfig
from grading.errors import GradingError, RewardFunctionError
from grading.reward_source import keep_source, source_digest, with_digest
from tests.unit.test_reward_function import config_of, grading


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("def reward(problem, answer, turns, calls) return 1", r"cannot be loaded: .*SyntaxError"),
        ("print('printed')\nimport nowhere\n", "No module named 'nowhere'.*line 2.*nothing that lies beside its file"),
        ("import beside\n", "No module named 'beside'"),
        ("1 / 0\n", r"ZeroDivisionError: division by zero \(rewards\.py, line 1\)"),
        ("raise SystemExit('not today')\n", "SystemExit: not today"),
        ("def rewards(problem, answer, turns, calls): return 1\n", "no function 'reward': did you mean rewards"),
        ("reward = 1\n", "no function 'reward'"),
        (
            "def reward(problem, answer): return 1\n",
            "arguments problem, answer, turns, calls, by name: got an unexpected",
        ),
        ("def reward(problem, answer, turns, calls, more): return 1\n", "missing a required argument: 'more'"),
        ("def reward(data_source, solution_str, ground_truth, extra_info=None): return 1\n", "'data_source'"),
        ("def reward(prompts, completions, answer, **others): return 1\n", "'prompts'"),
        ("import operator\nreward = operator.add\n", "takes no keyword arguments|by name"),
        ("import os\nos._exit(3)\n", "process that loads the reward function .* ended with exit code 3"),
        ("import numpy\nnumpy.empty(1 << 32)\n", "2 GiB of address space"),
        ("async def reward(problem, answer, turns, calls): return 1\n", "is asynchronous"),
    ],
)
async def test_one_that_cannot_be_loaded_is_the_users_to_fix(
    tmp_path: Path, source: str, reason: str, capfd: pytest.CaptureFixture[str]
):
    (tmp_path / "beside.py").write_text("")
    config = config_of(tmp_path, source)
    with pytest.raises(RewardFunctionError, match=reason):
        async with grading(config):
            pass
    assert ("printed" in capfd.readouterr().err) == ("print" in source)


async def test_another_source_than_the_runs_is_refused(tmp_path: Path):
    config = config_of(tmp_path, "def reward(**given): return 1\n")
    settings = [f"tasks.grading.reward_function={config.reward_function}"]
    run = with_digest(load_config("tiny", settings))
    assert run.tasks.grading.reward_function_digest == config.reward_function_digest
    assert with_digest(run) == run
    assert with_digest(load_config("tiny")) == load_config("tiny")
    keep_source(tmp_path, run)
    async with grading(config) as grader:
        assert (await grader.grade(["x"], "42", config)).reward == 1
        config_of(tmp_path, "def reward(**given): return 2\n")
        with pytest.raises(
            RewardFunctionError, match=r"source of the reward function .* is another one .* put that one back"
        ):
            with_digest(run)
        # The processes that have loaded it go on with it, and load no other.
        assert (await grader.grade(["x"], "42", config)).reward == 1
        with pytest.raises(GradingError, match="not by"):
            await grader.grade(["x"], "42", config.model_copy(update={"reward_function_digest": "0" * 16}))
        with pytest.raises(GradingError, match="by its digest only"):
            await grader.grade(["x"], "42", config.model_copy(update={"reward_function_digest": None}))
        assert grader._workshop._process is not None
        grader._workshop._process.kill()
        await grader._workshop._process.wait()
        with pytest.raises(RewardFunctionError, match="another one"):
            await grader.grade(["x"], "42", config)
    with pytest.raises(RewardFunctionError, match="another one"):
        async with grading(config):
            pass
    # What the run began with is kept.
    with pytest.raises(RewardFunctionError, match="another one"):
        keep_source(tmp_path, run)
    (tmp_path / "rewards.py").write_bytes((tmp_path / "reward_function.py").read_bytes())
    assert with_digest(run) == run


async def test_of_an_installed_module_the_package_is_the_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    package = tmp_path / "my_rewards"
    (package / "deep").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "deep" / "__init__.py").write_text(
        "from my_rewards.weights import RIGHT\ndef score(**given): return RIGHT\n"
    )
    (package / "weights.py").write_text("RIGHT = 0.5\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    name = "my_rewards.deep:score"
    config = GradingConfig(reward_function=name, reward_function_digest=source_digest(name), timeout_s=20.0)
    async with grading(config) as grader:
        assert (await grader.grade(["x"], "42", config)).reward == 0.5
    keep_source(tmp_path, load_config("tiny", [f"tasks.grading.reward_function={name}"]))
    assert not (tmp_path / "reward_function.py").exists()
    # Byte code of another source with the same size and time: it is not what is loaded.
    times = (package / "weights.py").stat()
    py_compile.compile(str(package / "weights.py"))
    (package / "weights.py").write_text("RIGHT = 0.7\n")
    os.utime(package / "weights.py", ns=(times.st_atime_ns, times.st_mtime_ns))
    newer = config.model_copy(update={"reward_function_digest": source_digest(name)})
    assert newer != config
    async with grading(newer) as grader:
        assert (await grader.grade(["x"], "42", newer)).reward == 0.7
    # Files that are no Python, and folders behind links, are source too; hidden files and byte code are not.
    (tmp_path / "else").mkdir()
    (package / "linked").symlink_to(tmp_path / "else")
    (package / "loop").symlink_to(package)
    (package / ".#weights.py").symlink_to("nowhere")
    before = source_digest(name)
    for changed in (package / "words.json", tmp_path / "else" / "more.py"):
        changed.write_text("[1]")
        assert source_digest(name) != before
        before = source_digest(name)
    with pytest.raises(RewardFunctionError, match="another one"):
        async with grading(config):
            pass
    for missing in ("no_such_rewards:score", "sys:exit"):
        with pytest.raises(RewardFunctionError, match=r"no module .* whose source can be read"):
            source_digest(missing)
    with pytest.raises(RewardFunctionError, match=r"cannot read .*none\.py: No such file"):
        source_digest(f"{tmp_path / 'none.py'}:score")

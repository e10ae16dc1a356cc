"""The user's own reward function: what it is given, what it may return, and that whatever goes wrong in it is no reward."""

import asyncio
import math
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from configs.loading import ConfigError, load_config
from configs.tasks import GradingConfig
from grading.errors import GradingError, RewardFunctionError
from grading.grader import Grader
from grading.reward_function import MAX_PARTS, Call, checked
from grading.reward_source import keep_source, source_digest, with_digest

DOCUMENT = Path(__file__).parents[2] / "docs" / "rollouts.md"
CALLS = [
    Call("print(6 * 7)", "42\n", "exited", success=True, error="", seconds=0.5),
    Call(
        "1 / 0",
        "ZeroDivisionError: division by zero\n",
        "exited",
        success=False,
        error="ZeroDivisionError",
        seconds=0.1,
    ),
]
GIVEN = {"answered": 0.0, "ungradable": 0.0, "unevaluated": 0.0}


def config_of(folder: Path, source: str, **others) -> GradingConfig:
    """Returns a configuration whose reward function is `reward` of a file with that source."""
    (folder / "rewards.py").write_text(source)
    name = f"{folder / 'rewards.py'}:reward"
    return GradingConfig(
        reward_function=name, reward_function_digest=source_digest(name), **{"timeout_s": 20.0, **others}
    )


@asynccontextmanager
async def grading(config: GradingConfig) -> AsyncIterator[Grader]:
    async with asyncio.timeout(120), Grader(workers=1, grading=config) as grader:
        yield grader


async def test_it_is_given_the_problem_the_gold_answer_the_models_text_and_its_calls(tmp_path: Path):
    source = """
def reward(problem, answer, turns, calls):
    assert (problem, answer, turns) == ("6 * 7 = ?", "42", ["I run it.", "So \\\\boxed{42}"])
    first, second = calls
    assert (first.code, first.output, first.outcome) == ("print(6 * 7)", "42\\n", "exited")
    assert (first.success, first.error) == (True, "")
    assert (second.success, second.error, second.seconds) == (False, "ZeroDivisionError", 0.1)
    return 0.25
"""
    config = config_of(tmp_path, source)
    async with grading(config) as grader:
        grade = await grader.grade(["I run it.", r"So \boxed{42}"], "42", config, CALLS, "6 * 7 = ?")
    assert grade.reward == 0.25
    assert grade.parts == {**GIVEN, "answered": 1.0, "correct": 1.0}
    # What the response is looked at for beside its reward stays.
    assert (grade.answer, grade.void_turns, grade.code_unused) == ("42", 1, False)


async def test_the_documents_example_does_what_they_say(tmp_path: Path):
    [source] = re.findall(r"^```python\n(.*?)^```", DOCUMENT.read_text(), re.DOTALL | re.MULTILINE)
    config = config_of(tmp_path, source)
    async with grading(config) as grader:
        right = await grader.grade([r"\boxed{\frac{1}{2}}"], r"\frac12", config, CALLS)
        wrong = await grader.grade([r"\boxed{2}"], r"\frac12", config)
        silent = await grader.grade(["I don't know."], r"\frac12", config)
    assert (right.reward, wrong.reward, silent.reward) == (pytest.approx(0.9), 0.0, 0.0)
    assert right.parts == {**GIVEN, "answered": 1.0, "correct": 1.0, "failed_programs": 1.0}


@pytest.mark.parametrize(
    ("value", "reward", "parts"),
    [
        (1, 1.0, {"correct": 1.0}),
        (True, 1.0, {"correct": 1.0}),
        (-0.5, -0.5, {"correct": 0.0}),
        (np.float32(0.5), 0.5, {"correct": 1.0}),
        (np.bool_(False), 0.0, {"correct": 0.0}),
        ({"reward": 0.3, "correct": 0}, 0.3, {"correct": 0.0}),
        ({"reward": -1, "style": np.int64(2)}, -1.0, {"correct": 0.0, "style": 2.0}),
        ({"reward": 1, "answered": 1}, 1.0, {"correct": 1.0, "answered": 1.0}),
    ],
)
def test_a_number_or_named_parts_are_a_reward(value, reward, parts):
    found = checked(value)
    assert (found.reward, found.parts) == (reward, parts)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "returned None as `reward`: no number"),
        ("1", "returned '1' as `reward`: no number"),
        (math.nan, "returned nan"),
        ({"reward": 1, "x": math.inf}, "returned inf as `x`"),
        (10**400, "no number from -1e.06 to 1e.06"),
        (2e6, "returned 2000000.0"),
        ([1.0], "no number"),
        ((1, 2), "no number"),
        (1 + 2j, "no number"),
        ({}, "parts without `reward`"),
        ({"score": 1}, r"parts without `reward`: \['score'\]"),
        ({"reward": 1, "correct": 0.5}, "0.5 as `correct`, which is 0 or 1"),
        ({"reward": 1, "Bad Name": 1}, "part of the name 'Bad Name'"),
        ({"reward": 1, "a" * 41: 1}, "part of the name"),
        ({"reward": 1, 3: 1}, "part of the name 3"),
        ({"reward": 1, "overlong_penalty": 1}, "and not overlong_penalty"),
        ({"reward": 1} | {f"part_{n}": n for n in range(MAX_PARTS)}, f"{MAX_PARTS + 1} parts, {MAX_PARTS} is the most"),
    ],
)
def test_anything_else_is_an_error(value, reason):
    with pytest.raises(RewardFunctionError, match=reason):
        checked(value)


async def test_whatever_goes_wrong_in_it_is_an_error_and_never_a_reward(tmp_path: Path):
    source = """
import ctypes, os, sys
def helper(turns):
    return {}[turns[0]]
def reward(problem, answer, turns, calls):
    match turns[0]:
        case "raise": return helper(turns)
        case "exit": sys.exit(0)
        case "end": os._exit(0)
        case "loop":
            while True: pass
        case "memory": return len(bytearray(4 << 30))
        case "deep": return reward(problem, answer, turns, calls)
        case "crash": ctypes.string_at(0)
        case "print": print("this must not reach the one who asks"); return 1
        case "close": os.closerange(3, 64); return 1
        case "none": return None
        case _: return 1
"""
    reasons = {
        "raise": r"raised KeyError: 'raise' \(rewards\.py, line 4\)",
        "exit": r"raised SystemExit: 0 \(rewards\.py, line 8\)",
        "end": "gave no reward: the grading process died",
        "loop": r"gave no reward: no verdict within 0\.5 s of processor time",
        "memory": "raised MemoryError",
        "deep": "raised RecursionError",
        "crash": "gave no reward: the grading process died",
        "none": "returned None",
    }
    config = config_of(tmp_path, source, timeout_s=0.5)
    async with grading(config) as grader:
        for word, reason in reasons.items():
            with pytest.raises(RewardFunctionError, match=reason):
                await grader.grade([word], "42", config)
            assert (await grader.grade(["fine"], "42", config)).reward == 1
        assert (await grader.grade(["print"], "42", config)).reward == 1
        with pytest.raises(GradingError):
            await grader.grade(["close"], "42", config)
        assert (await grader.grade(["fine"], "42", config)).reward == 1


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("def reward(problem, answer, turns, calls) return 1", r"cannot be loaded: .*SyntaxError"),
        ("import nowhere\n", "No module named 'nowhere'.*line 1.*nothing that lies beside its file"),
        ("import beside\n", "No module named 'beside'"),
        ("1 / 0\n", r"ZeroDivisionError: division by zero \(rewards\.py, line 1\)"),
        ("raise SystemExit('not today')\n", "SystemExit: not today"),
        ("def rewards(problem, answer, turns, calls): return 1\n", "no function 'reward': did you mean rewards"),
        ("reward = 1\n", "no function 'reward'"),
        ("def reward(problem, answer): return 1\n", r"called with \(problem, answer, turns, calls\): too many"),
        ("def reward(problem, answer, turns, calls, more): return 1\n", "missing a required argument: 'more'"),
        ("async def reward(problem, answer, turns, calls): return 1\n", "is asynchronous"),
    ],
)
async def test_one_that_cannot_be_loaded_is_the_users_to_fix(tmp_path: Path, source: str, reason: str):
    (tmp_path / "beside.py").write_text("")
    config = config_of(tmp_path, source)
    with pytest.raises(RewardFunctionError, match=reason):
        async with grading(config):
            pass


async def test_what_usual_files_hold_is_loaded(tmp_path: Path):
    source = '''
"""Rewards."""
from __future__ import annotations
import dataclasses, sys
@dataclasses.dataclass
class Weights:
    right: float = 0.5
class Judge:
    def __call__(self, problem, answer, turns, calls=(), *, scale=2):
        assert __file__.endswith("rewards.py") and sys.modules[__name__].reward is self
        return Weights().right * scale
reward = Judge()
'''
    config = config_of(tmp_path, source)
    async with grading(config) as grader:
        assert (await grader.grade(["x"], "42", config)).reward == 1


async def test_another_source_than_the_runs_is_refused(tmp_path: Path):
    config = config_of(tmp_path, "def reward(*given): return 1\n")
    settings = [f"tasks.grading.reward_function={config.reward_function}"]
    run = with_digest(load_config("tiny", settings))
    assert run.tasks.grading.reward_function_digest == config.reward_function_digest
    assert with_digest(run) == run
    assert with_digest(load_config("tiny")) == load_config("tiny")
    keep_source(tmp_path, config.reward_function)
    async with grading(config) as grader:
        assert (await grader.grade(["x"], "42", config)).reward == 1
        config_of(tmp_path, "def reward(*given): return 2\n")
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
    with pytest.raises(RewardFunctionError, match="another one"):
        async with grading(config):
            pass
    # What the run began with is kept.
    keep_source(tmp_path, config.reward_function)
    (tmp_path / "rewards.py").write_bytes((tmp_path / "reward_function.py").read_bytes())
    assert with_digest(run) == run


async def test_of_an_installed_module_the_package_is_the_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    package = tmp_path / "my_rewards"
    (package / "deep").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "deep" / "__init__.py").write_text(
        "from my_rewards.weights import RIGHT\ndef score(*given): return RIGHT\n"
    )
    (package / "weights.py").write_text("RIGHT = 0.5\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    name = "my_rewards.deep:score"
    config = GradingConfig(reward_function=name, reward_function_digest=source_digest(name), timeout_s=20.0)
    async with grading(config) as grader:
        assert (await grader.grade(["x"], "42", config)).reward == 0.5
    keep_source(tmp_path, name)
    assert not (tmp_path / "reward_function.py").exists()
    (package / "weights.py").write_text("RIGHT = 0.7\n")
    assert source_digest(name) != config.reward_function_digest
    with pytest.raises(RewardFunctionError, match="another one"):
        async with grading(config):
            pass
    for missing in ("no_such_rewards:score", "sys:exit"):
        with pytest.raises(RewardFunctionError, match="no Python module"):
            source_digest(missing)
    with pytest.raises(RewardFunctionError, match=r"cannot read .*none\.py: No such file"):
        source_digest(f"{tmp_path / 'none.py'}:score")


async def test_a_rule_grades_beside_it_and_the_length_is_penalised(tmp_path: Path):
    config = config_of(tmp_path, "def reward(*given): return 3\n", overlong_penalty=0.5, overlong_tokens=10)
    async with grading(config) as grader:
        grade = await grader.grade(["x"], "42", config)
        by_rule = await grader.grade(["x"], "42", GradingConfig())
    late = grade.with_length(100, 100, truncated=True, config=config)
    assert (late.reward, late.parts["overlong_penalty"]) == (2.5, -0.5)
    assert by_rule.reward == 0


async def test_a_gold_answer_needs_a_reward_and_not_a_right_one(tmp_path: Path):
    source = "def reward(problem, answer, turns, calls): return -1 if problem == 'P' else 1 / 0\n"
    config = config_of(tmp_path, source, rule="last_number")
    async with grading(config) as grader:
        await grader.require_gradable("no number", config, "P")
        with pytest.raises(RewardFunctionError, match="ZeroDivisionError"):
            await grader.require_gradable("no number", config, "Q")


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("reward_function: rewards", r"reward_function: 'rewards' is no function: name it as path/to/file\.py:name"),
        ("reward_function: rewards.py", "is no function"),
        ("reward_function: 'my/rewards:reward'", "is no function"),
        ("reward_function: 'rewards.py:a b'", "is no function"),
        ("reward_function_digest: '0123456789abcdef'", "belongs to a reward_function"),
        ("reward_function: 'r.py:f', format_penalty: 0.5", "have no effect with a reward_function"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(setting: str, reason: str):
    with pytest.raises(ConfigError, match=reason):
        load_config("tiny", [f"tasks.grading={{{setting}}}"])

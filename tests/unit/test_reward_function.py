"""The user's own reward function: what it is given, what it may return, and that whatever goes wrong in it is no reward."""

import asyncio
import math
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from configs.loading import ConfigError, load_config
from configs.tasks import GradingConfig
from grading import processes
from grading.errors import GradingError, NoRewardError
from grading.grader import Grader
from grading.reward_function import MAX_PARTS, Call, checked
from grading.reward_source import source_digest

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


SOURCE = """
'''Rewards: each problem is the name of a function here.'''
from __future__ import annotations

import ctypes, dataclasses, json, os, pathlib, signal, subprocess, sys, time

BEFORE = subprocess.run(["false"]).returncode
seen = []

@dataclasses.dataclass
class Weights:
    right: float = 0.5

class Judge:
    def __call__(self, problem, answer, turns, calls=(), *, scale=2):
        assert __file__.endswith("rewards.py") and sys.modules[__name__].reward is self
        seen.append(problem)
        return globals()[problem](answer, turns, calls) * scale / 2 if problem != "parts" else parts(answer, turns, calls)

reward = Judge()

def given(answer, turns, calls):
    assert (answer, turns) == ("42", ["I run it.", "So \\\\boxed{42}"])
    first, second = calls
    assert (first.code, first.output, first.outcome) == ("print(6 * 7)", "42\\n", "exited")
    assert (first.success, first.error) == (True, "")
    assert (second.success, second.error, second.seconds) == (False, "ZeroDivisionError", 0.1)
    return Weights().right / 2

def parts(answer, turns, calls):
    own = {f"part_{n}": n for n in range(29)}
    own |= {"right": subprocess.run(["true"]).returncode, "wrong": subprocess.run(["false"]).returncode}
    return {"reward": 1, "before": BEFORE, **own}

def helper(turns):
    return {}[turns[0]]

def wrong(answer, turns, calls):
    match turns[0]:
        case "raise": return helper(turns)
        case "exit": sys.exit(0)
        case "end": os._exit(0)
        case "loop":
            while True: pass
        case "memory": return len(bytearray(4 << 30))
        case "deep": return wrong(answer, turns, calls)
        case "crash": ctypes.string_at(0)
        case "close": os.closerange(3, 64); return 1
        case "mute": sys.stderr.close(); return helper(turns)
        case "surrogate": raise ValueError("\\ud800" + "x" * 10_000_000)
        case _: return 1

def late(*given):
    raise TimeoutError

def left(answer, turns, calls):
    match turns[0]:
        case "alarm":
            signal.signal(signal.SIGALRM, late)
            signal.setitimer(signal.ITIMER_REAL, 0.05)
        case "fork":
            if os.fork() == 0:
                return 99
        case "leave":
            child = subprocess.Popen(["sleep", "600"])
            pathlib.Path(__file__).with_name("child").write_text(str(child.pid))
        case "slow":
            time.sleep(0.3)
    return len(seen)

def forged(answer, turns, calls):
    dumps = json.dumps
    json.dumps = lambda value: turns[0] if "reward" in value else dumps(value)
    return 1
"""


def line(text: str) -> int:
    """Returns the number of the line of `SOURCE` that holds a text."""
    return next(number for number, each in enumerate(SOURCE.splitlines(), 1) if text in each)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> GradingConfig:
    return config_of(tmp_path_factory.mktemp("shared"), SOURCE, timeout_s=0.5, overlong_penalty=0.5, overlong_tokens=10)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def grader(config: GradingConfig) -> AsyncIterator[Grader]:
    async with Grader(workers=1, grading=config) as grader:
        yield grader


async def test_it_is_given_the_problem_the_gold_answer_the_models_text_and_its_calls(config, grader):
    grade = await grader.grade(["I run it.", r"So \boxed{42}"], "42", config, CALLS, "given")
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
        (np.array(0.5), 0.5, {"correct": 1.0}),
        (Decimal("0.5"), 0.5, {"correct": 1.0}),
        (Fraction(1, 2), 0.5, {"correct": 1.0}),
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
        (None, "returned None as `reward`, which is no number"),
        ("1", "returned '1' as `reward`"),
        (bytearray(b"1"), "no number"),
        (np.array("0.5"), "no number"),
        ({"reward": 1, "answered": 7}, "7 as `answered`, which is 0 or 1"),
        (math.nan, "returned nan"),
        ({"reward": 1, "x": math.inf}, "returned inf as `x`"),
        (10**400, "no number from -1e.06 to 1e.06"),
        pytest.param(10**5000, "returned a int as `reward`", id="very long"),
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
        (
            {"reward": 1} | {f"part_{n}": n for n in range(MAX_PARTS + 1)},
            f"{MAX_PARTS + 1} parts of its own, {MAX_PARTS} is the most",
        ),
    ],
)
def test_anything_else_is_an_error(value, reason):
    with pytest.raises(NoRewardError, match=reason):
        checked(value)


async def test_whatever_goes_wrong_in_it_is_an_error_and_never_a_reward(config, grader):
    reasons = {
        "raise": rf"raised KeyError: 'raise' \(rewards\.py, line {line('turns[0]]')}\)",
        "exit": rf"raised SystemExit: 0 \(rewards\.py, line {line('sys.exit')}\)",
        "end": "gave no reward: the grading process died",
        "loop": r"gave no reward: no verdict within 0\.5 s of processor time",
        "memory": "raised MemoryError",
        "deep": "raised RecursionError",
        "crash": "gave no reward: the grading process died",
        "close": "gave no reward",
        "mute": "raised KeyError: 'mute'",
        "surrogate": rf"raised ValueError: \?x+ \(rewards\.py, line {line('raise ValueError')}\)$",
    }
    for word, reason in reasons.items():
        with pytest.raises(NoRewardError, match=reason):
            await grader.grade([word], "42", config, problem="wrong")
        assert (await grader.grade(["fine"], "42", config, problem="wrong")).reward == 1


def test_one_that_waits_has_failed_and_the_machine_is_not_blamed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(processes, "STARVED", 0.0)
    for state, function, expected, reason in (
        ("S", True, NoRewardError, "waited 0 s for something"),
        ("R", True, GradingError, "more to do than it can"),
        ("S", False, GradingError, "more to do than it can"),
    ):
        monkeypatch.setattr(processes, "_state", lambda _, state=state: (state, 0.0))
        with pytest.raises(expected, match=reason):
            processes._Limit(1, 20.0, function=function).require_within()


async def test_nothing_of_one_response_is_left_for_the_next(config, grader):
    """Timers, memory, children and their answers: each response has a process, which ends with what it started."""
    for word in ("alarm", "slow", "fork", "slow", "leave", "slow"):
        assert (await grader.grade([word], "42", config, problem="left")).reward == 1, word
    child = int(Path(config.reward_function).with_name("child").read_text())
    async with asyncio.timeout(60):
        while Path(f"/proc/{child}").exists() and "Z (zombie)" not in Path(f"/proc/{child}/status").read_text():
            await asyncio.sleep(0.01)


async def test_it_may_run_programs(config, grader):
    parts = (await grader.grade(["x"], "42", config, problem="parts")).parts
    assert (parts["right"], parts["wrong"], parts["before"], parts["part_28"]) == (0, 1, 1, 28)


@pytest.mark.parametrize(
    "reply",
    ["{}", "[]", "no JSON", '{"reward": 1}', '{"reward": NaN, "parts": {}}', '{"reward": 1, "parts": [1]}'],
)
async def test_what_its_process_answers_is_checked_again(config, grader, reply):
    with pytest.raises(NoRewardError):
        await grader.grade([reply], "42", config, problem="forged")


async def test_a_rule_grades_beside_it_and_the_length_is_penalised(config, grader):
    grade = await grader.grade(["fine"], "42", config, problem="wrong")
    late = grade.with_length(100, 100, truncated=True, config=config)
    assert (late.reward, late.parts["overlong_penalty"]) == (0.5, -0.5)
    assert (await grader.grade(["fine"], "42", GradingConfig())).reward == 0
    # Of a gold answer only a rule says whether it is right.
    await grader.require_gradable("no number", config.model_copy(update={"rule": "last_number"}))


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

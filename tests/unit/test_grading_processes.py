"""The processes that run math-verify: answers that choke them, limits, deaths, and what no reward may come of."""

import asyncio
import json
import os
from pathlib import Path

import pytest
import pytest_asyncio

from configs.tasks import GradingConfig
from grading.grader import Grader, GradingError, UngradableError
from grading.verifier import NoVerdict, Verifier

BOXED = GradingConfig(timeout_s=20.0)
NUMBER = GradingConfig(rule="last_number")
WRONG = {"correct": 0.0, "answered": 1.0, "ungradable": 0.0}
RIGHT = {"correct": 1.0, "answered": 1.0, "ungradable": 0.0}
CHOKED = {"correct": 0.0, "answered": 1.0, "ungradable": 1.0}
HASTY = GradingConfig(timeout_s=1.0)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def grader():
    async with Grader() as grader:
        yield grader


def child_pids(grader: Grader) -> list[int]:
    return [verifier._process.pid for verifier in grader._verifiers if verifier._process]


def proc_file(pid: int, name: str) -> str:
    return Path(f"/proc/{pid}/{name}").read_text()


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_last_number_starts_no_process_and_needs_a_number():
    async with Grader() as grader:
        assert (await grader.grade(["5"], "5", NUMBER)).reward == 1
        with pytest.raises(GradingError, match="not a number"):
            await grader.grade(["5"], "x + 1", NUMBER)
        assert child_pids(grader) == []


@pytest.mark.parametrize(
    "answer",
    [
        "9^{9^{9^{9}}}",
        "10000000!!",
        "123456789!-1",
        "2^{10000000}",
        "1+" * 600 + "1",
        # These pass the bounds and are stopped in the process.
        r"9^{9^9} + \sqrt{2}",
        r"(9999!)^{9999} \cdot 7^{88888}",
    ],
)
async def test_choking_answers_earn_nothing_and_hurt_nobody(grader, answer):
    assert (await grader.grade([f"\\boxed{{{answer}}}"], "42", HASTY)).parts == CHOKED
    assert (await grader.grade([r"\boxed{42}"], "42", BOXED)).parts == RIGHT


async def test_a_gold_answer_that_chokes_is_an_error(grader):
    with pytest.raises(GradingError, match="against itself fails as well"):
        await grader.grade([r"\boxed{42}"], r"\binom{10000000}{5000000}", HASTY)
    assert (await grader.grade([r"\boxed{42}"], "42", BOXED)).parts == RIGHT


async def test_gold_answers_are_tried_before_anything_is_graded_by_them(grader):
    for gold, config in (("42", BOXED), (r"\frac{1}{2}", BOXED), ("42", NUMBER)):
        await grader.require_gradable(gold, config)
    for gold, config in (("forty-two", NUMBER), ("", BOXED)):
        with pytest.raises(UngradableError, match="gold answer"):
            await grader.require_gradable(gold, config)


async def test_memory_is_limited():
    """The child's own limit, read from the kernel."""
    async with Grader() as grader:
        await grader.grade([r"\boxed{42}"], "42", BOXED)
        limits = proc_file(child_pids(grader)[0], "limits").splitlines()
    assert next(line for line in limits if line.startswith("Max address space")).split()[3] == str(2 << 30)


async def test_a_child_killed_from_outside_costs_no_reward():
    async with Grader() as grader:
        await grader.grade([r"\boxed{42}"], "42", BOXED)
        (pid,) = child_pids(grader)
        os.kill(pid, 9)
        assert (await grader.grade([r"\boxed{42}"], "42", BOXED)).parts == RIGHT
        assert child_pids(grader) != [pid]


async def test_a_cancelled_grade_leaves_no_late_reply():
    async with Grader() as grader:
        await grader.grade([r"\boxed{42}"], "42", BOXED)
        (pid,) = child_pids(grader)
        task = asyncio.create_task(grader.grade([r"\boxed{9^{9^9}}"], "42", BOXED))
        async with asyncio.timeout(60):
            while not grader._idle.empty():  # until its child has the comparison
                await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not is_running(pid)
        assert (await grader.grade([r"\boxed{41}"], "42", BOXED)).parts == WRONG
        assert (await grader.grade([r"\boxed{42}"], "42", BOXED)).parts == RIGHT


async def test_concurrent_grades_get_their_own_verdicts_and_no_process_stays():
    async with Grader(workers=2) as grader:
        grades = await asyncio.gather(*(grader.grade([f"\\boxed{{{i % 3}}}"], "1", BOXED) for i in range(30)))
        pids = child_pids(grader)
        assert len(pids) == 2
        assert all(map(is_running, pids))
    assert [grade.reward for grade in grades] == [float(i % 3 == 1) for i in range(30)]
    assert not any(map(is_running, pids))
    with pytest.raises(GradingError, match="closed"):
        await grader.grade([r"\boxed{1}"], "1", BOXED)


async def test_the_child_ends_with_its_input_and_does_not_import_big_libraries():
    verifier = Verifier()
    assert (await verifier.compare("x+1", "1+x", 20.0)).equal
    process = verifier._process
    assert process is not None
    assert process.stdin is not None
    assert "libtorch" not in proc_file(process.pid, "maps")
    process.stdin.close()
    async with asyncio.timeout(60):
        assert await process.wait() == 0


async def test_the_child_ends_itself_when_its_parent_is_gone():
    """Nobody limits this comparison but the child's watchdog: no parent's time-out, and the input stays open."""
    verifier = Verifier()
    await verifier.compare("1", "1", 20.0)
    process = verifier._process
    assert process is not None
    assert process.stdin is not None
    request = {"gold": "1", "answer": r"9^{9^9} + \sqrt{2}", "timeout_s": 0.1}
    process.stdin.write(json.dumps(request).encode() + b"\n")
    try:
        async with asyncio.timeout(60):
            assert await process.wait() != 0
    finally:
        await verifier.close()


async def test_no_verdict_says_why():
    verifier = Verifier()
    with pytest.raises(NoVerdict, match=r"within 0\.5 s"):
        await verifier.compare("1", r"9^{9^9} + \sqrt{2}", 0.5)
    await verifier.close()

"""The processes that grade: answers that choke them, limits, deaths, and what no reward may come of."""

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from configs.tasks import GradingConfig
from grading import processes
from grading.comparison import Verdict
from grading.grader import Grader, GradingError, UngradableError
from grading.processes import NoVerdict, OutOfTime, Workshop

BOXED = GradingConfig(timeout_s=20.0)
NUMBER = GradingConfig(rule="last_number")
WRONG = {"correct": 0.0, "answered": 1.0, "ungradable": 0.0, "unevaluated": 0.0}
RIGHT = {"correct": 1.0, "answered": 1.0, "ungradable": 0.0, "unevaluated": 0.0}
CHOKED = {"correct": 0.0, "answered": 1.0, "ungradable": 1.0, "unevaluated": 0.0}
HASTY = GradingConfig(timeout_s=1.0)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def grader():
    async with Grader() as grader:
        yield grader


SLOW = r"\sum_{k=1}^{99999} \frac{1}{k}"
"""It takes math-verify many seconds. Where the gold answer is a sum too, nothing shows that before."""
SUM = r"\sum_{k=1}^{3} k"


def request(answer: str, gold: str = "42", config: GradingConfig = BOXED) -> dict[str, Any]:
    return {
        "turns": [f"\\boxed{{{answer}}}"],
        "calls": [],
        "problem": "",
        "gold": gold,
        "config": config.model_dump(mode="json"),
        "patient": False,
    }


def child_pids(grader: Grader) -> list[int]:
    return [worker._pid for worker in grader._idle]


def proc_file(pid: int, name: str) -> str:
    return Path(f"/proc/{pid}/{name}").read_text()


def is_running(pid: int) -> bool:
    """One that has ended and waits to be reaped, by whatever its parents left it to, does not run."""
    try:
        return "State:\tZ" not in proc_file(pid, "status")
    except (FileNotFoundError, ProcessLookupError):
        return False


async def test_last_number_needs_a_number(grader):
    assert (await grader.grade(["5"], "5", NUMBER)).reward == 1
    with pytest.raises(UngradableError, match="not a number"):
        await grader.grade(["5"], "x + 1", NUMBER)


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("9^{9^{9^{9}}}", "42"),
        ("10000000!!", "42"),
        ("123456789!-1", "42"),
        ("2^{10000000}", "42"),
        ("1+" * 600 + "1", "42"),
        (r"9^{9^9} + \sqrt{2}", "42"),
        (r"(9999!)^{9999} \cdot 7^{88888}", "42"),
        # Nothing shows that this one chokes: it is stopped in the process.
        (SLOW, SUM),
    ],
)
async def test_choking_answers_earn_nothing_and_hurt_nobody(grader, answer, gold):
    assert (await grader.grade([f"\\boxed{{{answer}}}"], gold, HASTY)).parts == CHOKED
    assert (await grader.grade([r"\boxed{42}"], "42", BOXED)).parts == RIGHT


async def test_what_is_left_to_compute_is_not_computed(grader):
    parts = {**WRONG, "unevaluated": 1.0}
    assert (await grader.grade([f"\\boxed{{{SLOW}}}"], "42", HASTY)).parts == parts


async def test_a_gold_answer_that_chokes_is_an_error(grader):
    with pytest.raises(UngradableError, match="not graded equal to itself"):
        await grader.grade([r"\boxed{42}"], r"\binom{10000000}{5000000}", HASTY)
    assert (await grader.grade([r"\boxed{42}"], "42", BOXED)).parts == RIGHT


async def test_gold_answers_are_tried_before_anything_is_graded_by_them(grader):
    for gold, config in (("42", BOXED), (r"\frac{1}{2}", BOXED), ("42", NUMBER)):
        await grader.require_gradable(gold, config)
    for gold, config in (("forty-two", NUMBER), ("", BOXED)):
        with pytest.raises(UngradableError, match="gold answer"):
            await grader.require_gradable(gold, config)


async def gone(pid: int) -> None:
    async with asyncio.timeout(60):
        while is_running(pid):
            await asyncio.sleep(0.01)


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
    async with Grader(workers=1) as grader:
        await grader.grade([r"\boxed{42}"], "42", BOXED)
        (pid,) = child_pids(grader)
        task = asyncio.create_task(grader.grade([f"\\boxed{{{SLOW}}}"], SUM, BOXED))
        async with asyncio.timeout(60):
            while grader._idle:  # until its child has the comparison
                await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await gone(pid)
        assert (await grader.grade([r"\boxed{41}"], "42", BOXED)).parts == WRONG
        assert (await grader.grade([r"\boxed{42}"], "42", BOXED)).parts == RIGHT


async def test_concurrent_grades_get_their_own_verdicts_and_no_process_stays():
    async with Grader(workers=2) as grader:
        grades = await asyncio.gather(*(grader.grade([f"\\boxed{{{i % 3}}}"], "1", BOXED) for i in range(30)))
        pids = child_pids(grader)
        assert len(pids) == 2
        assert all(map(is_running, pids))
    assert [grade.reward for grade in grades] == [float(i % 3 == 1) for i in range(30)]
    for pid in pids:
        await gone(pid)
    with pytest.raises(GradingError, match="closed"):
        await grader.grade([r"\boxed{1}"], "1", BOXED)


async def test_answers_that_take_long_hold_up_none_that_do_not():
    async with Grader(workers=1) as grader:
        slow = [asyncio.create_task(grader.grade([f"\\boxed{{{SLOW}}}"], SUM, BOXED)) for _ in range(2)]
        async with asyncio.timeout(60):
            while not grader._patient_turns.locked():
                await asyncio.sleep(0.01)
        assert (await grader.grade([r"\boxed{y + x}"], "x + y", BOXED)).parts == RIGHT
        assert not any(task.done() for task in slow)
        for task in slow:
            task.cancel()
        await asyncio.gather(*slow, return_exceptions=True)


async def test_a_process_that_gets_no_time_is_an_error_and_no_verdict(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(processes, "STARVED", 0.2)
    async with Grader(workers=1) as grader:
        await grader.grade([r"\boxed{42}"], "42", BOXED)
        os.kill(child_pids(grader)[0], signal.SIGSTOP)
        with pytest.raises(GradingError, match=r"processor time in .* more to do than it can"):
            await grader.grade([r"\boxed{42}"], "42", BOXED)
        assert (await grader.grade([r"\boxed{42}"], "42", GradingConfig(timeout_s=600))).parts == RIGHT


async def test_processes_end_with_their_parents_and_import_no_big_libraries():
    workshop = Workshop()
    worker = await workshop.worker()
    assert (await worker.judge(request("y + x", "x + y"), 20.0))[1] == Verdict(equal=True, parsed=True)
    first = workshop._process
    assert first is not None
    for pid in (first.pid, worker._pid):
        assert "libtorch" not in proc_file(pid, "maps")
    # The end of its input ends the first one, and that its children.
    assert workshop._control is not None
    workshop._control.close()
    async with asyncio.timeout(60):
        assert await first.wait() == 0
    await gone(worker._pid)
    worker.end()
    worker = await workshop.worker()
    # The end of its socket ends a child as well.
    worker._writer.close()
    await gone(worker._pid)
    await workshop.close()


async def test_a_child_ends_itself_when_its_parent_is_gone():
    """Nobody limits this comparison but the child's own timer: no parent's limit, and its socket stays open."""
    workshop = Workshop()
    worker = await workshop.worker()
    worker._writer.write(json.dumps(request(SLOW, SUM, GradingConfig(timeout_s=0.1))).encode() + b"\n")
    await gone(worker._pid)
    worker.end()
    await workshop.close()


async def test_the_process_that_others_are_forked_from_is_replaced():
    async with Grader(workers=1) as grader:
        await grader.grade([r"\boxed{42}"], "42", BOXED)
        first = grader._workshop._process
        assert first is not None
        first.kill()
        await first.wait()
        os.kill(child_pids(grader)[0], signal.SIGKILL)
        assert (await grader.grade([r"\boxed{42}"], "42", BOXED)).parts == RIGHT
        assert grader._workshop._process is not first


async def test_a_cancelled_start_gives_no_worker_to_the_next_one():
    async with Grader(workers=1) as grader:
        for delay in (0.0, 0.001, 0.01, 0.1):
            task = asyncio.create_task(grader.grade([r"\boxed{41}"], "42", BOXED))
            await asyncio.sleep(delay)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert (await grader.grade([r"\boxed{42}"], "42", BOXED)).parts == RIGHT


async def test_no_verdict_says_why_and_keeps_what_was_read():
    workshop = Workshop()
    worker = await workshop.worker()
    with pytest.raises(OutOfTime, match=r"within 0\.5 s of processor time") as caught:
        await worker.judge(request(SLOW, SUM), 0.5)
    assert caught.value.reading is not None
    assert caught.value.reading.answer == SLOW
    await gone(worker._pid)
    worker = await workshop.worker()
    task = asyncio.create_task(worker.judge(request(SLOW, SUM), 20.0))
    await asyncio.sleep(0.1)
    os.kill(worker._pid, signal.SIGKILL)
    with pytest.raises(NoVerdict, match="died"):
        await task
    await workshop.close()


async def test_a_fault_of_ours_is_an_error_and_no_verdict():
    workshop = Workshop()
    worker = await workshop.worker()
    with pytest.raises(GradingError, match="grading failed over this response: KeyError"):
        await worker.judge({key: value for key, value in request("42").items() if key != "gold"}, 20.0)
    await gone(worker._pid)
    await workshop.close()


async def test_the_process_that_others_are_forked_from_is_replaced_where_it_says_nothing(
    monkeypatch: pytest.MonkeyPatch,
):
    async with Grader(workers=1) as grader:
        await grader.grade([r"\boxed{42}"], "42", BOXED)
        first = grader._workshop._process
        assert first is not None
        os.kill(first.pid, signal.SIGSTOP)
        os.kill(child_pids(grader)[0], signal.SIGKILL)
        monkeypatch.setattr(processes, "START_TIMEOUT_S", 0.2)
        with pytest.raises(GradingError, match=r"said nothing within 0\.2 s"):
            await grader.grade([r"\boxed{42}"], "42", BOXED)
        monkeypatch.undo()
        assert (await grader.grade([r"\boxed{42}"], "42", BOXED)).parts == RIGHT

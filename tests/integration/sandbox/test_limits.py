"""Programs that take too much: time, memory, processes, output, files."""

from pathlib import Path

import pytest

from bus.messages import Outcome
from sandbox.cgroups import kills
from sandbox.jail import Jail
from tests.integration.sandbox.conftest import CONFIG
from tests.integration.sandbox.hostile_excess import MEMORY_TOGETHER
from tests.integration.sandbox.results import succeeded


async def test_wall_time(run):
    result = await run("import time; time.sleep(60)", timeout_s=0.5)
    assert (result.outcome, result.exit_code, result.signal) == (Outcome.TIMEOUT, None, None)


async def test_a_program_that_ignores_signals_ends_at_its_time(run):
    code = """
import signal
for number in range(1, 65):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
while True: signal.pause()
"""
    assert (await run(code, timeout_s=0.5)).outcome is Outcome.TIMEOUT


async def test_cpu_time(run):
    assert (await run("while True: pass")).outcome is Outcome.CPU_LIMIT


async def test_address_space(run):
    result = await run("x = bytearray(1 << 30)")
    assert (result.outcome, result.stderr.splitlines()[-1]) == (Outcome.EXITED, "MemoryError")


async def test_what_was_killed_for_memory_counts_in_its_own_jail_alone():
    """The next jail has the same control group, whose counter goes on."""
    jail = Jail(CONFIG)
    if jail.cgroups is None:
        pytest.skip(f"no cgroups here{jail.weaker}")
    [group] = jail.cgroups._idle
    await jail.run(MEMORY_TOGETHER["children together"].code, 20.0)
    assert kills(Path(group._counter).read_text()) > 0
    # SIGKILL ends both: for want of memory, or of CPU time.
    assert (await jail.run("while True: pass", 20.0)).outcome is Outcome.CPU_LIMIT
    assert jail.cgroups._idle == [group]


async def test_fork_bomb(run):
    result = await run(
        """
import os
made = 0
try:
    while True:
        if os.fork() == 0:
            while True: os.sched_yield()
        made += 1
except OSError as error:
    print(made, type(error).__name__)
"""
    )
    assert result.stdout == f"{CONFIG.max_processes - 1} BlockingIOError\n"


async def test_fork_bomb_that_goes_on(run):
    result = await run("import os\nwhile True:\n    try: os.fork()\n    except OSError: pass", timeout_s=2.0)
    assert result.outcome in (Outcome.TIMEOUT, Outcome.CPU_LIMIT)


@pytest.mark.parametrize("descriptor", [1, 2])
async def test_output_flood(run, descriptor):
    result = await run(f"import os\nwhile True: os.write({descriptor}, b'y' * 3000)")
    assert (result.outcome, result.truncated) == (Outcome.OUTPUT_LIMIT, True)
    kept, other = (result.stdout, result.stderr) if descriptor == 1 else (result.stderr, result.stdout)
    assert (kept, other) == ("y" * CONFIG.max_output_bytes, "")


async def test_a_program_ends_where_its_output_does(run):
    result = await run("import os, time\nos.write(1, b'y' * 20_000)\ntime.sleep(3)\nos.write(2, b'went on')")
    assert (result.outcome, result.stderr) == (Outcome.OUTPUT_LIMIT, "")


async def test_output_of_exactly_the_limit_is_whole(run):
    result = await run(f"import os; os.write(1, b'y' * {CONFIG.max_output_bytes})")
    assert (len(succeeded(result)), result.truncated) == (CONFIG.max_output_bytes, False)


async def test_disk_fill(run):
    code = """
import os
try:
    for n in range(100):
        with open(f"/box/{n}", "wb") as f: f.write(bytes(1 << 20))
except OSError as error:
    print(n, error.strerror)
"""
    assert succeeded(await run(code)) == f"{CONFIG.max_file_mb - 1} No space left on device\n"


async def test_file_flood(run):
    code = "import os\ntry:\n    for n in range(100000): os.mkdir(f'/box/{n}')\nexcept OSError as e: print(e.strerror)"
    assert succeeded(await run(code)) == "No space left on device\n"


async def test_a_child_that_outlives_the_program_is_ended(run):
    assert succeeded(await run("import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(60)")) == ""


@pytest.mark.parametrize(
    ("code", "number"),
    [
        ("import ctypes; ctypes.string_at(0)", 11),
        ("import os; os.abort()", 6),
        ("import threading, os; thread = threading.Thread(target=os.abort); thread.start(); thread.join()", 6),
    ],
    ids=["invalid memory", "abort", "abort of a thread"],
)
async def test_crash(run, code, number):
    result = await run(code)
    assert (result.outcome, result.exit_code, result.signal) == (Outcome.CRASHED, None, number)

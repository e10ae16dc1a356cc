"""The jail with honest programs, and how their endings are told apart."""

import asyncio
import os
import signal
import subprocess
import sys

import pytest

from bus.messages import Outcome
from sandbox.jail import Jail
from tests.integration.sandbox import traces
from tests.integration.sandbox.conftest import CONFIG
from tests.integration.sandbox.results import succeeded


async def test_the_leftover_check_sees_a_jailed_process(jail):
    """Otherwise every other test here would pass whatever is left."""
    running = asyncio.create_task(jail.run("import time; time.sleep(60)", 60))
    await traces.until(lambda: traces.processes() != [])
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert traces.processes() == []


async def test_an_nsjail_that_is_killed_is_a_failure_and_leaves_no_jail(jail):
    running = asyncio.create_task(jail.run("import time; time.sleep(60)", 60))
    await traces.until(lambda: traces.processes() != [])
    os.kill(traces.parent_of(traces.processes()[0]), signal.SIGKILL)
    result = await running
    assert (result.outcome, result.exit_code) == (Outcome.SANDBOX_FAILURE, None)
    assert "returned -9" in result.detail
    await traces.until(lambda: traces.processes() == [])


# Honest programs


async def test_output_and_exit_code(run):
    result = await run("import sys\nprint('out')\nprint('err', file=sys.stderr)\nsys.exit(3)")
    assert (result.stdout, result.stderr, result.exit_code) == ("out\n", "err\n", 3)
    assert (result.outcome, result.signal, result.truncated) == (Outcome.EXITED, None, False)


async def test_every_package_that_is_configured(run):
    code = "import sympy, numpy, mpmath\nprint(sympy.factor('x**2 - 1'), int(numpy.arange(5).sum()), mpmath.mp.dps)"
    assert succeeded(await run(code)) == "(x - 1)*(x + 1) 10 15\n"


async def test_packages_that_are_not_configured_are_not_there(run):
    assert (await run("import pydantic")).stderr.endswith("ModuleNotFoundError: No module named 'pydantic'\n")
    assert (await run("import sys; sys.path.append('/python/lib/python3.12/site-packages'); import pip")).exit_code == 1


async def test_the_traceback_shows_the_programs_own_lines(run):
    result = await run("def f(a):\n    return a + missing\nf(1)")
    assert result.exit_code == 1
    lines = result.stderr.splitlines()
    assert lines[:2] == ["Traceback (most recent call last):", '  File "/box/main.py", line 3, in <module>']
    assert "    return a + missing" in lines
    assert lines[-1] == "NameError: name 'missing' is not defined"


@pytest.mark.parametrize(
    ("code", "last_line"),
    [
        ("print(1", "SyntaxError: '(' was never closed"),
        ("x = 'a\0b'", "SyntaxError: source code string cannot contain null bytes"),
        ("name = input()", "EOFError: EOF when reading a line"),
        ("raise ValueError('é€')", "ValueError: é€"),
        ("'\udc80'", "SyntaxError: source code is not valid Unicode at position 1"),
        ("def f(): f()\nf()", "RecursionError: maximum recursion depth exceeded"),
        ("(" * 5000, "SyntaxError: too many nested parentheses"),
        ("import sys; sys.exit('bye')", "bye"),
    ],
)
async def test_errors_end_with_the_line_that_python_prints(run, code, last_line):
    result = await run(code)
    assert (result.outcome, result.exit_code) == (Outcome.EXITED, 1)
    assert result.stderr.splitlines()[-1] == last_line


async def test_exit_255_is_the_programs_own(run):
    assert (await run("exit(255)")).exit_code == 255
    assert (await run("import os; os._exit(255)")).exit_code == 255


@pytest.mark.parametrize("status", ["0", "256", "-1", "2**31", "2**63 - 1", "2**63", "-(2**63) - 1", "10**100", "True"])
async def test_an_exit_is_the_one_that_the_interpreter_makes_of_it(run, status: str):
    code = f"import sys; sys.exit({status})"
    ours = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", code], check=False)
    assert (await run(code)).exit_code == ours.returncode


async def test_the_longest_program_runs_and_a_longer_one_is_refused(run):
    end = "\nprint('end')\n"
    longest = "#" * (CONFIG.max_code_bytes - len(end)) + end
    assert succeeded(await run(longest)) == "end\n"
    assert "longer than the limit" in (await run("#" + longest)).stderr


async def test_output_that_is_not_utf8_is_shown_with_replacement_characters(run):
    assert succeeded(await run("import os; os.write(1, b'a\\xff')")) == "a\ufffd"


async def test_output_before_a_limit_is_kept(run):
    result = await run("print('so far')\nwhile True: pass", timeout_s=1.0)
    assert (result.outcome, result.stdout) == (Outcome.TIMEOUT, "so far\n")


async def test_threads_processes_and_files_of_its_own(run):
    code = """
import subprocess, sys, tempfile, threading, os
t = threading.Thread(target=print, args=("thread",)); t.start(); t.join()
print(subprocess.run([sys.executable, "-c", "print('child')"], capture_output=True, text=True).stdout, end="")
with tempfile.TemporaryFile("w+") as f:
    f.write("file"); f.seek(0); print(f.read())
"""
    assert succeeded(await run(code)) == "thread\nchild\nfile\n"


async def test_a_program_is_the_main_module(run):
    assert succeeded(await run("import sys\nclass A: pass\nprint(__name__, sys.modules['__main__'].A is A)")) == (
        "__main__ True\n"
    )


async def test_many_at_once_do_not_mix(run, jail):
    results = await asyncio.gather(*(jail.run(f"print({n})", 20) for n in range(12)))
    assert [result.stdout for result in results] == [f"{n}\n" for n in range(12)]
    assert traces.processes() == []


async def test_programs_run_at_ordinary_priority(run):
    """Beside engines that use every core, one at the lowest priority would starve until its wall limit."""
    assert succeeded(await run("import os; print(os.getpriority(os.PRIO_PROCESS, 0))")) == "0\n"


async def test_jails_share_no_files(run):
    await run("open('/box/left', 'w').write('x')")
    assert succeeded(await run("import os; print(os.listdir('/box'))")) == "['main.py']\n"


async def test_a_jail_that_is_ended_twice_gives_its_group_back_once():
    jail = Jail(CONFIG)
    if jail.cgroups is None:
        pytest.skip(f"no cgroups here{jail.weaker}")
    first = await jail.start(loaded=False)
    await first.end()
    second = await jail.start(loaded=False)
    await first.end()
    assert (await second.run("print(1)", 20.0)).stdout == "1\n"
    assert len(jail.cgroups._idle) == 1

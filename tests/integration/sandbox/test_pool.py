"""Jails that wait: each is used once, one that died is replaced, and limits count from the program's start."""

import asyncio
import os
import signal

import pytest

from bus.messages import Outcome
from sandbox.jail import Jail
from sandbox.pool import Pool, imports_any
from tests.integration.sandbox import traces
from tests.integration.sandbox.conftest import CONFIG
from tests.integration.sandbox.results import succeeded

POOLED = CONFIG.model_copy(update={"warm": 2, "warm_with_packages": 1, "packages": ("sympy", "numpy", "mpmath")})
IMPORTED = "import sys; print('sympy' in sys.modules)"


@pytest.fixture
async def pool():
    async with asyncio.timeout(120), Pool(Jail(POOLED)) as pool:
        await pool.filled()
        yield pool


@pytest.mark.parametrize(
    "code",
    [
        "import sympy",
        "from sympy import *",
        "import os, sympy as s",
        "x = 1; import numpy.linalg",
        "def f():\n    from numpy import array",
        "if True: import sympy",
        "\timport\tsympy",
        "text = 'é'\nfrom mpmath import mp\nbroken(",
    ],
)
def test_code_that_imports_a_package(code):
    assert imports_any(code, POOLED.packages)


@pytest.mark.parametrize(
    "code",
    [
        "print('sympy')",
        "import sympylike, os",
        "x = 1 # import sympy",
        "important = sympy",
        "import math\nsympy = 1",
        "(",
    ],
)
def test_code_that_imports_none(code):
    assert not imports_any(code, POOLED.packages)


def test_without_packages_nothing_imports_one():
    assert not imports_any("import sympy", ())


async def test_each_program_gets_the_jail_that_fits_it(pool):
    assert succeeded(await pool.run(IMPORTED, 20)) == "False\n"
    assert succeeded(await pool.run(f"import numpy\n{IMPORTED}", 20)) == "True\n"


async def test_a_jail_serves_one_program(pool):
    code = "import os, builtins as b\nprint(os.listdir('/box'), hasattr(b, 'left'))\nb.left = open('/box/left', 'w')"
    for _ in range(5):
        assert succeeded(await pool.run(code, 20)) == "['main.py'] False\n"


async def test_as_many_jails_wait_as_are_asked_for(pool):
    assert (pool.idle(loaded=False), pool.idle(loaded=True)) == (2, 1)
    assert len(traces.processes()) == 3
    await pool.run("print(1)", 20)
    await pool.filled()
    assert (pool.idle(loaded=False), pool.idle(loaded=True)) == (2, 1)


async def test_more_programs_than_jails_are_all_served(pool):
    results = await asyncio.gather(*(pool.run(f"print({n})", 20) for n in range(12)))
    assert [succeeded(result) for result in results] == [f"{n}\n" for n in range(12)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_a_jail_that_dies_while_it_waits_is_replaced(pool, number):
    for program in traces.processes():
        os.kill(traces.parent_of(program), number)
    # Dead before a program comes, and the pool has not seen it yet: nothing else runs on its loop meanwhile.
    traces.block_until_none()
    results = await asyncio.gather(*(pool.run("print(1)", 20) for _ in range(3)))
    assert [succeeded(result) for result in results] == ["1\n"] * 3
    await pool.filled()
    assert (pool.idle(loaded=False), pool.idle(loaded=True)) == (2, 1)


@pytest.mark.slow
async def test_the_wall_limit_counts_from_the_programs_start(pool):
    await asyncio.sleep(1.5)
    assert succeeded(await pool.run("import time; time.sleep(0.2); print(1)", 1.0)) == "1\n"


@pytest.mark.slow
async def test_the_cpu_limit_does_not_count_what_was_imported_before():
    """One second alone would not do for both: the import takes half of it or more."""
    async with asyncio.timeout(120), Pool(Jail(POOLED.model_copy(update={"cpu_s": 1}))) as pool:
        code = (
            "import sympy, time\nbegin = time.process_time()\nwhile time.process_time() - begin < 0.9: pass\nprint(1)"
        )
        assert succeeded(await pool.run(code, 20)) == "1\n"
        assert (await pool.run("import sympy\nwhile True: pass", 20)).outcome is Outcome.CPU_LIMIT


async def test_no_more_jails_wait_than_the_memory_allows():
    async with asyncio.timeout(120), Pool(Jail(POOLED.model_copy(update={"warm": 50, "warm_memory_mb": 150}))) as pool:
        await pool.filled()
        assert 1 < pool.idle(loaded=False) < 20
        assert succeeded(await pool.run(f"import numpy\n{IMPORTED}", 20)) == "True\n"


async def test_without_idle_jails_programs_run_all_the_same():
    config = POOLED.model_copy(update={"warm": 0, "warm_with_packages": 0})
    async with asyncio.timeout(120), Pool(Jail(config)) as pool:
        assert succeeded(await pool.run("import sympy; print(sympy.Integer(1))", 20)) == "1\n"


async def test_a_pool_that_cannot_start_a_jail_says_so_to_each_that_waits():
    async with asyncio.timeout(120), Pool(Jail(POOLED.model_copy(update={"memory_mb": 1, "warm": 0}))) as pool:
        results = await asyncio.gather(*(pool.run("print(1)", 5) for _ in range(4)))
    assert {result.outcome for result in results} == {Outcome.SANDBOX_FAILURE}
    assert all("nsjail returned" in result.detail for result in results)


async def test_who_gives_up_in_line_takes_nothing_away(pool):
    calls = [asyncio.create_task(pool.run(f"print({n})", 20)) for n in range(8)]
    await asyncio.sleep(0)
    for call in calls[::2]:
        call.cancel()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert [str(result.stdout) for result in results[1::2] if not isinstance(result, BaseException)] == [
        f"{n}\n" for n in range(1, 8, 2)
    ]
    await pool.filled()
    assert (pool.idle(loaded=False), pool.idle(loaded=True)) == (2, 1)


async def test_a_pool_that_is_left_leaves_nothing():
    jail = Jail(POOLED)
    async with Pool(jail) as pool:
        await pool.run("print(1)", 20)
    traces.assert_none(jail)

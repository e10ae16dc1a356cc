"""Roles as child processes: how each ended is said in words."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from launch.cores import Share
from launch.processes import RoleProcess

WAIT_S = 60


@pytest.fixture
async def start(tmp_path: Path):
    started: list[RoleProcess] = []

    async def start(name: str, *arguments: str) -> RoleProcess:
        role = RoleProcess(name, list(arguments), tmp_path / f"{name}.out", None)
        await role.start()
        started.append(role)
        return role

    yield start
    for role in started:
        await role.stop()


async def test_a_killed_role_names_the_signal(start, tmp_path: Path):
    role = await start("bus", "bus", "tiny", "--folder", str(tmp_path / "run"))
    async with asyncio.timeout(WAIT_S):
        while not (tmp_path / "run" / "bus.json").exists():
            assert role.code is None
            await asyncio.sleep(0.02)
    os.kill(role.pid, signal.SIGKILL)
    await asyncio.wait_for(role.wait(), WAIT_S)
    assert role.ending().startswith("was killed by signal 9 (SIGKILL)")


async def test_a_role_gets_its_share(tmp_path: Path):
    cores = frozenset({max(os.sched_getaffinity(0))})
    arguments = ["bus", "tiny", "--folder", str(tmp_path / "run")]
    role = RoleProcess("bus", arguments, tmp_path / "bus.out", Share(cores, {"ZEROTIR_SHARE": "yes"}, niceness=3))
    await role.start()
    try:
        async with asyncio.timeout(WAIT_S):
            while not (tmp_path / "run" / "bus.json").exists():
                assert role.code is None
                await asyncio.sleep(0.02)
        assert os.getpriority(os.PRIO_PROCESS, role.pid) == os.getpriority(os.PRIO_PROCESS, 0) + 3
        assert os.sched_getaffinity(role.pid) == cores
        assert b"ZEROTIR_SHARE=yes\0" in Path(f"/proc/{role.pid}/environ").read_bytes()
    finally:
        await role.stop()


async def test_a_role_that_reported_an_error_is_quoted(start, tmp_path: Path):
    """The last error that it reported itself: not one of an earlier start, nor the lines around it."""
    log = tmp_path / "logs" / "bus.jsonl"
    log.parent.mkdir()
    log.write_text('{"event": "an error of yesterday", "level": "error"}\n{"event": "half a li')
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        role = RoleProcess(
            "bus",
            ["bus", "tiny", "--folder", str(tmp_path), "--set", f"bus.port={port}"],
            log.with_suffix(".out"),
            None,
        )
        await role.start()
        code = await asyncio.wait_for(role.wait(), WAIT_S)
    assert code == 2
    assert role.ending().startswith("ended with exit status 2: ServerError: ")
    assert "yesterday" not in role.ending()
    await role.stop()


async def test_a_role_that_reported_none_is_quoted_by_what_it_printed(start, tmp_path: Path):
    role = await start("actor", "actor", "tiny", "--bus", str(tmp_path / "absent.json"))
    assert await asyncio.wait_for(role.wait(), WAIT_S) == 2
    words, *printed = role.ending().splitlines()
    assert words == "ended with exit status 2, it printed last:"
    assert "no run found" in printed[-1]


def test_lines_that_cannot_be_written_are_dropped_and_the_work_goes_on(tmp_path: Path):
    done = tmp_path / "done"
    work = (
        "import pathlib, sys; from launch.screen import say\n"
        "for number in range(3000): say(f'line {number} of a long run')\n"
        "pathlib.Path(sys.argv[1]).touch()\n"
    )
    with open("/dev/full", "w") as full:
        subprocess.run([sys.executable, "-c", work, str(done)], stdout=full, timeout=WAIT_S, check=True)
    assert done.exists()
    done.unlink()
    reader, writer = os.pipe()
    os.close(reader)
    subprocess.run([sys.executable, "-c", work, str(done)], stdout=writer, timeout=WAIT_S, check=True)
    os.close(writer)
    assert done.exists()

"""What commands show while they work: on a terminal, in a pipe, and to those who want it quiet."""

import asyncio
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from launch import screen
from launch.up_screen import relay
from launch.views import seconds_left
from runtime.words import time_left

LONG = "a path that is longer than a line " * 5
PROGRAM = f"""
import time
from launch.screen import coloured, live_line, say
with live_line() as show:
    show("3 of 8 steps\\x1b[2J" + " and what is going on" * 9)
    say({LONG!r})
    time.sleep(0.6)
    say("step 4")
print(coloured(("green", "green")), end="")
"""


def on_terminal(**environment: str) -> str:
    """Returns what PROGRAM writes to a terminal."""
    ours, its = pty.openpty()
    ours_alone = ("NO_COLOR", "FORCE_COLOR", "TERM", "COLUMNS", "TTY_COMPATIBLE", "TTY_INTERACTIVE")
    plain = {name: value for name, value in os.environ.items() if name not in ours_alone}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        stdout=its,
        env={**plain, "TERM": "xterm", **environment},
        timeout=60,
        check=False,
    )
    os.close(its)
    # It fits into the terminal's buffer.
    written = os.read(ours, 2**16).decode()
    os.close(ours)
    assert done.returncode == 0
    return written


def test_a_terminal_has_a_line_that_changes_below_those_that_stay():
    written = on_terminal()
    # What stays is broken by the terminal alone.
    for said in (f"{LONG}\r\n", "step 4\r\n"):
        assert said in written
    # The other one is a line, however narrow the terminal, and it is erased at the end.
    assert "3 of 8 steps\\x1b[2J and what" in written
    assert "…\x1b[0m\r" in written
    assert " and what is going on" * 9 not in written
    assert "3 of 8 steps" in written.rpartition("\x1b[2K")[0]
    assert "3 of 8 steps" not in written.rpartition("\x1b[2K")[2]
    assert "\x1b[32mgreen\x1b[0m" in written


def test_who_wants_no_colours_gets_none_and_a_dumb_terminal_no_control_codes():
    assert "\x1b[32m" not in on_terminal(NO_COLOR="1")
    written = on_terminal(TERM="dumb")
    assert "\x1b" not in written
    assert "3 of 8" not in written


def test_a_pipe_gets_plain_lines():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=True)
    *said, green = done.stdout.splitlines()
    assert [line[10:] for line in said] == [LONG, "step 4"]
    assert green == "green"


def test_quiet_leaves_out_what_goes_well(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(screen, "_quiet", False)
    screen.be_quiet()
    screen.say("step 3")
    screen.say("FAILED", matters=True)
    assert not screen.is_live()
    assert capsys.readouterr().out.endswith("  FAILED\n")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "a few seconds left"),
        (44, "about 40 s left"),
        (119, "about 2 min left"),
        (150.1, "about 3 min left"),
        (3599, "about 1 h left"),
        (7500, "about 2 h 5 min left"),
        (2 * 86_400, "about 2 d left"),
    ],
)
def test_estimates_are_no_more_exact_than_they_are(seconds: float, words: str):
    assert time_left(seconds) == words


def test_the_last_steps_say_how_long_the_rest_takes():
    steps = [{"step": n, "step_seconds": 1000.0 if n <= 5 else 4.0} for n in range(1, 16)]
    assert seconds_left(steps, 20) == 20.0
    assert seconds_left(steps, 15) is None
    assert seconds_left([], 15) is None
    assert seconds_left([{"step": 3}], 15) is None


async def test_what_roles_print_is_shown_with_their_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "actor-0.out").write_text("of an earlier start\n")
    relaying = asyncio.create_task(relay(tmp_path))
    # It has looked how much is there.
    await asyncio.sleep(0)
    with (tmp_path / "actor-0.out").open("a") as file:
        file.write("loading\x1b[2J\nhalf a li")
    (tmp_path / "learner.out").write_text("ready\n")
    lines: list[str] = []
    async with asyncio.timeout(60):
        while len(lines) < 2:
            await asyncio.sleep(0.1)
            lines += [line[10:] for line in capsys.readouterr().out.splitlines()]
        with (tmp_path / "actor-0.out").open("a") as file:
            file.write("ne\n")
        while len(lines) < 3:
            await asyncio.sleep(0.1)
            lines += [line[10:] for line in capsys.readouterr().out.splitlines()]
    relaying.cancel()
    assert lines == ["actor-0    | loading\\x1b[2J", "learner    | ready", "actor-0    | half a line"]


def test_a_pipe_that_nobody_reads_is_left_to_the_command():
    """With what was written before still in its buffer, as `zerotir transcripts | head -1` leaves it."""
    program = (
        "import os, sys; from launch.screen import coloured; sys.stdout.write('x')\n"
        "try: coloured(('a', 'bold')); sys.stdout.flush()\n"
        "except BrokenPipeError: os._exit(7)"
    )
    reader, writer = os.pipe()
    os.close(reader)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run([sys.executable, "-c", program], stdout=writer, env=environment, timeout=60, check=False)
    os.close(writer)
    assert done.returncode == 7

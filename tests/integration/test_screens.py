"""What roles say of themselves, on the screens of people: it neither moves their cursors nor ends their commands."""

import json
import logging
from pathlib import Path

import pytest
import structlog
from nats.aio.msg import Msg

from bus.address import BusAddress
from bus.codec import encode
from bus.connection import open_bus
from bus.presence import Announcer, who_is_alive
from configs.bus import BusConfig
from launch import view_commands
from launch.screen import say
from runtime.logs import set_up_logs
from runtime.terminal import printable
from sandbox.program import SERVICE_NAME

CONFIG = BusConfig(timeout_s=10)
HOSTILE = "\x1b[2J\x1b]0;title\x07\r\nrun FAILED\x9b2J\u202e"
STATISTICS = {
    "name": "s1", "slots": 1, "in_flight": 0, "executions": 7, "failures": 0, "refused": 0, "cancelled": 0,
    "busy_seconds": 1.5, "idle_jails": 1, "idle_jails_with_packages": 1,
}  # fmt: skip


def test_what_a_terminal_would_obey_is_escaped():
    assert printable(HOSTILE).isprintable()
    assert printable(HOSTILE).startswith(r"\x1b[2J\x1b]0;title\x07\r\nrun FAILED")
    assert printable("step 1/6  accuracy 50 % – ü 数") == "step 1/6  accuracy 50 % – ü 数"


def test_lines_of_the_console_and_of_progress_are_lines(capfd: pytest.CaptureFixture[str], tmp_path: Path):
    set_up_logs("actor", "a", "r", tmp_path / "log")
    try:
        structlog.get_logger("bus").warning("result ignored " + HOSTILE, reason=HOSTILE)
        say(f"a1  {printable(HOSTILE)}")
        out, err = capfd.readouterr()
    finally:
        logging.getLogger().handlers = []
        structlog.reset_defaults()
    for text in (out, err):
        assert text.count("\n") == 1
        assert printable(text.rstrip("\n")) == text.rstrip("\n")
        assert "run FAILED" in text
    say("two\nlines\x1b[2J")
    assert capfd.readouterr().out.endswith("  two\nlines\\x1b[2J\n")
    # The file is for programs, and has what was said.
    assert json.loads((tmp_path / "log").read_text())["reason"] == HOSTILE


def test_no_line_of_a_traceback_looks_like_one_of_the_log(capfd: pytest.CaptureFixture[str], tmp_path: Path):
    set_up_logs("actor", "a", "r", tmp_path / "log")
    try:
        raise ValueError(f"the model wrote\n{HOSTILE}")
    except ValueError:
        structlog.get_logger("bus").exception("failed")
    finally:
        logging.getLogger().handlers = []
        structlog.reset_defaults()
    first, *others = capfd.readouterr().err.rstrip("\n").split("\n")
    assert "failed" in first
    assert all(line.startswith("    ") and line.isprintable() for line in others)
    assert "    ValueError: the model wrote" in others


async def test_status_shows_hostile_roles_in_lines_of_its_own(own_run: BusAddress):
    async with (
        open_bus(own_run.for_role("sandbox"), CONFIG, "s") as sandbox,
        open_bus(own_run.for_role("observer"), CONFIG, "o") as observer,
    ):
        good = {"id": "x", "endpoints": [{"subject": sandbox.names.execution, "data": STATISTICS}]}
        bad = [
            b"no JSON", b"[1]", b"{}", b'{"id": 1}', b"\xff", json.dumps({"id": "x", "endpoints": {}}).encode(),
            json.dumps(good).replace("s1", "s\\n1").encode(), json.dumps(good).replace("7", "-7").encode(),
        ]  # fmt: skip
        waiting = [*bad, json.dumps(good).encode()]

        async def answer(message: Msg) -> None:
            await message.respond(waiting.pop(0))

        # One answer a request and connection is all that the server lets through.
        await sandbox.client.subscribe(f"$SRV.STATS.{SERVICE_NAME}", cb=answer)
        announcer = Announcer(sandbox, "sandbox", "s1", state=HOSTILE)
        await announcer.announce()
        [presence] = await who_is_alive(observer)
        bucket = await sandbox.js.key_value(sandbox.names.alive_bucket)
        texts = []
        while waiting:
            await announcer.announce()
            texts.append(await view_commands._status(observer))
        lines = texts[-1].splitlines()
        assert printable("".join(lines)) == "".join(lines)
        [shown] = [line for line in lines if "run FAILED" in line]
        assert shown.startswith(f"  sandbox  s1                 {printable(HOSTILE)}  ")
        assert "7 executions" in texts[-1]
        assert not any("executions" in text for text in texts[:-1])
        # Not under another's name, and with no version that is none.
        versions = ("oops", "0.9999999999999999", "1.2.3")
        for change in ({"role": "learner"}, {"id": "other"}, *({"version": version} for version in versions)):
            forged = encode(presence.model_copy(update=change))
            await bucket.put("sandbox.s2", forged)
            # A key that the client would not take from us.
            await sandbox.client.publish(f"$KV.{sandbox.names.alive_bucket}.sandbox.a$b", forged)
            await announcer.announce()
            assert [each.id for each in await who_is_alive(observer)] == ["s1"]
        assert presence.state == HOSTILE

"""The page of a live run: what it says of the run while the bus is up, once the run is done, and while the bus is away."""

import asyncio
import re
import socket
import subprocess
from pathlib import Path

import httpx
import pytest

from bus.address import BusAddress
from bus.alarms import Alarm, record_alarms
from bus.connection import Bus, open_bus
from bus.metrics import MetricsWriter
from bus.presence import Announcer
from bus.run_record import record_config, record_end
from configs.bus import BusConfig
from configs.loading import load_config
from page import run_view
from page.prometheus import exposition
from page.run_view import RunView
from tests.processes import ZEROTIR, zerotir

CONFIG = load_config("tiny", ["learner.steps=3"])


async def until_step(view: RunView, step: int) -> None:
    async with asyncio.timeout(60):
        while view.store.step < step:
            await asyncio.sleep(0.02)


async def test_now_is_what_the_bus_says(bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(run_view, "FRESH_S", 0.0)
    monkeypatch.setattr(run_view, "ASK_S", 60.0)
    await record_config(bus, CONFIG)
    view = RunView(bus.address.run, tmp_path, bus, {})
    following = asyncio.create_task(view.follow())
    actor = Announcer(bus, "actor", "actor-7")
    actor.in_flight, actor.rates = 3, {"tokens_per_s": 12.0}
    await actor.say("ready")
    await record_alarms(bus, [Alarm(name="stalled", who="learner", text="t", advice="a", since=bus.clock.now() - 90)])
    writer = MetricsWriter(bus, "learner", "learner")
    for step in (1, 2):
        await writer.write({"accuracy": step / 4, "step_seconds": 10.0, "filtered_by_no_signal": 1.0}, step=step)
    await until_step(view, 2)
    now = await view.now()
    assert (now["step"], now["steps"], now["left_s"], now["tokens_per_s"]) == (2, 3, 10.0, 12.0)
    assert now["missing"] == ["learner", "sandbox"]
    [role] = now["roles"]
    assert (role["id"], role["state"], role["in_flight"]) == ("actor-7", "ready", 3)
    assert now["alarms"][0]["line"].startswith("ALARM stalled (learner, for 1 min 3")
    assert now["filtered"] == {"no signal": 2.0}
    assert now["streams"]["metrics"]["messages"] == 2
    await record_end(bus, steps=3)
    now = await view.now()
    assert (now["finished"], now["missing"], now["left_s"]) == (True, [], None)
    following.cancel()


async def test_a_bus_that_is_away_is_said_and_what_was_measured_stays(
    own_run: BusAddress, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(run_view, "FRESH_S", 0.0)
    monkeypatch.setattr(run_view, "ASK_S", 60.0)
    config = BusConfig(timeout_s=1, reconnect_s=60)
    async with open_bus(own_run, config, "bus") as bus:
        await record_config(bus, CONFIG)
        await MetricsWriter(bus, "learner", "learner").write({"accuracy": 0.5}, step=1)
        async with open_bus(own_run.for_role("observer"), config, "page") as watching:
            view = RunView("own", tmp_path, watching, {})
            following = asyncio.create_task(view.follow())
            await until_step(view, 1)
            assert (await view.now())["trouble"] == ""
            # As a server that has stopped to answer: what is asked of it is never sent.
            monkeypatch.setattr(watching.client, "publish", lost)
            monkeypatch.setattr(run_view, "ASK_S", 0.2)
            now = await view.now()
            assert now["trouble"].startswith("the bus does not answer (")
            assert now["measured"] == {"accuracy": 0.5}
            # Nobody can say who is there, and how long it takes.
            assert (now["missing"], now["left_s"]) == ([], None)
            text = (await exposition([view])).decode()
            assert 'zerotir_bus_up{run="own"} 0.0' in text
            assert "zerotir_alive" not in text
            following.cancel()


async def test_a_run_that_is_done_stays_so_when_its_bus_is_gone(own_run: BusAddress, tmp_path: Path):
    config = BusConfig(timeout_s=1, reconnect_s=60)
    async with open_bus(own_run, config, "bus") as bus:
        await record_config(bus, CONFIG)
        await MetricsWriter(bus, "learner", "learner").write({"accuracy": 0.5}, step=3)
        async with open_bus(own_run.for_role("observer"), config, "page") as watching:
            view = RunView("own", tmp_path, watching, CONFIG.model_dump(mode="json"))
            following = asyncio.create_task(view.follow())
            await until_step(view, 3)
            # Nobody has looked at it before.
            await watching.client.close()
            now = await view.now()
            assert (now["finished"], now["trouble"], now["missing"], now["roles"]) == (True, "", [], [])
            following.cancel()


async def lost(*_: object, **__: object) -> None:
    return None


async def test_the_command_serves_a_live_run_and_a_past_one_and_stops_when_told(own_run: BusAddress, tmp_path: Path):
    folder = tmp_path / "live run"
    folder.mkdir()
    own_run.write(folder / "bus.json")
    past = tmp_path / "past"
    past.mkdir()
    line = '{"run": "past", "seq": 1, "time": 1.0, "role": "learner", "id": "learner", "step": 4, "accuracy": 0.25}\n'
    (past / "metrics.jsonl").write_text(line)
    async with open_bus(own_run, BusConfig(timeout_s=5), "bus") as bus:
        await record_config(bus, CONFIG)
        served = await asyncio.create_subprocess_exec(
            *ZEROTIR, "page", str(folder), str(past), "--port", "0", stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )  # fmt: skip
        assert served.stdout is not None
        assert served.stderr is not None
        try:
            async with asyncio.timeout(60):
                address = (await served.stdout.readline()).decode().strip()
            assert address.startswith("http://127.0.0.1:"), await served.stderr.read()

            async with httpx.AsyncClient(base_url=address, timeout=30) as client:
                runs = (await client.get("/api/runs")).json()
                assert runs == [{"name": "own", "live": True}, {"name": "past", "live": False}]
                async with asyncio.timeout(60):
                    while (await client.get("/api/now?run=past")).json()["step"] != 4:
                        await asyncio.sleep(0.05)
                assert (await client.get("/api/now?run=own")).json()["steps"] == 3
                port = address.rsplit(":", 1)[1].strip("/")
                taken = await asyncio.to_thread(zerotir, "page", str(past), "--port", port)
            assert taken.returncode == 2
            assert "(Address already in use): choose another --host or --port, or leave them out" in taken.stderr
        finally:
            served.terminate()
            async with asyncio.timeout(60):
                await served.wait()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--host", "192.0.2.1"), "the page cannot be served at 192.0.2.1, port 7787 ("),
        (("--port", "70000"), "'70000' is no port"),
    ],
)
def test_an_address_that_cannot_be_had_is_said(tmp_path: Path, arguments: tuple[str, ...], words: str):
    (tmp_path / "metrics.jsonl").write_text("")
    done = zerotir("page", str(tmp_path), *arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_elsewhere_than_on_the_loopback_interface_the_address_holds_a_token(tmp_path: Path):
    (tmp_path / "metrics.jsonl").write_text("")
    served = subprocess.Popen(
        [*ZEROTIR, "page", str(tmp_path), "--host", "0.0.0.0", "--port", "0"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert served.stdout is not None
        address = served.stdout.readline().strip()
    finally:
        served.terminate()
        served.wait(timeout=60)
    assert re.fullmatch(rf"http://{re.escape(socket.gethostname())}:\d+/\?token=[\w-]{{30,}}", address)

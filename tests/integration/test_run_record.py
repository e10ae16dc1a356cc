"""The run's record on a real server: roles of another model, prompt or wire schema are refused, late learners waited for."""

import asyncio
import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random

import pytest

from bus.address import BusAddress
from bus.connection import Bus, open_bus
from bus.run_record import (
    OtherModelError,
    record_config,
    record_model,
    recorded_template,
    require_same_config,
    require_same_model,
)
from bus.server import embedded_server
from bus.streams import create_streams
from configs.agreement import SHARED
from configs.bus import BusConfig
from configs.errors import UserError
from configs.loading import dump_config, load_config
from runtime.model_digests import model_digests
from runtime.models import model_folder
from tests.processes import ZEROTIR

CONFIG = load_config("emulated")
DIGESTS = {"config.json": "1", "tokenizer.json": "2"}


@pytest.fixture
async def master(tmp_path: Path) -> AsyncIterator[BusAddress]:
    """A run whose bus role has set it up."""
    async with embedded_server(tmp_path / "nats", BusConfig(), "recorded") as (address, _):
        async with open_bus(address, BusConfig(), "bus") as bus:
            await create_streams(bus.js, bus.names, BusConfig(), lease_s=60)
            await record_config(bus, CONFIG)
        address.write_all(tmp_path)
        yield address


@pytest.fixture
async def learner(master: BusAddress) -> AsyncIterator[Bus]:
    async with open_bus(master.for_role("learner"), BusConfig(), "learner") as bus:
        yield bus


@pytest.fixture
async def actor(master: BusAddress) -> AsyncIterator[Bus]:
    async with open_bus(master.for_role("actor"), BusConfig(), "actor") as bus:
        yield bus


async def test_a_learner_that_goes_on_must_have_the_model_and_the_template_that_the_run_has(learner: Bus):
    await record_model(learner, DIGESTS, "Q: {problem}")
    await record_model(learner, DIGESTS, "Q: {problem}")
    with pytest.raises(OtherModelError, match=r"not the run's: tokenizer\.json is another one"):
        await record_model(learner, {**DIGESTS, "tokenizer.json": "3"}, "Q: {problem}")
    with pytest.raises(UserError, match="another prompt template"):
        await record_model(learner, DIGESTS, "Edited: {problem}")
    # None of these has changed what is written down.
    await record_model(learner, DIGESTS, "Q: {problem}")


async def test_an_actor_waits_for_the_learners_word_and_compares(learner: Bus, actor: Bus):
    stop = asyncio.Event()
    assert not await require_same_model(actor, DIGESTS, 0, stop)
    waiting = asyncio.create_task(require_same_model(actor, DIGESTS, 60, stop))
    await asyncio.sleep(0.2)
    assert not waiting.done()
    await record_model(learner, DIGESTS, "Q: {problem}")
    assert await waiting
    assert await recorded_template(actor) == "Q: {problem}"
    with pytest.raises(OtherModelError, match=r"config\.json is missing"):
        await require_same_model(actor, {"tokenizer.json": "2"}, 0, stop)


async def test_waiting_for_a_learner_ends_with_a_stop(actor: Bus):
    stop = asyncio.Event()
    waiting = asyncio.create_task(require_same_model(actor, DIGESTS, 600, stop))
    await asyncio.sleep(0.1)
    stop.set()
    assert not await waiting


async def test_another_wire_schema_or_configuration_is_refused(
    actor: Bus, master: BusAddress, monkeypatch: pytest.MonkeyPatch
):
    await require_same_config(actor, CONFIG, SHARED)
    with pytest.raises(UserError, match=r"rollout\.max_tool_calls is"):
        await require_same_config(actor, load_config("emulated", ["rollout.max_tool_calls=7"]), SHARED)
    with monkeypatch.context() as patch:
        patch.setattr("bus.run_record.wire_schema_digest", lambda: "other")
        with pytest.raises(UserError, match="its messages have other fields"):
            await require_same_config(actor, CONFIG, SHARED)


async def test_actors_and_learners_with_another_tokenizer_end_with_status_2(
    master: BusAddress, learner: Bus, tmp_path: Path
):
    """As processes: the model of the configuration is another one on their host."""
    models = tmp_path / "cache" / "models"
    other = Path(shutil.copytree(model_folder("random-tiny"), models / "random-tiny"))
    template = "{problem}"
    await record_model(learner, model_digests(other), template)
    text = json.loads((other / "tokenizer.json").read_text())
    text["added_tokens"].pop()
    (other / "tokenizer.json").write_text(json.dumps(text))
    config = tmp_path / "other.yaml"
    config.write_text(dump_config(CONFIG))
    for role in ("actor", "learner"):
        command = [*ZEROTIR, role, str(config), "--bus", str(tmp_path / "credentials" / f"{role}.json")]
        environment = {**os.environ, "ZEROTIR_CACHE": str(tmp_path / "cache")}
        ended = await asyncio.to_thread(
            subprocess.run, command, capture_output=True, text=True, timeout=60, env=environment, check=False
        )
        assert ended.returncode == 2, ended.stderr
        assert "the model here is not the run's: tokenizer.json is another one" in ended.stderr


async def test_a_record_in_a_damaged_block_is_written_again(tmp_path: Path):
    """By its index the server would take the damaged messages for whole ones, and no others in their place."""
    config = BusConfig(timeout_s=5)
    for seed in range(4):
        folder = tmp_path / str(seed)
        async with (
            embedded_server(folder, config, "damaged") as (address, _),
            open_bus(address, config, "bus") as bus,
        ):
            await create_streams(bus.js, bus.names, config, lease_s=60)
            await record_config(bus, CONFIG)
            await record_model(bus, DIGESTS, "Q: {problem}")
        [block] = folder.rglob("KV_*-run/msgs/1.blk")
        content = block.read_bytes()
        begin = 96 * seed
        block.write_bytes(
            content[:begin] + Random(seed).randbytes(len(content) // 4) + content[begin + len(content) // 4 :]
        )
        async with (
            embedded_server(folder, config, "damaged", address) as (again, _),
            open_bus(again, config, "bus") as bus,
        ):
            await create_streams(bus.js, bus.names, config, lease_s=60)
            await record_config(bus, CONFIG)
            await record_model(bus, DIGESTS, "Q: {problem}")
            await require_same_config(bus, CONFIG, SHARED)
            assert await require_same_model(bus, DIGESTS, 0, asyncio.Event())
            assert await recorded_template(bus) == "Q: {problem}"

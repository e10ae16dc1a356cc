"""A learner that is killed and started again ends where a replay of its archive ends: weights, master weights, moments.

Nothing is generated: the test answers each ticket with made-up tokens that follow from its number.
"""

import argparse
import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import torch

from actors.leases import TicketSource
from bus.address import BusAddress
from bus.connection import Bus, open_bus
from bus.messages import Ticket, Trajectory, VersionSpan, WeightVersion
from bus.metrics import steps_of
from configs.loading import load_config
from launch.replay_command import start
from runtime.compute import SWITCH
from tests.factories import random_trajectory
from tests.processes import Roles, processes_of

STEPS = 4
# The published weights are bfloat16: they alone would not show all of what training goes on from.
SETTINGS = (
    "model.dtype=bfloat16",
    f"learner.steps={STEPS}",
    "learner.checkpoint.every=2",
    "learner.batch_timeout_s=120",
    "learner.max_engine_gap=null",  # The answers are made up.
)
BEFORE_THE_KILL = 3
"""Steps that the learner takes before it is killed: one more than its newest checkpoint holds."""
TIMEOUT_S = 240


def answer(ticket: Ticket, run: str) -> Trajectory:
    rng = np.random.default_rng(ticket.number)
    made_up = random_trajectory(ticket.group, float(ticket.number % 2), rng, ticket.rollout.temperature)
    version = WeightVersion(epoch=0, n=ticket.min_version)
    span = VersionSpan(version=version, start=0, end=made_up.response_length)
    return made_up.model_copy(update={"ticket": ticket.number, "versions": (span,), "run": run})


@contextlib.asynccontextmanager
async def answering(bus: Bus, groups: int, others: asyncio.Event) -> AsyncIterator[None]:
    """Answers the tickets of the first `groups` groups as an actor would, and the other ones once `others` is set."""

    async def work() -> None:
        source = TicketSource(bus)
        while True:
            for leased in await source.pull(1, 0.5):
                if leased.ticket.group >= groups:
                    await others.wait()
                await bus.publish(bus.names.results, answer(leased.ticket, bus.address.run))
                await leased.done()

    task = asyncio.create_task(work())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@pytest.mark.timeout(TIMEOUT_S + 60)
async def test_a_killed_learner_ends_where_a_replay_ends(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """The second start measures the other type as the faster one, as it may beside other work."""
    folder = tmp_path / "run"
    roles = Roles(folder, *SETTINGS)
    config = load_config("tiny", list(SETTINGS))
    killed = asyncio.Event()
    first_groups = BEFORE_THE_KILL * config.learner.batch_groups
    deadline = time.monotonic() + TIMEOUT_S
    try:
        roles.start("bus")
        while not (folder / "bus.json").exists():
            assert time.monotonic() < deadline, roles.output("bus")
            await asyncio.sleep(0.05)
        address = BusAddress.read(folder / "bus.json").for_role("actor")
        async with open_bus(address, config.bus, "answers") as bus, answering(bus, first_groups, killed):
            monkeypatch.setenv(SWITCH, "bfloat16")
            learner = roles.start("learner")
            while len(steps_of(folder)) < BEFORE_THE_KILL:
                assert learner.poll() is None, roles.output("learner")
                assert time.monotonic() < deadline, roles.output("learner")
                await asyncio.sleep(0.02)
            learner.kill()
            learner.wait(timeout=60)
            killed.set()
            monkeypatch.setenv(SWITCH, "float32")
            learner = roles.start("learner")
            assert await asyncio.to_thread(learner.wait, TIMEOUT_S) == 0, roles.output("learner")
    finally:
        roles.stop()
    assert [step["step"] for step in steps_of(folder)] == list(range(1, STEPS + 1))
    assert '"event": "resumed"' in (folder / "logs" / "learner.jsonl").read_text()
    said = replay(folder, tmp_path / "same", capsys)
    assert f"optimiser state: the same as in step-{STEPS:06d}, bit for bit" in said
    assert "weights: the same 355456 as the run's, bit for bit" in said
    for name in ("loss", "grad_norm", "trained_tokens"):
        assert [s[name] for s in steps_of(tmp_path / "same")] == [s[name] for s in steps_of(folder)], name
    assert processes_of(folder) == []


def replay(run: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Replays in this process; returns what it says."""
    threads = torch.get_num_threads()
    try:
        assert start(argparse.Namespace(run=run, set=[], ranks=None, out=out, verbose=False)) == 0
    finally:
        torch.set_num_threads(threads)
    return capsys.readouterr().out

"""Faults on real processes: nothing is lost, nothing counts twice, and the archive leads to the same batches.

Each test is one run; what is asserted of every one is `Run.check`.
"""

import re
from pathlib import Path

import pytest

from tests.chaos import faults
from tests.chaos.rounds import draw
from tests.chaos.run import Fault, play
from tests.processes import processes_of

SEED = 1


async def test_a_short_schedule(tmp_path: Path):
    """An actor, the server, the learner, its disk, one after another."""
    run = await play(
        tmp_path,
        [
            faults.actor_killed_before_its_acknowledgement,
            faults.server_killed,
            faults.learner_killed_before_the_acknowledgement,
            faults.disk_full,
        ],
        SEED,
        steps=24,
    )
    assert len(run.logs("took over the weight log")) == 2
    assert processes_of(tmp_path) == []


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_actors_that_die_or_sleep_lose_nothing(tmp_path: Path):
    run = await play(
        tmp_path,
        [
            faults.actor_killed_in_a_rollout,
            faults.actor_killed_before_its_acknowledgement,
            faults.actor_suspended_beyond_its_lease,
        ],
        SEED,
        steps=16,
    )
    # What was answered twice counted once.
    assert run.logs("result ignored")


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_a_killed_server_and_a_killed_learner_go_on(tmp_path: Path):
    run = await play(tmp_path, [faults.server_killed, faults.learner_killed_after_a_step], SEED, steps=12)
    assert run.logs("resumed") or len(run.logs("took over the weight log")) == 1


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    "fault",
    [
        faults.actors_come_and_go,
        faults.sandbox_killed,
        faults.bus_killed,
        faults.server_silent,
        faults.server_unreachable,
        faults.learner_killed_before_the_acknowledgement,
        faults.second_learner,
        faults.disk_full,
        faults.learner_told_to_stop,
        faults.bus_hangs_while_the_learner_starts,
        faults.second_server,
        faults.bus_disk_full,
        faults.bus_loses_its_last_seconds,
        faults.bus_loses_everything,
        faults.block_of_the_store_damaged,
    ],
    ids=lambda fault: fault.__name__,
)
async def test_alone(fault: Fault, tmp_path: Path):
    await play(tmp_path, [fault], SEED)


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_a_random_round(tmp_path: Path):
    await play(tmp_path, draw(seed=SEED, faults=3), SEED)


def test_a_schedule_follows_from_its_seed():
    assert draw(seed=5, faults=4) == draw(seed=5, faults=4)
    assert len({tuple(draw(seed, faults=4)) for seed in range(50)}) > 40
    assert {fault for seed in range(200) for fault in draw(seed, faults=4)} == set(faults.ALL)


def test_every_fault_is_documented():
    names = {re.sub("_", " ", fault.__name__) for fault in faults.ALL}
    text = (Path(__file__).parents[2] / "docs" / "faults.md").read_text()
    assert names <= set(re.findall(r"`([a-z ]+)`", text))

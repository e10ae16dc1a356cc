"""The batches to which an archive leads, and who may write one."""

import asyncio
import random
from pathlib import Path

import pytest

from bus.connection import BusError
from bus.messages import Failure
from configs.schema import FiltersConfig
from learner.folder_lock import sole_learner
from learner.tickets.archive import Archive, read_archive
from learner.tickets.audit import batches_of
from learner.tickets.filters import Filters
from learner.tickets.ledger import Ledger


def failure(ticket: int) -> Failure:
    return Failure(
        ticket=ticket, group=(ticket - 1) // 2, reason="r", attempts=1, actor="a", published_at=float(ticket)
    )


def new_ledger() -> Ledger:
    return Ledger(2, 2, 1, 10, Filters(FiltersConfig(no_signal=False), group_relative=True))


def test_an_archive_leads_to_the_same_batches_again(tmp_path: Path):
    rng, ledger, archive = random.Random(3), new_ledger(), Archive(tmp_path)
    open_tickets: list[int] = []
    digests, sequence = [], 0
    for step in range(10):
        open_tickets += [ticket for group in ledger.admit(step) for ticket in ledger.tickets(group)]
        while ledger.ready(step) is None:
            ticket = open_tickets.pop(rng.randrange(len(open_tickets)))
            sequence += 1
            assert ledger.accept(sequence, failure(ticket)) is None
            archive.append(step, sequence, failure(ticket))
        digests.append(ledger.take(step).digest)
    assert [batch.digest for batch in batches_of(read_archive(tmp_path), new_ledger())] == digests
    assert len(set(digests)) == 10


def test_an_archive_that_holds_a_result_twice_is_refused():
    with pytest.raises(ValueError, match="answers ticket 1: already answered"):
        list(batches_of([(1, failure(1)), (2, failure(1))], new_ledger()))


async def test_a_second_learner_waits_for_the_first_and_names_it(tmp_path: Path):
    async with sole_learner(tmp_path, 1.0):
        with pytest.raises(BusError, match=r"another learner still works on .* \(process \d+ on "):
            async with sole_learner(tmp_path, 0.3):
                pass
        waiting = asyncio.create_task(enter(tmp_path))
        await asyncio.sleep(0.3)
        assert not waiting.done()
    await asyncio.wait_for(waiting, 60)


async def enter(folder: Path) -> None:
    async with sole_learner(folder, 10.0):
        pass

"""Tickets on a real server: leases, hand-backs, what is damaged, and what is gone without a usable result."""

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest

from actors.leases import FAILURES, LeasedTicket, TicketSource
from bus.codec import decode
from bus.connection import Bus, open_bus
from bus.log_reader import LogReader
from bus.messages import Failure, Ticket
from bus.server import embedded_server
from bus.streams import create_streams
from configs.bus import BusConfig
from configs.loading import load_config
from configs.schema import FiltersConfig, RolloutConfig
from configs.tasks import GradingConfig
from learner.tickets import lost
from learner.tickets.dispatcher import Dispatcher
from learner.tickets.filters import Filters
from learner.tickets.ledger import Ledger
from learner.tickets.lost import MAX_ISSUES, LostTickets
from tasks.problems import ProblemOrder, load_problems

CONFIG = load_config("tiny", ["learner.batch_groups=2", "learner.group_size=2", "learner.steps=1"])


def ticket(number: int) -> Ticket:
    return Ticket(
        number=number, group=0, sample=number - 1, problem_id="p", problem="1+1=", answer="2",
        template="{problem}", chat=False, grading=GradingConfig(), rollout=RolloutConfig(), min_version=0, issued_at=0.0,
    )  # fmt: skip


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.02)


async def pull(source: TicketSource, count: int = 1) -> list[LeasedTicket]:
    """The next `count` tickets."""
    held: list[LeasedTicket] = []
    async with asyncio.timeout(120):
        while len(held) < count:
            held += await source.pull(count - len(held), 0.5)
    return held


async def messages(bus: Bus, kind: str) -> int:
    return (await bus.js.stream_info(bus.names.stream(kind))).state.messages


async def is_empty(bus: Bus, kind: str) -> None:
    async with asyncio.timeout(60):
        while await messages(bus, kind):
            await asyncio.sleep(0.05)


async def test_a_lease_that_nobody_renewed_is_known_to_have_lapsed(bus: Bus):
    await create_streams(bus.js, bus.names, bus.config, lease_s=0.5)
    await bus.publish(bus.names.tickets, ticket(1))
    source = TicketSource(bus)
    [held] = await pull(source)
    await until(lambda: held.lapsed)
    # It goes to whoever asks.
    [again] = await pull(source)
    assert (again.failures, again.ticket.number) == (1, 1)
    await again.done()
    await is_empty(bus, "TICKETS")


@pytest.mark.slow
async def test_a_lease_is_renewed_while_the_ticket_is_worked_on(bus: Bus):
    await create_streams(bus.js, bus.names, bus.config, lease_s=6)
    await bus.publish(bus.names.tickets, ticket(1))
    source = TicketSource(bus)
    [held] = await pull(source)
    async with held.kept_alive():
        await asyncio.sleep(8.0)
        assert not held.lapsed
        assert await source.pull(1, 0.5) == []


async def test_a_run_that_goes_on_with_other_leases_has_them(bus: Bus):
    for lease_s in (50, 70):
        await create_streams(bus.js, bus.names, bus.config, lease_s=lease_s)
        await bus.publish(bus.names.tickets, ticket(1))
        [held] = await pull(TicketSource(bus))
        assert held._lease_s == lease_s
        await held.done()


async def test_hand_backs_do_not_count_and_lapses_before_them_do(bus: Bus):
    await create_streams(bus.js, bus.names, bus.config, lease_s=0.5)
    await bus.publish(bus.names.tickets, ticket(1))
    source = TicketSource(bus)
    [held] = await pull(source)
    await until(lambda: held.lapsed)
    [held] = await pull(source)
    await create_streams(bus.js, bus.names, bus.config, lease_s=60)
    for _ in range(3):
        assert held.failures == 1
        await held.hand_back()
        [held] = await pull(TicketSource(bus))
    await held.done()
    await is_empty(bus, "RETRIES")
    await is_empty(bus, "TICKETS")


async def test_a_damaged_ticket_is_shown_to_people_and_stops_nobody(bus: Bus):
    await bus.js.publish(bus.names.tickets, b"\xc1")
    await bus.publish(bus.names.tickets, ticket(2))
    source = TicketSource(bus)
    [held] = await pull(source)
    assert held.ticket.number == 2
    await held.done()
    await is_empty(bus, "TICKETS")
    assert await messages(bus, "DEADLETTERS") == 1


class Learner:
    """The parts of one that have to do with tickets."""

    def __init__(self, bus: Bus, *, admits: bool = True) -> None:
        self.bus = bus
        self.ledger = Ledger(2, 2, 0, 1, Filters(FiltersConfig(), group_relative=False))
        if admits:
            self.ledger.admit(0)
        problems = ProblemOrder(load_problems(CONFIG.tasks.problems, 0), 0)
        self.dispatcher = Dispatcher(bus, CONFIG, "{problem}", problems, self.ledger)
        self.lost = LostTickets(bus, self.ledger, self.dispatcher, "learner")
        self.reader = LogReader(bus, bus.names.stream("RESULTS"), bus.names.results)

    async def read(self, count: int) -> list[Failure]:
        """Takes `count` results of the log, those that do not decode as nothing."""
        read: list[Failure] = []
        async with asyncio.timeout(60):
            while count:
                for sequence, data in await self.reader.read(count, 0.5):
                    count -= 1
                    self.ledger.position = sequence
                    if data != b"unusable":
                        read.append(decode(data, Failure))
                        self.ledger.accept(sequence, read[-1])
        return read


def answer(bus: Bus, number: int) -> Failure:
    return Failure(
        ticket=number,
        group=(number - 1) // 2,
        reason="test",
        attempts=1,
        actor="a",
        published_at=0.0,
        run=bus.address.run,
    )


async def test_a_ticket_that_is_gone_without_a_usable_result_is_issued_again(bus: Bus):
    learner = Learner(bus)
    await learner.dispatcher.issue()
    source = TicketSource(bus)
    held = {leased.ticket.number: leased for leased in await pull(source, 4)}
    # 1 has a result; 2 an unusable one; 3 is handed back; 4 is still held.
    await bus.publish(bus.names.results, answer(bus, 1))
    await bus.js.publish(bus.names.results, b"unusable")
    await held[1].done()
    await held[2].done()
    await held[3].hand_back()
    while await messages(bus, "TICKETS") > 1:
        await asyncio.sleep(0.02)
    for _ in range(3):
        # What the log may still answer is not lost.
        await learner.lost.look_now()
    assert await messages(bus, "RETRIES") == 1
    await learner.read(2)
    await learner.lost.look_now()
    assert await messages(bus, "RETRIES") == 2
    retried = {leased.ticket.number: leased for leased in await pull(source, 2)}
    assert retried.keys() == {2, 3}
    assert retried[2].ticket == held[2].ticket.model_copy(update={"issued_at": retried[2].ticket.issued_at})
    for number, leased in (retried | {4: held[4]}).items():
        await bus.publish(bus.names.results, answer(bus, number))
        await leased.done()
    await learner.read(3)
    assert learner.ledger.unanswered() == []
    await learner.lost.look_now()
    await is_empty(bus, "RETRIES")


async def test_what_lies_under_a_number_is_looked_at(bus: Bus):
    """Garbage, and another ticket, take the numbers of two tickets before they are issued; no actor is there to notice."""
    await bus.js.publish(bus.names.tickets, b"garbage")
    await bus.publish(bus.names.tickets, ticket(7))
    learner = Learner(bus)
    await learner.dispatcher.issue()
    assert await messages(bus, "TICKETS") == 4
    await bus.js.publish(bus.names.retry("foo"), b"")
    await learner.lost.look_now()
    await learner.lost.look_now()
    await taken_off(bus, learner, "foo")
    assert await messages(bus, "RETRIES") == 2
    source = TicketSource(bus)
    got = [leased.ticket.number for leased in await pull(source, 2)]
    assert sorted(got) == [1, 2]


async def taken_off(bus: Bus, learner: Learner, *names: str) -> None:
    """Looks for lost tickets until no retry is left under any of `names`: a slow server may not give all at one look."""
    left, stream = {bus.names.retry(name) for name in names}, bus.names.stream("RETRIES")
    async with asyncio.timeout(60):
        while left & set((await bus.js.stream_info(stream, subjects_filter=">")).state.subjects or ()):
            await learner.lost.look_now()


async def test_retries_that_nobody_can_work_on_are_taken_off(bus: Bus):
    """Actors may write there: what is no open ticket goes, and an open one that is not as it was issued is replaced."""
    learner = Learner(bus)
    await learner.dispatcher.issue()
    source = TicketSource(bus)
    held = {leased.ticket.number: leased for leased in await pull(source, 4)}
    await bus.publish(bus.names.results, answer(bus, 1))
    await learner.read(1)
    # 1 is answered; 2 asks for weights that never come; 3 is handed back as it was; 9 was never issued.
    for number, version in ((1, 0), (2, 10**6), (9, 0)):
        forged = held.get(number, held[1]).ticket.model_copy(update={"number": number, "min_version": version})
        await bus.publish(bus.names.retry(number), forged)
    # The server takes a subject that is a pattern: of all the others, were it taken for a filter.
    odd = {"foo": b"", "0": b"\xc1", "9" * 20: b"", "*": b"x", ">": b"x"}
    for name, data in odd.items():
        await bus.client.publish(bus.names.retry(name), data, headers={"Status": "408"})
    await held[3].hand_back()
    for number in (1, 2):
        await held[number].done()
    async with asyncio.timeout(60):
        while await messages(bus, "RETRIES") < 9 or await messages(bus, "TICKETS") != 1:
            await asyncio.sleep(0.02)
    # By what was left when the last of them was gone: the forged 2 had gone before.
    await taken_off(bus, learner, "1", "9", *odd)
    await learner.lost.look_now()
    await learner.lost.look_now()
    assert await messages(bus, "RETRIES") == 2
    got = {leased.ticket.number: leased.ticket for leased in await pull(source, 2)}
    assert {number: ticket.min_version for number, ticket in got.items()} == {2: 0, 3: 0}


async def test_a_flood_of_retries_costs_no_ticket(bus: Bus, monkeypatch: pytest.MonkeyPatch):
    """They are emptied; what was honest is missed, and issued again, as often as that happens."""
    monkeypatch.setattr(lost, "MOST_USELESS", 20)
    learner = Learner(bus)
    await learner.dispatcher.issue()
    source = TicketSource(bus)
    for leased in await pull(source, 4):
        await leased.hand_back()
    await is_empty(bus, "TICKETS")
    for flood in range(MAX_ISSUES + 2):
        for number in range(30):
            await bus.client.publish(bus.names.retry(f"flood-{flood}-{number}"), b"x")
        async with asyncio.timeout(60):
            while await messages(bus, "RETRIES") < 34:
                await asyncio.sleep(0.02)
        await learner.lost.look_now()
        assert await messages(bus, "RETRIES") == 0
        await learner.lost.look_now()
        await learner.lost.look_now()
        assert await messages(bus, "RETRIES") == 4
    assert sorted(leased.ticket.number for leased in await pull(source, 4)) == [1, 2, 3, 4]
    assert await messages(bus, "RESULTS") == 0


async def test_an_issue_that_the_bus_does_not_take_does_not_count(bus: Bus, monkeypatch: pytest.MonkeyPatch):
    learner = Learner(bus)
    await learner.dispatcher.issue()
    for leased in await pull(TicketSource(bus), 4):
        await leased.done()
    await is_empty(bus, "TICKETS")

    async def away(*_: object) -> int:
        raise TimeoutError

    await learner.lost.look_now()
    with monkeypatch.context() as patch:
        patch.setattr(bus, "publish", away)
        for _ in range(MAX_ISSUES + 2):
            with pytest.raises(TimeoutError):
                await learner.lost.look_now()
    await learner.lost.look_now()
    assert await messages(bus, "RETRIES") == 4


async def test_retries_of_tickets_that_the_learner_will_admit_again_stay(bus: Bus):
    """A learner that goes on from a checkpoint has not admitted yet what the one before it has issued."""
    await Learner(bus).dispatcher.issue()
    held = await pull(TicketSource(bus), 4)
    await held[-1].hand_back()
    await Learner(bus, admits=False).lost.look_now()
    assert await messages(bus, "RETRIES") == 1


async def test_what_others_send_to_an_actor_that_pulls_stops_nobody(bus: Bus):
    """A retry whose header is no number, and a message that is none of the stream's."""
    source = TicketSource(bus)
    await source.pull(1, 0.1)
    await bus.publish(bus.names.retry(1), ticket(1), {FAILURES: "-1e9"})
    await bus.publish(bus.names.retry(2), ticket(2), {FAILURES: "2"})
    subscription = source._retries._subscription
    assert subscription is not None
    await bus.client.publish(subscription._sub.subject.replace("*", "x"), b"foreign")
    got: list[LeasedTicket] = []
    async with asyncio.timeout(60):
        while not got:
            got = await source.pull(5, 0.5)
    assert [(leased.ticket.number, leased.failures) for leased in got] == [(2, 2)]
    async with asyncio.timeout(60):
        while await messages(bus, "DEADLETTERS") != 1:
            await asyncio.sleep(0.05)


async def test_a_ticket_that_never_gets_a_usable_result_ends_as_a_failure(bus: Bus):
    learner = Learner(bus)
    await learner.dispatcher.issue()
    source = TicketSource(bus)
    for leased in await pull(source, 4):
        if leased.ticket.number > 1:
            await bus.publish(bus.names.results, answer(bus, leased.ticket.number))
        await leased.done()
    await is_empty(bus, "TICKETS")
    await learner.read(3)
    for _ in range(MAX_ISSUES):
        await learner.lost.look_now()
        await learner.lost.look_now()
        [leased] = await pull(source)
        assert leased.ticket.number == 1
        await leased.done()
        await is_empty(bus, "RETRIES")
    await learner.lost.look_now()
    await learner.lost.look_now()
    [failure] = await learner.read(1)
    assert (failure.ticket, failure.reason, failure.attempts) == (1, "no usable result", MAX_ISSUES + 1)
    assert learner.ledger.ready(0) == [0, 1]


async def test_an_actor_that_pulls_while_the_bus_is_away_has_no_ticket_go_to_nobody(tmp_path: Path):
    """A request that the client keeps, and sends once it is back, would take tickets for a whole lease."""
    config = BusConfig(timeout_s=2, reconnect_s=60)
    async with contextlib.AsyncExitStack() as server:
        address, _ = await server.enter_async_context(embedded_server(tmp_path, config, "away"))
        async with open_bus(address, config, "a") as bus:
            await create_streams(bus.js, bus.names, config, lease_s=600)
            source = TicketSource(bus)
            assert await source.pull(5, 0.1) == []
            await server.aclose()
            while bus.client.is_connected:
                await asyncio.sleep(0.02)
            for _ in range(3):
                assert await source.pull(5, 0.1) == []
            await server.enter_async_context(embedded_server(tmp_path, config, "away", address, keep_port=True))
            async with asyncio.timeout(60):
                while not bus.client.is_connected:
                    await asyncio.sleep(0.02)
            for number in range(1, 6):
                await bus.publish(bus.names.tickets, ticket(number))
            assert [leased.ticket.number for leased in await pull(source, 5)] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("place", [0.05, 0.5, 0.9])
async def test_a_damaged_block_of_the_ticket_stream_costs_no_ticket(tmp_path: Path, place: float):
    """The server leaves out what it cannot read, up to the stream's end, and may count on where that had been."""
    config = BusConfig(timeout_s=5, reconnect_s=60)
    run = load_config("tiny", ["learner.batch_groups=6", "learner.group_size=2", "learner.steps=4"])
    ledger = Ledger(6, 2, 0, 4, Filters(FiltersConfig(), group_relative=False))
    problems = ProblemOrder(load_problems(run.tasks.problems, 0), 0)
    async with contextlib.AsyncExitStack() as server:
        address, process = await server.enter_async_context(embedded_server(tmp_path, config, "damaged"))
        async with open_bus(address, config, "l") as bus:
            await create_streams(bus.js, bus.names, config, lease_s=600)
            dispatcher = Dispatcher(bus, run, "{problem}", problems, ledger)
            lost = LostTickets(bus, ledger, dispatcher, "learner")
            ledger.admit(0)
            await dispatcher.issue()
            await server.aclose()
            assert process.returncode is not None
            [block] = tmp_path.rglob("*-TICKETS/msgs/1.blk")
            content = bytearray(block.read_bytes())
            begin = int(place * len(content))
            content[begin : begin + 200] = bytes(200)
            block.write_bytes(content)
            await server.enter_async_context(embedded_server(tmp_path, config, "damaged", address, keep_port=True))
            async with asyncio.timeout(60):
                while not bus.client.is_connected:
                    await asyncio.sleep(0.02)
            source = TicketSource(bus)
            held = {leased.ticket.number for leased in await source.pull(12, 1.0)}
            await dispatcher.recover()
            ledger.admit(1)
            await dispatcher.issue()
            lost.hurry()
            async with asyncio.timeout(120):
                while held != set(range(1, 25)):
                    held |= {leased.ticket.number for leased in await source.pull(24, 0.5)}
                    await lost.look_now()
            # In their stream, or among the retries, and their numbers go on.
            assert (await bus.js.stream_info(bus.names.stream("TICKETS"))).state.last_seq == 24

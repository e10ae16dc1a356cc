"""Ways around permissions: a role has the server, or another role, write what it may not write itself."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator

import nats
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from bus.address import BusAddress
from bus.connection import Bus, open_bus
from bus.permissions import ROLES, accounts, permissions
from bus.server import embedded_server
from bus.streams import Names, create_streams
from configs.bus import BusConfig

CONFIG = BusConfig(timeout_s=30, max_results_bytes=64 * 1024**2)
NAMES = Names("forged")
SUBJECTS = {
    "TICKETS": NAMES.tickets,
    "RETRIES": NAMES.retry("x"),
    "RESULTS": NAMES.results,
    "WEIGHTS": NAMES.manifests,
    "METRICS": f"{NAMES.metrics}.learner.x",
    "DEADLETTERS": NAMES.dead_letter("learner"),
    f"KV_{NAMES.run_bucket}": f"$KV.{NAMES.run_bucket}.config",
    f"KV_{NAMES.alive_bucket}": f"$KV.{NAMES.alive_bucket}.learner.x",
    f"KV_{NAMES.holds_bucket}": f"$KV.{NAMES.holds_bucket}.learner.x",
}
"""A subject of every stream."""
UNTRUSTED = [role for role in ROLES if role != "learner"]
REQUESTS = (
    {"seq": 1, "next_by_subj": ">", "batch": 3},
    {"batch": 1, "no_wait": True},
    # A consumer that delivers where its maker wants to write.
    {"stream_name": "x", "config": {"name": "mine", "deliver_subject": NAMES.tickets, "ack_policy": "none"}},
)


def stream(kind: str) -> str:
    return kind if kind.startswith("KV_") else NAMES.stream(kind)


@pytest.fixture(scope="module")
async def bus(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bus]:
    """The master's, of a run whose streams hold one message each."""
    folder = tmp_path_factory.mktemp("forged")
    async with (
        embedded_server(folder / "nats", CONFIG, "forged") as (address, _),
        open_bus(address, CONFIG, "bus") as bus,
    ):
        await create_streams(bus.js, bus.names, CONFIG, lease_s=60)
        for subject in SUBJECTS.values():
            await bus.js.publish(subject, b"the first")
        yield bus


async def held(bus: Bus) -> dict[str, int]:
    """Returns how many messages the streams hold of each subject."""
    found: dict[str, int] = {}
    for kind in SUBJECTS:
        info = await bus.js.stream_info(stream(kind), subjects_filter=">")
        found |= info.state.subjects or {}
    return found


def requests(role: str) -> Iterator[str]:
    """Yields a subject for everything that `role` may publish."""
    for pattern in permissions(NAMES.run, role).publish:
        yield pattern.replace("*", "x").replace(">", "1.1.1.1.1")


async def _ignore(_: Exception) -> None: ...


async def settled(bus: Bus, client: Client) -> None:
    """Returns once the server has done what it was told."""
    await client.flush()
    await bus.client.flush()
    await asyncio.sleep(0.5)
    await bus.client.flush()


@pytest.fixture(params=UNTRUSTED)
async def client(request: pytest.FixtureRequest, bus: Bus) -> AsyncIterator[tuple[str, Client]]:
    """An attacker with one role's credentials, and no client of ours."""
    role = request.param
    client = await nats.connect(bus.address.url, nkeys_seed_str=bus.address.for_role(role).seed, error_cb=_ignore)
    yield role, client
    await client.close()


def foreign(role: str) -> list[str]:
    """Returns the subjects of streams that `role` may not write to."""
    return [subject for subject in SUBJECTS.values() if subject not in set(requests(role))]


async def test_no_answer_is_written_into_a_stream(bus: Bus, client: tuple[str, Client]):
    """The server sends its answer where the request says, and does not ask whether its sender may publish there."""
    role, attacker = client
    before = await held(bus)
    for subject in requests(role):
        for request in REQUESTS:
            for target in foreign(role):
                await attacker.publish(subject, json.dumps(request).encode(), reply=target)
    await settled(bus, attacker)
    after = await held(bus)
    assert {target: after.get(target) for target in foreign(role)} == {
        target: before.get(target) for target in foreign(role)
    }


@pytest.mark.parametrize("role", [role for role in UNTRUSTED if role != "actor"])
async def test_no_answer_acknowledges_a_ticket(own_run: BusAddress, role: str):
    """The subject of an acknowledgement is no secret, and an answer without content would be one."""
    names = Names(own_run.run)
    async with open_bus(own_run, CONFIG, "bus") as bus, open_bus(own_run.for_role("actor"), CONFIG, "actor") as actor:
        await bus.js.publish(names.tickets, b"a ticket")
        tickets = await actor.js.pull_subscribe_bind("actors", names.stream("TICKETS"))
        [held] = await tickets.fetch(1, timeout=30)
        attacker = await nats.connect(own_run.url, nkeys_seed_str=own_run.for_role(role).seed, error_cb=_ignore)
        for pattern in permissions(names.run, role).publish:
            for request in (b"", b'{"seq": 99}'):
                await attacker.publish(pattern.replace("*", "x"), request, reply=held.reply)
        await settled(bus, attacker)
        assert (await bus.js.consumer_info(names.stream("TICKETS"), "actors")).num_ack_pending == 1
        assert (await bus.js.stream_info(names.stream("TICKETS"))).state.messages == 1
        await attacker.close()


async def test_no_trace_is_written_into_a_stream(bus: Bus, client: tuple[str, Client]):
    """The server reports the way of a message to the subject that a header names."""
    role, attacker = client
    before = await held(bus)
    for subject in requests(role):
        for target in foreign(role):
            for only in ("true", "false"):
                headers = {"Nats-Trace-Dest": target, "Nats-Trace-Only": only}
                await attacker.publish(subject, b"{}", headers=headers)
    await settled(bus, attacker)
    after = await held(bus)
    assert {target: after.get(target) for target in foreign(role)} == {
        target: before.get(target) for target in foreign(role)
    }


async def test_no_message_takes_others_with_it(bus: Bus, client: tuple[str, Client]):
    """A stream that allows roll-ups forgets everything else when a message asks for it."""
    role, attacker = client
    before = await held(bus)
    for subject in requests(role):
        for extent in ("all", "sub"):
            await attacker.publish(subject, b"{}", headers={"Nats-Rollup": extent})
    await settled(bus, attacker)
    after = await held(bus)
    assert {subject: after.get(subject) for subject in before} == before


async def test_a_sandbox_answers_what_it_was_asked_and_nothing_else(bus: Bus):
    """Neither an inbox that it guesses, nor a second time."""
    sandbox = await nats.connect(bus.address.url, nkeys_seed_str=bus.address.for_role("sandbox").seed, error_cb=_ignore)
    actor = await nats.connect(
        bus.address.url,
        nkeys_seed_str=bus.address.for_role("actor").seed,
        error_cb=_ignore,
        inbox_prefix="_INBOX.actor",
    )
    heard: list[bytes] = []
    told: list[str] = []

    async def hear(message: Msg) -> None:
        if message.data:
            heard.append(message.data)

    async def answer(message: Msg) -> None:
        told.append(message.reply)
        for text in (b"first", b"second"):
            await message.respond(text)

    await actor.subscribe("_INBOX.actor.>", cb=hear)
    await sandbox.subscribe(NAMES.execution, cb=answer)
    await sandbox.flush()
    async with asyncio.timeout(60):
        # Nobody is there until the server has the subscription.
        while not told:
            await actor.publish(NAMES.execution, b"code", reply="_INBOX.actor.mine")
            await asyncio.sleep(0.1)
        while not heard:
            await asyncio.sleep(0.01)
    # It does not learn where the actor listens.
    assert not told[0].startswith("_INBOX")
    for guess in ("_INBOX.actor.mine", told[0], told[0][:-1] + "x"):
        await sandbox.publish(guess, b"forged")
    await settled(bus, sandbox)
    assert heard == [b"first"] * len(told)
    await sandbox.close()
    await actor.close()


def test_no_run_has_an_account_of_another():
    """Also where its id looks like one."""
    names = [set(accounts(run, {role: "UX" for role in ("bus", *ROLES)})) for run in ("a", "a-actor", "actor")]
    assert sum(len(each) for each in names) == len(set.union(*names))

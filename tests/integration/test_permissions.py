"""Who may do what, asked of a real server: every role does its whole job, and nothing else."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import nats
import nats.errors
import pytest

from actors.leases import TicketSource
from bus.address import AddressError, BusAddress, run_folder
from bus.connection import AccessDeniedError, open_bus
from bus.log_reader import LogReader
from bus.messages import Failure
from bus.metrics import MetricsWriter, follow_metrics
from bus.permissions import ROLES
from bus.presence import Announcer, who_is_alive
from bus.server import embedded_server
from bus.streams import Names, create_streams
from configs.bus import BusConfig, WeightsConfig
from configs.loading import load_config
from configs.schema import FiltersConfig, SandboxConfig
from learner.tickets.dispatcher import Dispatcher
from learner.tickets.filters import Filters
from learner.tickets.ledger import Ledger
from sandbox.client import SandboxClient, statistics
from sandbox.jail import Jail
from sandbox.pool import Pool
from sandbox.service import SandboxService
from tasks.problems import ProblemOrder, load_problems
from weights.codec import Layout
from weights.follower import WeightFollower
from weights.writer import WeightWriter

CONFIG = BusConfig(timeout_s=30, max_results_bytes=64 * 1024**2)
NAMES = Names("guarded")
API = "$JS.API"
EVERYONE = set(ROLES)


def stream(kind: str) -> str:
    return NAMES.stream(kind)


PUBLISH = {
    "issue a ticket": (NAMES.tickets, {"learner"}),
    "answer a ticket": (NAMES.results, {"actor", "learner"}),
    "offer a ticket again": (NAMES.retry(1), {"actor", "learner"}),
    "take one that is offered again": (f"{API}.CONSUMER.MSG.NEXT.{stream('RETRIES')}.actors", {"actor"}),
    "write a manifest": (NAMES.manifests, {"learner"}),
    "write a chunk": (NAMES.chunks("0.1", "delta", "00"), {"learner"}),
    "take a ticket": (f"{API}.CONSUMER.MSG.NEXT.{stream('TICKETS')}.actors", {"actor"}),
    "acknowledge a ticket": (f"$JS.ACK.{stream('TICKETS')}.actors.1.1.1.1.1", {"actor"}),
    "read tickets aside": (f"{API}.CONSUMER.CREATE.{stream('TICKETS')}.spy.{NAMES.tickets}", set()),
    "look a ticket up": (f"{API}.STREAM.MSG.GET.{stream('TICKETS')}", {"learner"}),
    "read results": (f"{API}.CONSUMER.CREATE.{stream('RESULTS')}.reader.{NAMES.results}", {"learner"}),
    "look a result up": (f"{API}.DIRECT.GET.{stream('RESULTS')}", set()),
    "purge tickets": (f"{API}.STREAM.PURGE.{stream('TICKETS')}", {"learner"}),
    "purge metrics": (f"{API}.STREAM.PURGE.{stream('METRICS')}", {"learner"}),
    "purge results": (f"{API}.STREAM.PURGE.{stream('RESULTS')}", {"learner"}),
    "read weights": (f"{API}.CONSUMER.CREATE.{stream('WEIGHTS')}.r.{NAMES.manifests}", EVERYONE - {"sandbox"}),
    "purge weights": (f"{API}.STREAM.PURGE.{stream('WEIGHTS')}", {"learner"}),
    "see who reads weights": (f"{API}.CONSUMER.LIST.{stream('WEIGHTS')}", {"learner"}),
    "read metrics": (f"{API}.CONSUMER.CREATE.{stream('METRICS')}.r.{NAMES.metrics}.*.*", {"learner", "observer"}),
    "look a metric up": (f"{API}.STREAM.MSG.GET.{stream('METRICS')}", {"learner", "observer"}),
    "read dead letters": (f"{API}.CONSUMER.CREATE.{stream('DEADLETTERS')}.r.{NAMES.dead_letters}", {"observer"}),
    "measure as the learner": (f"{NAMES.metrics}.learner.x", {"learner"}),
    "measure as an actor": (f"{NAMES.metrics}.actor.x", {"actor"}),
    "measure as a sandbox": (f"{NAMES.metrics}.sandbox.x", {"sandbox"}),
    "be alive as the learner": (f"$KV.{NAMES.alive_bucket}.learner.x", {"learner"}),
    "be alive as an actor": (f"$KV.{NAMES.alive_bucket}.actor.x", {"actor"}),
    "be alive as a sandbox": (f"$KV.{NAMES.alive_bucket}.sandbox.x", {"sandbox"}),
    "change the configuration": (f"$KV.{NAMES.run_bucket}.config", set()),
    "say what the model is": (f"$KV.{NAMES.run_bucket}.model", {"learner"}),
    "see who is alive": (f"{API}.STREAM.MSG.GET.KV_{NAMES.alive_bucket}", EVERYONE - {"sandbox"}),
    "read presence aside": (f"{API}.CONSUMER.CREATE.KV_{NAMES.alive_bucket}", set()),
    "ask for an execution": (NAMES.execution, {"actor", "evaluator"}),
    "cancel an execution": (f"{NAMES.execution}.cancel", {"actor", "evaluator"}),
    "answer an actor": ("_INBOX.actor.x", {"sandbox"}),
    "answer the learner": ("_INBOX.learner.x", set()),
    "ask for a snapshot": (NAMES.snapshot_requests, {"actor", "evaluator", "observer"}),
    "dead-letter a message": (NAMES.dead_letters, EVERYONE - {"sandbox"}),
    "make a stream": (f"{API}.STREAM.CREATE.mine", set()),
    "change a stream": (f"{API}.STREAM.UPDATE.{stream('RESULTS')}", set()),
    "delete a stream": (f"{API}.STREAM.DELETE.{stream('TICKETS')}", set()),
    "list the streams": (f"{API}.STREAM.LIST", set()),
    "write to another run": ("zerotir.other.results", set()),
    "write to nowhere": ("anything", set()),
}
SUBSCRIBE = {
    "hear executions": (NAMES.execution, {"sandbox"}),
    "hear tickets": (NAMES.tickets, set()),
    "hear results": (NAMES.results, set()),
    "hear metrics": (f"{NAMES.metrics}.*.*", set()),
    "hear manifests": (NAMES.manifests, EVERYONE - {"sandbox"}),
    "hear presence": (f"$KV.{NAMES.alive_bucket}.>", set()),
    "hear requests for snapshots": (NAMES.snapshot_requests, {"learner"}),
    "hear everything": (">", set()),
    "hear the run": (f"{NAMES.root}.>", set()),
    "hear answers to all": ("_INBOX.>", set()),
    "hear answers to actors": ("_INBOX.actor.>", {"actor"}),
}


@pytest.fixture(scope="module")
async def master(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[BusAddress]:
    """A run on a server of its own."""
    folder = tmp_path_factory.mktemp("guarded")
    async with embedded_server(folder / "nats", CONFIG, "guarded") as (address, _):
        async with open_bus(address, CONFIG, "bus") as bus:
            await create_streams(bus.js, bus.names, CONFIG, lease_s=60)
            await (await bus.js.key_value(NAMES.run_bucket)).put("config", b"fingerprint")
        address.write_all(folder)
        yield address
        for path in (folder / "nats" / "server.log", folder / "nats" / "server.conf"):
            assert not any(address.for_role(role).seed in path.read_text() for role in ("bus", *ROLES)), path


@pytest.mark.parametrize("role", ROLES)
async def test_a_role_may_do_what_is_its_own_and_nothing_else(master: BusAddress, role: str):
    refused: set[str] = set()

    async def note(error: Exception) -> None:
        refused.add(str(error).partition("violation for ")[2])

    client = await nats.connect(master.url, nkeys_seed_str=master.for_role(role).seed, error_cb=note)
    for subject, _ in PUBLISH.values():
        await client.publish(subject, b"{}", reply="nowhere")
    for subject, _ in SUBSCRIBE.values():
        await (await client.subscribe(subject)).unsubscribe()
    forbidden = {f'publish to "{subject}"' for subject, allowed in PUBLISH.values() if role not in allowed}
    forbidden |= {f'subscription to "{subject}"' for subject, allowed in SUBSCRIBE.values() if role not in allowed}
    wanted = {what.lower() for what in forbidden}
    async with asyncio.timeout(60):
        while not wanted <= refused:
            await asyncio.sleep(0.05)
    # The server reports a refusal a little after it answers a ping.
    await client.flush()
    await asyncio.sleep(0.3)
    await client.close()
    assert refused == wanted


async def test_a_stranger_gets_nothing(master: BusAddress):
    quiet = {"allow_reconnect": False, "connect_timeout": 2, "error_cb": _ignore}
    for credentials in ({}, {"user": "bus", "password": ""}, {"nkeys_seed_str": BusAddress.new("guarded", "").seed}):
        with pytest.raises(nats.errors.Error, match=r"(?i)authorization"):
            await nats.connect(master.url, **credentials, **quiet)


async def _ignore(_: Exception) -> None: ...


async def test_what_is_refused_ends_the_role_at_once_and_says_what_it_was(master: BusAddress):
    async def issue() -> None:
        async with open_bus(master.for_role("actor"), CONFIG, "actor") as bus, asyncio.TaskGroup() as group:
            # Whatever the role is waiting for meanwhile.
            group.create_task(asyncio.sleep(3600))
            await bus.publish(NAMES.tickets, failure(1))

    async def listen() -> None:
        async with open_bus(master.for_role("sandbox"), CONFIG, "sandbox") as bus:
            await bus.client.subscribe(NAMES.results)
            await asyncio.sleep(3600)

    with pytest.raises(AccessDeniedError, match=r"role actor of run guarded.*zerotir\.guarded\.tickets"):
        await issue()
    with pytest.raises(AccessDeniedError, match="subscription"):
        await listen()


def failure(ticket: int) -> Failure:
    return Failure(ticket=ticket, group=0, reason="test", attempts=1, actor="a", published_at=0.0)


async def test_a_time_out_of_the_caller_is_not_taken_for_a_refusal(master: BusAddress):
    with pytest.raises(TimeoutError):
        async with open_bus(master.for_role("actor"), CONFIG, "actor"):
            raise TimeoutError


async def test_every_role_does_its_whole_job(own_run: BusAddress):
    """Weights, a ticket, an execution, a result, metrics and presence, by the code that roles run."""
    names = Names(own_run.run)
    config = load_config("tiny", ["learner.batch_groups=1", "learner.steps=1"])
    settings = SandboxConfig(cgroups="prefer", warm=1, warm_with_packages=0, concurrency=1)
    async with (
        open_bus(own_run, CONFIG, "bus") as bus,
        open_bus(own_run.for_role("learner"), CONFIG, "learner") as learner,
        open_bus(own_run.for_role("actor"), CONFIG, "actor") as actor,
        open_bus(own_run.for_role("sandbox"), CONFIG, "sandbox") as sandbox,
        open_bus(own_run.for_role("evaluator"), CONFIG, "evaluator") as evaluator,
        open_bus(own_run.for_role("observer"), CONFIG, "observer") as observer,
        Pool(Jail(settings)) as pool,
    ):
        await (await bus.js.key_value(names.run_bucket)).put("config", b"fingerprint")
        service = SandboxService(sandbox.client, names.execution, pool, settings, "s1")
        await service.start()
        for bus, role in ((learner, "learner"), (actor, "actor"), (sandbox, "sandbox"), (evaluator, "evaluator")):
            await bus.require_streams()
            assert (await (await bus.js.key_value(names.run_bucket)).get("config")).value == b"fingerprint"
            await Announcer(bus, role, role).say("ready")
            await MetricsWriter(bus, role, role).write({"value": 1.0})

        writer = WeightWriter(learner, WeightsConfig())
        await writer.open()
        await writer.publish(0, writer.spare_state(Layout.of([("w", "float32", (4,), 16)])))
        await writer.snapshot()
        for bus in (actor, evaluator, observer, learner):
            follower = WeightFollower(bus)
            assert (await follower.advance(10)) is not None
            if bus is not learner:
                await follower._ask_for_snapshot(1)

        ledger = Ledger(1, 4, 0, 1, Filters(FiltersConfig(), group_relative=True))
        ledger.admit(0)
        problems = ProblemOrder(load_problems(config.tasks.problems, 0), 0)
        await Dispatcher(learner, config, "{problem}", problems, ledger).issue()
        tickets = TicketSource(actor)
        [first, second] = (await tickets.pull(2, 5.0)) or (await tickets.pull(2, 5.0))
        for bus in (actor, evaluator):
            result = await SandboxClient(bus.client, names.execution, settings).execute("print(6 * 7)", 5.0)
            assert result.stdout == "42\n"
        await actor.publish_until_stored(names.results, failure(1), 5.0)
        await first.done()
        await second.hand_back()
        for bus in (actor, learner, evaluator, observer):
            await bus.dead_letter(names.stream("RESULTS"), 1, b"", "a test")

        reader = LogReader(learner, names.stream("RESULTS"), names.results)
        assert len(await reader.read(10, 5.0)) == 1
        await reader.exhausted()
        await reader.close()
        await learner.js.purge_stream(names.stream("RESULTS"), seq=2)
        await learner.js.purge_stream(names.stream("WEIGHTS"), seq=1)

        for bus in (observer, learner):
            seen = set()
            async for _, metrics in follow_metrics(bus):
                seen.add(metrics.role)
                if len(seen) == 4:
                    break
        assert [presence.role for presence in await who_is_alive(observer)] == sorted(EVERYONE - {"observer"})
        assert len(await who_is_alive(learner)) == 4
        [served] = await statistics(observer.client, names.execution)
        assert served["executions"] == 2
        for kind in ("TICKETS", "RESULTS", "WEIGHTS", "METRICS", "DEADLETTERS"):
            await observer.js.stream_info(names.stream(kind))
        await LogReader(observer, names.stream("METRICS"), f"{names.metrics}.learner.*").read(1, 1.0)
        letters = LogReader(observer, names.stream("DEADLETTERS"), names.dead_letters)
        found = 0
        async with asyncio.timeout(60):
            while found < 4:  # A read gives what has come so far.
                found += len(await letters.read(10, 5.0))
        for bus, role in ((learner, "learner"), (actor, "actor"), (evaluator, "evaluator")):
            await Announcer(bus, role, role).leave()
        await service.drain(1.0)


def test_each_role_has_a_file_of_its_own_that_gives_nothing_else_away(tmp_path: Path):
    master = BusAddress.new("r", "nats://127.0.0.1:1")
    master.write_all(tmp_path)
    files = [tmp_path / "bus.json", *(tmp_path / "credentials" / f"{role}.json" for role in ROLES)]
    assert {os.stat(path).st_mode & 0o777 for path in files} == {0o600}
    assert len({BusAddress.read(path).seed for path in files}) == len(files)
    actor = BusAddress.read(tmp_path / "credentials" / "actor.json")
    assert actor == BusAddress.read(tmp_path / "bus.json").for_role("actor")
    with pytest.raises(AddressError, match="role actor"):
        actor.for_role("learner")
    assert master.seed not in repr(master)
    assert run_folder(files[0]) == run_folder(files[1]) == tmp_path.resolve()


def test_an_address_that_is_not_usable_is_explained_without_its_secret(tmp_path: Path):
    path = tmp_path / "bus.json"
    with pytest.raises(AddressError, match="zerotir up"):
        BusAddress.read(path)
    seed = BusAddress.new("r", "").seed
    for text in ("{}", "not JSON", f'{{"run": "r", "url": "", "role": "bus", "seed": "{seed[:-4]}"}}'):
        path.write_text(text)
        with pytest.raises(AddressError, match=r"usable bus\.json") as caught:
            BusAddress.read(path)
        assert seed[:-4] not in str(caught.value)

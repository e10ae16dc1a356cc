"""Who may do what, asked of a real server: every role does its whole job, and nothing else.

Every role tries everything: every request to JetStream with every stream, every subject of the run. What the server should
say to it is written down here once more, from what a role is for.
"""

import asyncio
import contextlib
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


STREAMS = {
    **{kind: NAMES.stream(kind) for kind in ("TICKETS", "RETRIES", "RESULTS", "WEIGHTS", "METRICS", "DEADLETTERS")},
    "RUN": f"KV_{NAMES.run_bucket}",
    "ALIVE": f"KV_{NAMES.alive_bucket}",
    "HOLDS": f"KV_{NAMES.holds_bucket}",
}
ON_STREAMS = [
    f"STREAM.{verb}"
    for verb in (
        *("CREATE", "UPDATE", "INFO", "DELETE", "PURGE", "SNAPSHOT", "RESTORE", "MSG.GET", "MSG.DELETE", "CANCEL_MOVE"),
        *("PEER.REMOVE", "PEER.EVACUATE", "LEADER.STEPDOWN"),
    )
]
ON_STREAMS += ["DIRECT.GET", "CONSUMER.CREATE", "CONSUMER.LIST", "CONSUMER.NAMES"]
ON_CONSUMERS = [
    f"CONSUMER.{verb}"
    for verb in (
        *("CREATE", "DURABLE.CREATE", "INFO", "DELETE", "MSG.NEXT", "PAUSE", "RESET", "UNPIN", "LEADER.STEPDOWN"),
    )
]
ON_THE_SERVER = (
    *("INFO", "STREAM.LIST", "STREAM.NAMES", "META.LEADER.STEPDOWN", "META.RESCUE", "SERVER.REMOVE", "SERVER.EVACUATE"),
    *("ACCOUNT.PURGE.x", "ACCOUNT.STREAM.MOVE.x.y", "ACCOUNT.STREAM.CANCEL_MOVE.x.y"),
)
"""All requests that nats-server takes for JetStream (2.15)."""
VERBS = {
    **{f"{verb} {kind}": f"{API}.{verb}.{stream}" for verb in ON_STREAMS for kind, stream in STREAMS.items()},
    **{
        f"{verb} {kind}.{consumer}": f"{API}.{verb}.{stream}.{consumer}"
        for verb in ON_CONSUMERS
        for kind, stream in STREAMS.items()
        for consumer in ("actors", "mine")
    },
    **{f"CREATE {kind} with a filter": f"{API}.CONSUMER.CREATE.{stream}.mine.x" for kind, stream in STREAMS.items()},
    **{f"DIRECT.GET {kind} by subject": f"{API}.DIRECT.GET.{stream}.x" for kind, stream in STREAMS.items()},
    **{f"ack {kind}": f"$JS.ACK.{stream}.actors.1.1.1.1.1" for kind, stream in STREAMS.items()},
    **{verb: f"{API}.{verb}" for verb in ON_THE_SERVER},
}
VERBS_ALLOWED = {
    **dict.fromkeys(("STREAM.INFO TICKETS", "STREAM.INFO RUN", "STREAM.MSG.GET RUN"), EVERYONE),
    "STREAM.INFO ALIVE": EVERYONE,
    "STREAM.MSG.GET ALIVE": EVERYONE - {"sandbox"},
    **{f"CONSUMER.{verb} {kind}.actors": {"actor"} for verb in ("INFO", "MSG.NEXT") for kind in ("TICKETS", "RETRIES")},
    **{f"ack {kind}": {"actor"} for kind in ("TICKETS", "RETRIES")},
    "CONSUMER.INFO TICKETS.actors": {"actor", "observer"},
    **{f"{verb} WEIGHTS": EVERYONE - {"sandbox"} for verb in ("STREAM.INFO", "STREAM.MSG.GET", "DIRECT.GET")},
    "STREAM.INFO HOLDS": EVERYONE - {"sandbox"},
    "STREAM.MSG.GET HOLDS": {"learner"},
    **{f"STREAM.PURGE {kind}": {"learner"} for kind in ("TICKETS", "RETRIES", "RESULTS", "WEIGHTS", "METRICS")},
    **{f"STREAM.MSG.GET {kind}": {"learner"} for kind in ("TICKETS", "RETRIES", "RESULTS")},
    **{f"STREAM.INFO {kind}": {"learner", "observer"} for kind in ("RETRIES", "RESULTS", "METRICS")},
    **{f"DIRECT.GET {kind}": {"learner"} for kind in ("RESULTS", "RETRIES")},
    "STREAM.MSG.DELETE RETRIES": {"learner"},
    **{f"{verb} METRICS": {"learner", "observer"} for verb in ("STREAM.MSG.GET", "DIRECT.GET")},
    **{f"{verb} DEADLETTERS": {"observer"} for verb in ("STREAM.INFO", "STREAM.MSG.GET", "DIRECT.GET")},
}
"""Nobody makes, changes or deletes a stream, and nobody makes a consumer."""

OWN = {
    "metrics": f"{NAMES.metrics}.{{}}.x",
    "presence": f"$KV.{NAMES.alive_bucket}.{{}}.x",
    "holds": f"$KV.{NAMES.holds_bucket}.{{}}.x",
    "dead letters": f"{NAMES.root}.deadletters.{{}}",
    "inbox": "_INBOX.{}.x",
}
"""Subjects with a role's name in them."""
OWN_ALLOWED = {
    "metrics": EVERYONE - {"observer"},
    "presence": EVERYONE - {"observer"},
    "holds": EVERYONE - {"sandbox"},
    "dead letters": EVERYONE - {"sandbox"},
    "inbox": set(),
}
PUBLISH = {
    "issue a ticket": (NAMES.tickets, {"learner"}),
    "answer a ticket": (NAMES.results, {"actor", "learner"}),
    "offer a ticket again": (NAMES.retry(1), {"actor", "learner"}),
    "write a manifest": (NAMES.manifests, {"learner"}),
    "write a chunk": (NAMES.chunks("0.1", "delta", "00"), {"learner"}),
    "change the configuration": (f"$KV.{NAMES.run_bucket}.config", set()),
    "say what the model is": (f"$KV.{NAMES.run_bucket}.model", {"learner"}),
    "say what the template is": (f"$KV.{NAMES.run_bucket}.template", {"learner"}),
    "raise alarms": (f"$KV.{NAMES.run_bucket}.alarms", {"learner"}),
    "ask for an execution": (NAMES.execution, {"actor", "evaluator"}),
    "cancel an execution": (f"{NAMES.execution}.cancel", {"actor", "evaluator"}),
    "ask sandboxes what they did": ("$SRV.STATS.zerotir-sandbox", {"observer"}),
    "look for services": ("$SRV.PING", set()),
    "answer a request that nobody made": ("_R_.abcdef.ghijkl", set()),
    "ask for a snapshot": (NAMES.snapshot_requests, {"actor", "evaluator", "observer"}),
    "say what ails the bus": (NAMES.trouble, set()),
    "make a stream": (f"{API}.STREAM.CREATE.mine", set()),
    "write to another run": ("zerotir.other.results", set()),
    "write to nowhere": ("anything", set()),
    "ask the server": ("$SYS.REQ.SERVER.PING", set()),
    **{what: (subject, VERBS_ALLOWED.get(what, set())) for what, subject in VERBS.items()},
    **{
        f"{what} of {other}": (subject.format(other), OWN_ALLOWED[what] & {other})
        for what, subject in OWN.items()
        for other in ("bus", *ROLES)
    },
}
SUBSCRIBE = {
    "hear executions": (NAMES.execution, {"sandbox"}),
    "hear cancellations": (f"{NAMES.execution}.cancel", {"sandbox"}),
    "hear services": ("$SRV.PING", {"sandbox"}),
    "hear tickets": (NAMES.tickets, set()),
    "hear tickets again": (NAMES.retries, set()),
    "hear results": (NAMES.results, set()),
    "hear metrics": (f"{NAMES.metrics}.*.*", set()),
    "hear manifests": (NAMES.manifests, EVERYONE - {"sandbox"}),
    "hear chunks": (f"{NAMES.weights}.>", set()),
    "hear dead letters": (NAMES.dead_letters, set()),
    "hear buckets": ("$KV.>", set()),
    "hear requests for snapshots": (NAMES.snapshot_requests, {"learner"}),
    "hear what ails the bus": (NAMES.trouble, EVERYONE),
    "hear acknowledgements": ("$JS.ACK.>", set()),
    "hear requests to JetStream": (f"{API}.>", set()),
    "hear JetStream's events": ("$JS.EVENT.>", set()),
    "hear the server": ("$SYS.>", set()),
    "hear answers of services": ("_R_.>", set()),
    "hear everything": (">", set()),
    "hear the run": (f"{NAMES.root}.>", set()),
    "hear answers to all": ("_INBOX.>", set()),
    **{f"hear answers to {other}": (f"_INBOX.{other}.>", {other} & EVERYONE) for other in ("bus", *ROLES)},
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
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(30):
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
        assert served.executions == 2
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


async def test_a_sandbox_outlives_an_answer_that_comes_too_late(own_run: BusAddress):
    """The right to answer ends with the connection by which the request came."""
    settings = SandboxConfig(cgroups="prefer", warm=1, warm_with_packages=0, concurrency=1)
    async with (
        open_bus(own_run.for_role("actor"), CONFIG, "actor") as actor,
        open_bus(own_run.for_role("sandbox"), CONFIG, "sandbox") as sandbox,
        Pool(Jail(settings)) as pool,
    ):
        service = SandboxService(sandbox.client, sandbox.names.execution, pool, settings, "s1")
        await service.start()
        client = SandboxClient(actor.client, sandbox.names.execution, settings)
        asked = asyncio.create_task(client.execute("import time; time.sleep(2)", 10.0))
        async with asyncio.timeout(60):
            while not service.in_flight:
                await asyncio.sleep(0.02)
            reconnects = sandbox.client.stats["reconnects"]
            await sandbox.client._process_op_err(ConnectionResetError("as if the network had cut it"))
            while sandbox.client.stats["reconnects"] == reconnects or service.in_flight:
                await asyncio.sleep(0.02)
        asked.cancel()
        await sandbox.client.flush()
        await asyncio.sleep(0.5)
        assert (await client.execute("print(6 * 7)", 5.0)).stdout == "42\n"
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

"""A bus of three servers, started from the files that `zerotir bus --init` writes, one of which is killed."""

import asyncio
import contextlib
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from actors.leases import TicketSource
from bus.address import BusAddress
from bus.cluster import ClusterError, initialise
from bus.codec import decode
from bus.connection import Bus, BusError, open_bus
from bus.log_reader import LogReader
from bus.messages import Failure
from bus.presence import Announcer, who_is_alive
from bus.server import server_binary
from bus.streams import Names, StreamError, create_streams
from configs.bus import BusConfig, TlsConfig, WeightsConfig
from configs.loading import load_config
from configs.schema import FiltersConfig
from learner.tickets.dispatcher import Dispatcher
from learner.tickets.filters import Filters
from learner.tickets.ledger import Ledger
from tasks.problems import ProblemOrder, load_problems
from tests.integration.servers import free_ports, make_certificates, servers
from weights.codec import Layout
from weights.follower import WeightFollower
from weights.writer import WeightWriter

LAYOUT = Layout.of([("w", "float32", (1024,), 4096)])


def failure(ticket: int) -> Failure:
    return Failure(ticket=ticket, group=0, reason="test", attempts=1, actor="a", published_at=0.0)


@dataclass
class Work:
    """Everything that roles do on the bus, over and over, until told to stop."""

    learner: Bus
    actor: Bus
    published: int = 0
    read: int = 0
    weights: int = 0
    pulled: int = 0
    stop: bool = False

    async def publish_results(self) -> None:
        while not self.stop:
            await self.actor.publish_until_stored(self.actor.names.results, failure(self.published + 1), 60.0)
            self.published += 1
            await asyncio.sleep(0.01)

    async def read_results(self) -> None:
        """Every result once and in order, but for those that were stored twice because an acknowledgement was lost."""
        reader = LogReader(self.learner, self.learner.names.stream("RESULTS"), self.learner.names.results)
        while not self.stop or self.read < self.published:
            for _, data in await reader.read(64, 0.5):
                ticket = decode(data, Failure).ticket
                assert ticket <= self.read + 1
                self.read = max(self.read, ticket)

    async def publish_weights(self) -> None:
        writer = WeightWriter(self.learner, WeightsConfig(snapshot_every=5))
        await writer.open()
        while not self.stop:
            state = writer.spare_state(LAYOUT)
            state.image[:] = np.frombuffer(np.full(1024, self.weights, dtype="<f4").tobytes(), np.uint8)
            await writer.publish(self.weights, state)
            await writer.snapshot_if_due()
            self.weights += 1
            await asyncio.sleep(0.05)

    async def take_tickets(self) -> None:
        tickets = TicketSource(self.actor)
        while self.pulled < 40:
            for leased in await tickets.pull(1, 0.5):
                self.pulled = max(self.pulled, leased.ticket.number)
                await leased.done()
            await asyncio.sleep(0.1)

    async def issue_tickets(self) -> None:
        config = load_config("tiny", ["learner.batch_groups=10", "learner.steps=1"])
        ledger = Ledger(10, 4, 0, 1, Filters(FiltersConfig(), group_relative=True))
        ledger.admit(0)
        problems = ProblemOrder(load_problems(config.tasks.problems, 0), 0)
        await Dispatcher(self.learner, config, "{problem}", problems, ledger).issue()

    async def announce(self) -> None:
        announcer = Announcer(self.actor, "actor", "a1")
        while not self.stop:
            announcer.in_flight = self.published
            await announcer.announce()
            await asyncio.sleep(0.2)


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["the leader of the results", "another server"])
async def test_one_of_three_servers_is_killed_and_the_work_goes_on(tmp_path: Path, victim: str):
    ports = free_ports(3)
    url = ",".join(f"nats://127.0.0.1:{port}" for port in ports)
    config = BusConfig(url=url, replicas=3, timeout_s=10, reconnect_s=60, max_results_bytes=64 * 1024**2)
    folder = tmp_path / "three"
    async with servers(folder, config) as processes, contextlib.AsyncExitStack() as stack:
        master = BusAddress.read(folder / "bus.json")
        admin = await stack.enter_async_context(open_bus(master, config, "bus"))
        await create_streams(admin.js, admin.names, config, lease_s=60)
        learner, actor, observer, evaluator = [
            await stack.enter_async_context(open_bus(master.for_role(role), config, role))
            for role in ("learner", "actor", "observer", "evaluator")
        ]
        work = Work(learner, actor)

        async def until(condition) -> None:
            async with asyncio.timeout(60):
                while not condition():
                    await asyncio.sleep(0.05)

        async with asyncio.TaskGroup() as group:
            for job in (work.publish_results, work.read_results, work.publish_weights, work.take_tickets):
                group.create_task(job())
            group.create_task(work.issue_tickets())
            group.create_task(work.announce())
            await until(lambda: min(work.read, work.weights, work.pulled) >= 5)
            info = await admin.js.stream_info(admin.names.stream("RESULTS"))
            assert info.cluster is not None
            assert len(info.cluster.replicas or []) == 2
            leader = info.cluster.leader
            killed = leader if victim == "the leader of the results" else (info.cluster.replicas or [])[0].name
            processes[str(killed)].kill()
            before = (work.published, work.read, work.weights)
            await until(lambda: work.published > before[0] + 50)
            await until(lambda: work.read > before[1] + 50)
            await until(lambda: work.weights > before[2] + 10)
            await until(lambda: work.pulled == 40)
            async with asyncio.timeout(60):
                while [presence.in_flight > before[0] for presence in await who_is_alive(observer)] != [True]:
                    await asyncio.sleep(0.5)
            work.stop = True
        assert work.read == work.published
        follower = WeightFollower(evaluator)
        held = await follower.advance(20)
        assert held is not None
        assert held.version.n == work.weights - 1
        assert follower.state is not None
        assert (follower.state.image.view("<f4") == work.weights - 1).all()
        # A stream that has lost messages goes on behind them, in all copies.
        beyond = (await admin.js.stream_info(admin.names.stream("RESULTS"))).state.last_seq + 1000
        await learner.skip_to("RESULTS", beyond)
        assert await actor.publish(actor.names.results, failure(1)) == beyond


async def test_a_server_without_a_cluster_is_explained(own_run: BusAddress):
    config = BusConfig(replicas=3, timeout_s=5)
    async with open_bus(own_run, config, "bus") as alone:
        names = Names("larger")
        with pytest.raises(StreamError, match=r"bus\.replicas is 3"):
            await create_streams(alone.js, names, config, lease_s=60)


async def test_tls_is_asked_for_and_nothing_else_is_taken(tmp_path: Path):
    make_certificates(tmp_path)
    tls = TlsConfig(
        ca=str(tmp_path / "ca.pem"),
        server_certificate=str(tmp_path / "server.pem"),
        server_key=str(tmp_path / "server.key"),
    )
    [port] = free_ports(1)
    config = BusConfig(url=f"nats://localhost:{port}", tls=tls, timeout_s=5)
    folder = tmp_path / "secret"
    async with servers(folder, config):
        master = BusAddress.read(folder / "bus.json")
        async with open_bus(master, config, "bus") as admin:
            await create_streams(admin.js, admin.names, config, lease_s=60)
        async with open_bus(master.for_role("actor"), config, "actor") as actor:
            await actor.require_streams()
        plain = master.model_copy(update={"tls": TlsConfig()})
        other = master.model_copy(update={"tls": TlsConfig(ca=str(tmp_path / "other-ca.pem"))})
        for wrong in (plain, other):
            with pytest.raises(BusError, match="no bus at"):
                async with open_bus(wrong, BusConfig(timeout_s=2), "wrong"):
                    pass
    missing = master.model_copy(update={"tls": TlsConfig(ca=str(tmp_path / "absent.pem"))})
    with pytest.raises(BusError, match=r"absent\.pem"):
        async with open_bus(missing, config, "missing"):
            pass


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({}, "bus.url names the servers"),
        ({"url": "nats://a,nats://b"}, "cannot go on without each other"),
        ({"url": "nats://a", "replicas": 3}, "needs at least 3"),
        ({"url": "nats://a,nats://a:4222,nats://b", "replicas": 3}, "twice"),
        ({"url": "http://a"}, "not of the form"),
        ({"url": "nats://a", "tls": TlsConfig(ca="ca.pem")}, "server_certificate"),
    ],
)
def test_a_cluster_that_cannot_be_made_is_explained(tmp_path: Path, settings: dict, reason: str):
    with pytest.raises(ClusterError, match=reason):
        initialise(tmp_path / "run", BusConfig(**settings), 0)
    assert not (tmp_path / "run").exists()


def test_a_folder_whose_name_is_no_id_is_refused(tmp_path: Path):
    with pytest.raises(ClusterError, match="letters"):
        initialise(tmp_path / "a.run", BusConfig(url="nats://a"), 0)


def test_the_command_writes_the_files_and_says_what_to_do(tmp_path: Path):
    folder = tmp_path / "fleet"
    url = "nats://a:4222,nats://b:4222,nats://c:4222"
    command = [sys.executable, "-m", "launch.cli", "bus", "tiny", "--init", str(folder)]
    settings = ["--set", f"bus.url={url}", "--set", "bus.replicas=3"]
    done = subprocess.run([*command, *settings], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "zerotir bus CONFIG --folder" in done.stdout
    master = BusAddress.read(folder / "bus.json")
    assert (master.run, master.url) == ("fleet", url)
    files = sorted((folder / "servers").iterdir())
    assert [path.name for path in files] == ["server-1.conf", "server-2.conf", "server-3.conf"]
    for path in files:
        text = path.read_text()
        assert os.stat(path).st_mode & 0o777 == 0o600
        assert f"nats-server -c {path.name}" in text
        assert master.seed not in text
        subprocess.run([server_binary(), "-t", "-c", str(path)], check=True, capture_output=True)
    again = subprocess.run([*command, *settings], capture_output=True, text=True, check=False)
    assert again.returncode == 2
    assert "holds a run already" in again.stderr
    assert BusAddress.read(folder / "bus.json") == master


def test_a_server_of_ones_own_without_its_keys_is_explained(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-m", "launch.cli", "bus", "tiny", "--folder", str(tmp_path / "x"), "--set", "bus.url=nats://a:4222"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "--init" in done.stderr

"""A run of real processes around the emulated engine, and what must hold of it whatever was killed, and when."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from random import Random
from urllib.parse import urlsplit

from bus.address import BusAddress
from bus.connection import Bus, open_bus
from bus.log_reader import LogReader
from configs.loading import dump_config, load_config
from learner.tickets.archive import read_archive
from learner.tickets.audit import batches_of
from learner.tickets.ledger import Ledger
from tests.chaos.tap import Tap

WAIT_S = 150.0
"""Bound of every wait: far above what any of them takes on a busy machine."""

SETTINGS = (
    "learner.batch_groups=3", "learner.checkpoint.every=4", "learner.batch_timeout_s=140",
    "actor.max_rollouts=8", "actor.lease_s=4", "actor.grace_s=1", "actor.max_deliveries=100",
    "actor.engine.emulation.tokens_per_s=120", "bus.timeout_s=5", "bus.reconnect_s=120",
    "bus.max_results_bytes=40000000", "bus.max_metrics_bytes=20000000",
)  # fmt: skip


class Role:
    """One process of the run, behind a tap of its own."""

    def __init__(self, id: str, process: asyncio.subprocess.Process, tap: Tap | None) -> None:
        self.id = id
        self.process = process
        self._tap = tap

    @property
    def tap(self) -> Tap:
        assert self._tap is not None
        return self._tap

    async def kill(self) -> None:
        """SIGKILL to it alone, as a crash or the kernel would."""
        self.process.kill()
        await self.process.wait()
        if self._tap is not None:
            await self._tap.close()

    async def leave(self) -> int:
        """SIGTERM; returns the exit status."""
        self.process.terminate()
        code = await asyncio.wait_for(self.process.wait(), WAIT_S)
        await self.tap.close()
        return code


Fault = Callable[["Run"], Awaitable[None]]


class Run:
    """Bus, sandbox, actors and learner; use `playing`."""

    bus_role: Role
    learner: Role
    sandbox: Role
    address: BusAddress
    observer: Bus
    """A connection of the test's own, past all taps."""

    def __init__(self, home: Path, steps: int, seed: int, settings: Sequence[str] = ()) -> None:
        self.folder = home / "run"
        self.random = Random(seed)
        problems = home / "problems.jsonl"
        problems.write_text("".join(json.dumps({"problem": f"{n}+1=", "answer": str(n + 1)}) + "\n" for n in range(9)))
        overrides = [*SETTINGS, f"learner.steps={steps}", f"tasks.problems={{file: {problems}}}", f"seed={seed}"]
        overrides += settings
        self.config = load_config("emulated", overrides)
        self._config_file = home / "chaos.yaml"
        self._config_file.write_text(dump_config(self.config))
        self._home = home
        self._started = 0
        self.small_disk = False
        """The server's store has a disk of its own."""
        self.roles: list[Role] = []
        self.actors: list[Role] = []

    async def start_bus(self) -> None:
        path = self.folder / "bus.json"
        before = path.stat().st_mtime_ns if path.exists() else 0
        self.bus_role = await self._spawn("bus", ["bus", str(self._config_file), "--folder", str(self.folder)], None)
        await self.until(lambda: path.exists() and path.stat().st_mtime_ns > before, "the bus")
        self.address = BusAddress.read(path)

    async def start_second_bus(self) -> int:
        """Starts another bus on the run's folder; returns its exit status."""
        second = await self._spawn("bus-2", ["bus", str(self._config_file), "--folder", str(self.folder)], None)
        return await asyncio.wait_for(second.process.wait(), WAIT_S)

    def mount_small_disk(self) -> None:
        """Puts the server's store on a small disk of its own, where this process may mount one."""
        folder = self.folder / "nats"
        folder.mkdir(parents=True)
        mount = ("mount", "-t", "tmpfs", "-o", "size=128m", "tmpfs", str(folder))
        self.small_disk = subprocess.run(mount, capture_output=True, check=False).returncode == 0

    def unmount_small_disk(self) -> None:
        if self.small_disk:
            subprocess.run(["umount", "-l", self.folder / "nats"], check=True)

    @property
    def server_pid(self) -> int | None:
        """Returns the process id of the bus role's `nats-server`, None while there is none."""
        pid = self.bus_role.process.pid
        children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        return children[0] if children else None

    async def replace(self, role: str) -> Role:
        """A new process of `role` that is at work: one that still connects gives up sooner than a fault may last."""
        started = await self.start(role)
        at_work = "publishing weights" if role == "learner" else "ready"
        log = self.folder / "logs" / f"{started.id}.jsonl"
        await self.until(lambda: log.exists() and f'"event": "{at_work}' in log.read_text(), f"{started.id} at work")
        return started

    async def start(self, role: str) -> Role:
        """A new process of `role`, with an id of its own; behind a tap, unless there are several servers."""
        self._started += 1
        id = f"{role}-{self._started}"
        file, tap = self.folder / "bus.json", None
        if self.config.bus.url is None:
            where = urlsplit(self.address.url)
            tap = Tap(where.hostname or "", where.port or 0)
            port = await tap.start()
            file = self.folder / f"bus-{id}.json"
            self.address.model_copy(update={"url": f"nats://127.0.0.1:{port}"}).write(file)
        arguments = [role, str(self._config_file), "--bus", str(file), "--id", id]
        started = await self._spawn(id, arguments, tap)
        if role == "actor":
            self.actors.append(started)
        elif role == "learner":
            self.learner = started
        else:
            self.sandbox = started
        return started

    async def _spawn(self, id: str, arguments: list[str], tap: Tap | None) -> Role:
        with (self._home / f"{id}.out").open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                # Nothing outlives a test that is killed.
                *("setpriv", "--pdeathsig", "TERM", sys.executable, "-m", "launch.cli", *arguments),
                stdout=output, stderr=output, start_new_session=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip
        role = Role(id, process, tap)
        self.roles.append(role)
        return role

    async def until(self, condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + WAIT_S
        while not condition():
            assert time.monotonic() < deadline, f"waited in vain for {what}\n{self.last_words()}"
            await asyncio.sleep(0.02)

    async def event(self, fired: asyncio.Future[bytes]) -> bytes:
        """Waits for a watch and returns what was published; the run must not end before."""
        ended = asyncio.create_task(self.learner.process.wait())
        done, _ = await asyncio.wait((fired, ended), timeout=WAIT_S, return_when=asyncio.FIRST_COMPLETED)
        ended.cancel()
        assert fired in done, f"the run ended, or hung, before the fault could strike\n{self.last_words()}"
        return fired.result().partition(b"\r\n")[2].removesuffix(b"\r\n")

    async def finish(self) -> None:
        code = await asyncio.wait_for(self.learner.process.wait(), WAIT_S)
        assert code == 0, self.last_words()

    def logs(self, event: str, id: str = "learner-*") -> list[dict]:
        """Log records of an event, in order of time."""
        found = []
        for path in sorted(self.folder.glob(f"logs/{id}.jsonl")):
            for line in path.read_text().splitlines():
                with contextlib.suppress(ValueError):  # A killed process leaves half a line.
                    record = json.loads(line)
                    if record["event"] == event:
                        found.append(record)
        return sorted(found, key=lambda record: record["timestamp"])

    def last_words(self) -> str:
        return "\n".join(f"--- {path.name}\n{path.read_text()[-1500:]}" for path in sorted(self._home.glob("*.out")))

    async def stored(self, kind: str, subject: str, data: bytes) -> None:
        """Waits until a stream holds `data`."""
        reader = LogReader(self.observer, self.observer.names.stream(kind), subject)
        async with asyncio.timeout(WAIT_S):
            async for _, _, message in reader.follow():
                if message.endswith(data):
                    break
        await reader.close()

    def check(self) -> None:
        """Invariants 1 and 2."""
        settings = self.config.learner
        issued = settings.steps * settings.batch_groups * settings.group_size
        last = self.logs("step done")[-1]
        assert last["step"] == settings.steps
        balance = {name: last[f"tickets_{name}"] for name in ("issued", "trained", "filtered", "failed", "open")}
        assert balance == {"issued": issued, "trained": issued, "filtered": 0, "failed": 0, "open": 0}
        results = list(read_archive(self.folder / "results"))
        assert sorted(result.ticket for _, result in results) == list(range(1, issued + 1))
        ledger = Ledger.of(settings)
        replayed = {batch.step: batch.digest for batch in batches_of(results, ledger)}
        taken: dict[int, set[str]] = {}
        for record in self.logs("batch taken"):
            taken.setdefault(record["step"], set()).add(record["digest"])
        # A step that was trained again after a kill took the same results.
        assert taken == {step: {digest} for step, digest in replayed.items()}
        assert len(replayed) == settings.steps
        assert ledger.balance()["trained"] == issued


@contextlib.asynccontextmanager
async def playing(run: Run, actors: int = 2) -> AsyncIterator[Run]:
    """Starts everything; afterwards nothing is left."""
    try:
        if run.config.bus.url is None:
            run.mount_small_disk()
        await run.start_bus()
        async with open_bus(run.address, run.config.bus, "observer") as observer:
            run.observer = observer
            for name in ("learner", "sandbox", *["actor"] * actors):
                await run.start(name)
            yield run
    finally:
        for role in run.roles:
            for number in (signal.SIGCONT, signal.SIGKILL):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(role.process.pid, number)
            await role.process.wait()
            if role._tap is not None:
                await role.tap.close()
        run.unmount_small_disk()


async def play(home: Path, faults: Sequence[Fault], seed: int, steps: int | None = None) -> Run:
    """A run through `faults`, one after another, to its end; its invariants hold."""
    async with playing(Run(home, steps or 8 + 8 * len(faults), seed)) as run:
        for fault in faults:
            await fault(run)
        await run.finish()
        run.check()
    return run

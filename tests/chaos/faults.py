"""What goes wrong, each as a function that waits for its moment, strikes, and puts a new process in the place of a dead one.

The moments are publishes of the process that is struck, seen by its tap. `Run.random` chooses victims and counts.
"""

import asyncio
import contextlib
import os
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import nats.js.errors

from bus.codec import decode
from bus.messages import Failure, Trajectory
from tests.chaos.run import WAIT_S, Role, Run

OUTAGE_S = 20.0


def _victim(run: Run) -> Role:
    return run.actors.pop(run.random.randrange(len(run.actors)))


async def actor_killed_in_a_rollout(run: Run) -> None:
    """While a program of one of its rollouts is on its way to the sandbox."""
    victim = _victim(run)
    await run.event(victim.tap.watch("sandbox.execute", run.random.randint(1, 3)))
    await victim.kill()
    await run.replace("actor")


async def actor_killed_before_its_acknowledgement(run: Run) -> None:
    """The result is stored, the ticket is not acknowledged: it will be delivered again."""
    victim = _victim(run)
    names = run.observer.names
    data = await run.event(victim.tap.watch(names.results, run.random.randint(1, 4), hold="after"))
    await run.stored("RESULTS", names.results, data)
    await victim.kill()
    # Still there, for another actor; unless one that had it before has answered it too, or the bus has lost it since.
    ticket = decode(data, Trajectory, Failure).ticket
    try:
        await run.observer.js.get_msg(names.stream("TICKETS"), ticket)
    except nats.js.errors.NotFoundError:
        lost = run.logs("the bus has lost tickets")
        ignored = {record["ticket"] for record in run.logs("result ignored")}
        assert ticket in ignored or any(record["first"] <= ticket <= record["last"] for record in lost), ticket
    await run.replace("actor")


async def actor_suspended_beyond_its_lease(run: Run) -> None:
    """Others get its tickets; then it wakes up and answers them as well."""
    victim = run.random.choice(run.actors)
    await run.event(victim.tap.watch("sandbox.execute", run.random.randint(1, 3)))
    os.kill(victim.process.pid, signal.SIGSTOP)
    try:
        await asyncio.sleep(2 * run.config.actor.lease_s)
    finally:
        os.kill(victim.process.pid, signal.SIGCONT)


async def actors_come_and_go(run: Run) -> None:
    """With every few results one joins, and one is told to leave in the middle of its work."""
    for _ in range(4):
        await run.replace("actor")
        leaver = run.actors.pop(0)
        await run.event(leaver.tap.watch("$JS.ACK", run.random.randint(1, 3)))
        assert await leaver.leave() == 0, run.last_words()


async def sandbox_killed(run: Run) -> None:
    """While a program is on its way to it."""
    await run.event(run.actors[0].tap.watch("sandbox.execute", run.random.randint(1, 3)))
    await run.sandbox.kill()
    await run.replace("sandbox")


async def server_killed(run: Run) -> None:
    """At some publish; the bus role starts it again on its store and port."""
    await run.event(run.actors[0].tap.watch(run.observer.names.results, run.random.randint(1, 4)))
    killed = run.server_pid
    assert killed is not None
    os.kill(killed, signal.SIGKILL)
    await run.until(lambda: run.server_pid not in (None, killed), "another server")


async def bus_killed(run: Run) -> None:
    """The role and, with it, its server; the role starts again on the run's folder."""
    await run.event(run.actors[0].tap.watch(run.observer.names.results, run.random.randint(1, 4)))
    server = run.server_pid
    await run.bus_role.kill()
    await run.until(lambda: not Path(f"/proc/{server}").exists(), "the end of the server")
    await run.start_bus()


async def server_silent(run: Run) -> None:
    """Connections stay, nothing answers for 20 seconds."""
    await run.event(run.actors[0].tap.watch(run.observer.names.results, run.random.randint(1, 4)))
    server = run.server_pid
    assert server is not None
    os.kill(server, signal.SIGSTOP)
    try:
        await asyncio.sleep(OUTAGE_S)
    finally:
        os.kill(server, signal.SIGCONT)


async def server_unreachable(run: Run) -> None:
    """Every connection ends and none can be made for 20 seconds."""
    await run.event(run.actors[0].tap.watch(run.observer.names.results, run.random.randint(1, 4)))
    for role in (run.learner, run.sandbox, *run.actors):
        role.tap.cut()
    await asyncio.sleep(OUTAGE_S)
    for role in (run.learner, run.sandbox, *run.actors):
        role.tap.repair()


async def learner_killed_after_a_step(run: Run) -> None:
    """A step is trained and published, and no checkpoint has it."""
    every = run.config.learner.checkpoint.every
    done = len({record["step"] for record in run.logs("step done")})
    # Steps are told on the metrics log before they are written to a checkpoint.
    k = run.random.randint(1, 2)
    if (done + k) % every == 0:
        k += 1
    await run.event(run.learner.tap.watch("metrics.learner", k, hold="after"))
    await run.learner.kill()
    await run.replace("learner")


async def learner_killed_before_the_acknowledgement(run: Run) -> None:
    """A manifest is stored and the learner does not know."""
    data = await run.event(run.learner.tap.watch("weights.manifest", run.random.randint(2, 4), hold="after"))
    # Behind the headers that make it conditional.
    await run.stored("WEIGHTS", run.observer.names.manifests, data.rpartition(b"\r\n\r\n")[2])
    await run.learner.kill()
    await run.replace("learner")


async def second_learner(run: Run) -> None:
    """It starts beside one that lives, and takes over just before that one publishes: the first writes nothing more."""
    first = run.learner
    # Held between two tickets while the second one loads: there the first one's patience is longest.
    await run.event(first.tap.watch(run.observer.names.tickets, run.random.randint(1, 12), hold="before"))
    second = await run.start("learner")
    await run.event(second.tap.watch("weights.manifest", hold="before"))
    publishing = first.tap.watch("weights.manifest", hold="before")
    first.tap.release()
    await asyncio.wait_for(publishing, WAIT_S)
    second.tap.release()
    await run.until(lambda: run.logs("took over the weight log", second.id), "the second learner")
    first.tap.release()
    assert await asyncio.wait_for(first.process.wait(), WAIT_S) == 2
    assert "was deposed and stops" in (run.folder / "logs" / f"{first.id}.jsonl").read_text()


async def disk_full(run: Run) -> None:
    """The kernel refuses the learner another byte in the archive, in the middle of a result; then there is room again."""
    archive = run.folder / "results"
    await run.until(lambda: any(archive.glob("*.results")), "the archive")
    room = sum(path.stat().st_size for path in archive.iterdir()) // len(list(archive.iterdir()))
    resource.prlimit(run.learner.process.pid, resource.RLIMIT_FSIZE, (room // 2, room // 2))
    code = await asyncio.wait_for(run.learner.process.wait(), WAIT_S)
    # 1, or 120 where the interpreter could not write out the last of what was printed: that file is full as well.
    assert code in (1, 120), f"{code}\n{run.last_words()}"
    await run.replace("learner")


async def learner_told_to_stop(run: Run) -> None:
    """Somewhere in a step: it leaves the step unfinished, and says that its work is not done."""
    await run.event(run.learner.tap.watch(run.observer.names.tickets, run.random.randint(1, 6)))
    assert await run.learner.leave() == 130, run.last_words()
    await run.replace("learner")


async def bus_hangs_while_the_learner_starts(run: Run) -> None:
    """It begins to read the weight log and hears nothing for longer than a request may take."""
    await run.event(run.learner.tap.watch("metrics.learner", run.random.randint(1, 3), hold="after"))
    await run.learner.kill()
    starting = await run.start("learner")
    await run.event(starting.tap.watch(f"$JS.API.DIRECT.GET.{run.observer.names.stream('WEIGHTS')}"))
    server = run.server_pid
    assert server is not None
    os.kill(server, signal.SIGSTOP)
    try:
        await asyncio.sleep(3 * run.config.bus.timeout_s)
    finally:
        os.kill(server, signal.SIGCONT)
    # It may have had all it needed before the server stopped; else it has ended with an error, and begins again.
    log = run.folder / "logs" / f"{starting.id}.jsonl"
    ended = asyncio.create_task(starting.process.wait())
    await run.until(lambda: ended.done() or '"event": "publishing weights' in log.read_text(), "what became of it")
    if ended.done():
        assert ended.result() == 1, run.last_words()
        await run.replace("learner")
    ended.cancel()


async def second_server(run: Run) -> None:
    """Somebody starts the bus a second time, on the folder of a run that is on."""
    await run.event(run.actors[0].tap.watch(run.observer.names.results, run.random.randint(1, 4)))
    recorded = (run.folder / "config.yaml").read_bytes()
    assert await run.start_second_bus() == 2, run.last_words()
    assert (run.folder / "config.yaml").read_bytes() == recorded


async def bus_disk_full(run: Run) -> None:
    """The server cannot write for six seconds, on a disk of its own; without root there is none, and nothing happens."""
    if not run.small_disk:
        print("bus_disk_full is left out: a small disk can be mounted by root alone", flush=True)
        return
    await run.event(run.actors[0].tap.watch(run.observer.names.results, run.random.randint(1, 4)))
    server, ballast = run.server_pid, run.folder / "nats" / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while file.write(bytes(65536)):
            pass
    await asyncio.sleep(6.0)
    failed = "failed to store a msg" in (run.folder / "nats" / "server.log").read_text()
    ballast.unlink()
    if failed:
        await run.until(lambda: run.server_pid not in (None, server), "another server")


async def _bus_down(run: Run, change: Callable[[Path], None]) -> None:
    """Ends the bus role and its server, lets `change` do something to the store, and starts them again."""
    server = run.server_pid
    await run.bus_role.kill()
    await run.until(lambda: not Path(f"/proc/{server}").exists(), "the end of the server")
    change(run.folder / "nats" / "store")
    await run.start_bus()


async def bus_loses_its_last_seconds(run: Run) -> None:
    """As by a power failure of its host: the store is what it was before the last messages were acknowledged."""
    results = run.observer.names.results
    await run.event(run.actors[0].tap.watch(results, run.random.randint(1, 4)))
    server, store, before = run.server_pid, run.folder / "nats" / "store", run.folder / "store-before"
    assert server is not None
    os.kill(server, signal.SIGSTOP)
    try:
        shutil.rmtree(before, ignore_errors=True)
        shutil.copytree(store, before)
    finally:
        os.kill(server, signal.SIGCONT)
    await run.event(run.actors[0].tap.watch(results, run.random.randint(8, 24)))

    def put_back(store: Path) -> None:
        shutil.rmtree(store)
        shutil.copytree(before, store)

    await _bus_down(run, put_back)


async def bus_loses_everything(run: Run) -> None:
    """A new, empty server in the place of the old one."""
    await run.event(run.actors[0].tap.watch(run.observer.names.results, run.random.randint(1, 8)))
    await _bus_down(run, shutil.rmtree)


async def block_of_the_store_damaged(run: Run) -> None:
    """A quarter of a file of messages, of whatever stream, is noise."""
    await run.event(run.actors[0].tap.watch(run.observer.names.results, run.random.randint(1, 8)))

    def damage(store: Path) -> None:
        streams = sorted({path.parent for path in store.rglob("*.blk") if path.stat().st_size})
        block = run.random.choice(sorted(run.random.choice(streams).glob("*.blk")))
        content = bytearray(block.read_bytes())
        begin, length = run.random.randrange(len(content)), len(content) // 4 + 1
        content[begin : begin + length] = run.random.randbytes(len(content[begin : begin + length]))
        block.write_bytes(content)
        print(f"damaged {block.relative_to(store)}: {length} bytes from {begin} on", flush=True)

    await _bus_down(run, damage)


ALL = (
    actor_killed_in_a_rollout,
    actor_killed_before_its_acknowledgement,
    actor_suspended_beyond_its_lease,
    actors_come_and_go,
    sandbox_killed,
    server_killed,
    bus_killed,
    server_silent,
    server_unreachable,
    learner_killed_after_a_step,
    learner_killed_before_the_acknowledgement,
    second_learner,
    disk_full,
    learner_told_to_stop,
    bus_hangs_while_the_learner_starts,
    second_server,
    bus_disk_full,
    bus_loses_its_last_seconds,
    bus_loses_everything,
    block_of_the_store_damaged,
)

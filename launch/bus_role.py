"""`zerotir bus`: the run's server, or its streams on servers that others run, and the files by which roles join."""

import asyncio
import contextlib
import sys
from pathlib import Path
from shlex import quote

import nats.js.errors
import structlog

from bus import cluster
from bus.address import BusAddress
from bus.connection import TRANSIENT_ERRORS, Bus, BusError, open_bus
from bus.presence import Announcer
from bus.run_record import record_config
from bus.server import STORE_PATIENCE_S, embedded_server
from bus.store_watch import store_failed
from bus.streams import StreamError, create_streams
from configs.agreement import require_effect
from configs.errors import UserError
from configs.loading import dump_config, load_config
from configs.names import RULE, is_name
from configs.schema import RunConfig
from runtime.files import make_folder, write_whole
from runtime.locks import HeldError, held_within
from runtime.logs import set_up_logs
from runtime.retry import Restarts
from runtime.waiting import done_or_stopped

log = structlog.get_logger()

LOCK = "bus.lock"
"""File of a run's folder that its bus holds."""
LOOK_EVERY_S = 1.0
SERVER_RESTARTS = 5
OLDEST_SERVER = (2, 11)
GOOD_LIFE_S = 600.0
"""A server that lasted for so long starts its count of restarts anew."""


async def initialise(config: RunConfig, folder: Path) -> None:
    """Writes what a run on a cluster of its own needs, and says what to do with it."""
    servers = cluster.initialise(folder, config.bus, config.largest_message_bytes)
    sys.stdout.write(
        f"run {folder.name}: {len(servers)} server files in {folder / 'servers'}, each says how to start it; "
        f"then: zerotir bus CONFIG --folder {quote(str(folder))}\n"
        f"role files in {folder / 'credentials'}: one for each host's role\n"
    )


async def serve(config: RunConfig, folder: Path, stop: asyncio.Event) -> None:
    """Starts or continues the run in `folder`; an embedded server that dies is started again, a few times."""
    make_folder(folder, "--folder")
    # Its file of logs is that of the bus that is on, until the lock says that there is none.
    set_up_logs("bus", "bus", folder.name)
    async with contextlib.AsyncExitStack() as stack:
        try:
            await stack.enter_async_context(held_within(folder / LOCK, STORE_PATIENCE_S, stop))
        except HeldError as error:
            if stop.is_set():
                return
            raise UserError(
                f"the bus of the run in {folder} is on already: `zerotir bus` is {error.holder}. The run's roles need no "
                "other one (`zerotir status`); to start it anew, stop that one first"
            ) from error
        await _serve(config, folder, stop)


async def _serve(config: RunConfig, folder: Path, stop: asyncio.Event) -> None:
    address_file = folder / "bus.json"
    run = BusAddress.read(address_file).run if address_file.exists() else folder.name
    if not is_name(run):
        raise UserError(f"{folder}: its name becomes the run's id: {RULE}; name another one with --folder")
    set_up_logs("bus", "bus", run, folder / "logs" / "bus.jsonl")
    ending = ""
    restarts = Restarts(SERVER_RESTARTS, GOOD_LIFE_S)
    while True:
        known = BusAddress.read(address_file) if address_file.exists() else None
        reason = await _serve_once(config, folder, run, known, ending, stop)
        if reason is None:
            return
        ending = reason
        if not restarts.died():
            log_file = folder / "nats" / "server.log"
            raise BusError(f"{ending}, for the {restarts.count}th time within a few minutes: see {log_file}")
        log.error(f"{ending}: it is started again on its store and port", log=str(folder / "nats" / "server.log"))


def _record(config: RunConfig, path: Path) -> None:
    """Writes the run's configuration down. Raises ConfigError where a change cannot take effect."""
    if path.exists():
        for change in require_effect(load_config(str(path)), config, "resume"):
            log.warning(
                "the run goes on with another setting", field=change.field, before=change.before, now=change.now
            )
    write_whole(path, dump_config(config))


async def _serve_once(
    config: RunConfig, folder: Path, run: str, known: BusAddress | None, ending: str, stop: asyncio.Event
) -> str | None:
    """Runs the server (unless `bus.url` is set) and makes the streams; `ending` is how the one before ended, if any did.

    Returns why the server must be started again, None after `stop`.
    """
    server = None
    async with contextlib.AsyncExitStack() as stack:
        if config.bus.url:
            if known is None:
                raise UserError(
                    f"{folder} holds no keys for the servers of bus.url: make both with "
                    f"`zerotir bus CONFIG --init {quote(str(folder))}`"
                )
            address = known
        else:
            address, server = await stack.enter_async_context(
                embedded_server(
                    folder / "nats",
                    config.bus,
                    run,
                    known,
                    keep_port=bool(ending),
                    largest_message=config.largest_message_bytes,
                )
            )
        # Not before: a server that outlived its bus may still be at work here.
        _record(config, folder / "config.yaml")
        bus = await stack.enter_async_context(open_bus(address, config.bus, "bus"))
        _require_capable_servers(bus, config)
        await _set_up(bus, config)
        address.write_all(folder)
        latest = folder.parent / "latest"
        latest.unlink(missing_ok=True)
        latest.symlink_to(folder.name)
        announcer = Announcer(bus, "bus", "bus")
        announcing = asyncio.create_task(announcer.run())
        await announcer.say(f"ready again, {ending}" if ending else "ready")
        ended = asyncio.create_task(_end(server, bus, folder / "nats") if server else _keep_set_up(bus, config))
        await done_or_stopped(ended, stop)
        announcing.cancel()
        ended.cancel()
        return ended.result() if ended.done() and not stop.is_set() else None


def _require_capable_servers(bus: Bus, config: RunConfig) -> None:
    """Raises UserError where the servers, which others set up, are too old or do not take the run's largest message."""
    version = bus.client.connected_server_version
    if (version.major, version.minor) < OLDEST_SERVER:
        raise UserError(
            f"the servers at {bus.address.url} are of version {version.major}.{version.minor}: logs are read in batches, "
            f"which nats-server has from version {'.'.join(map(str, OLDEST_SERVER))} on"
        )
    needed, given = config.largest_message_bytes, bus.client.max_payload
    if needed > given:
        raise UserError(
            f"the servers at {bus.address.url} take messages of {given:,} bytes, and this run may have some of {needed:,} "
            f"(its longest result, or a part of the weights): set `max_payload: {needed}` in the servers' files, or lower "
            "rollout.max_response_tokens and weights.chunk_bytes"
        )


async def _set_up(bus: Bus, config: RunConfig) -> None:
    await create_streams(bus.js, bus.names, config.bus, config.actor.lease_s)
    await record_config(bus, config)


async def _keep_set_up(bus: Bus, config: RunConfig) -> str:
    """Makes the streams again where servers that others run come back without them. Raises BusError for a lost bus."""
    seen = bus.client.stats["reconnects"]
    while True:
        await asyncio.sleep(LOOK_EVERY_S)
        bus.require_connection()
        if bus.client.is_connected and (reconnects := bus.client.stats["reconnects"]) != seen:
            try:
                await _set_up(bus, config)
                seen = reconnects
            except (*TRANSIENT_ERRORS, nats.js.errors.APIError, StreamError) as error:
                log.warning("the streams are not ready, will try again", error=str(error))


async def _end(server: asyncio.subprocess.Process, bus: Bus, folder: Path) -> str:
    """Returns why the server has to be started again, once it has."""
    died, failed = asyncio.create_task(server.wait()), asyncio.create_task(store_failed(bus, folder))
    try:
        await asyncio.wait((died, failed), return_when=asyncio.FIRST_COMPLETED)
        return f"nats-server had ended with status {died.result()}" if died.done() else failed.result()
    finally:
        died.cancel()
        failed.cancel()

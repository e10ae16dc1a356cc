"""`zerotir page`: runs in the browser, live or from their folders, and their metrics for Prometheus."""

import argparse
import asyncio
import contextlib
import errno
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from functools import partial
from pathlib import Path
from shlex import quote

import structlog
import uvicorn

from bus.address import BusAddress, run_folder
from bus.connection import open_bus
from bus.run_record import recorded_settings
from configs.bus import BusConfig
from configs.errors import UserError
from launch.past_run import alarms_of, bus_file_of, config_if_there, folder_alone, run_id_of, settings_of
from launch.view_commands import view
from page.run_view import RunView
from page.server import LOOPBACK, application, new_token

log = structlog.get_logger()

PORT = 7787
EVERY_ADDRESS = ("0.0.0.0", "::")  # noqa: S104
RECONNECT_S = 86400.0
"""A page that somebody has open waits for a bus that comes back."""


def start(arguments: argparse.Namespace) -> int:
    """Serves the page of some runs until Ctrl-C; returns the exit status."""
    return view(lambda: _serve(arguments.runs, arguments.host, arguments.port))


async def _serve(runs: Sequence[Path], host: str, port: int | None) -> None:
    async with contextlib.AsyncExitStack() as stack:
        views = [await stack.enter_async_context(_open(run)) for run in dict.fromkeys(runs)]
        if len({each.name for each in views}) < len(views):
            raise UserError("two of these runs have the same id: give each once")
        bound = _bind(host, port)
        stack.callback(bound.close)
        token = None if host in LOOPBACK else new_token()
        served = uvicorn.Server(
            uvicorn.Config(application(views, token), log_config=None, access_log=False, timeout_graceful_shutdown=2)
        )
        query = f"?token={token}" if token else ""
        sys.stdout.write(f"http://{_name(host)}:{bound.getsockname()[1]}/{query}\n")
        sys.stdout.flush()
        async with asyncio.TaskGroup() as group:
            following = [group.create_task(each.follow()) for each in views]
            await served.serve(sockets=[bound])
            for task in following:
                task.cancel()


@contextlib.asynccontextmanager
async def _open(run: Path) -> AsyncIterator[RunView]:
    bus_file = bus_file_of(run)
    if folder := folder_alone(bus_file):
        yield RunView(
            run_id_of(folder), folder, None, settings_of(folder), alarms_of(folder), partial(config_if_there, folder)
        )
        return
    address = BusAddress.read(bus_file).for_role("observer")
    async with open_bus(address, BusConfig(timeout_s=10, reconnect_s=RECONNECT_S), "page") as bus:
        await bus.require_streams()
        folder = run_folder(bus_file)
        yield RunView(address.run, folder, bus, await recorded_settings(bus), config=partial(config_if_there, folder))


def _name(host: str) -> str:
    """Returns what a browser is to ask for, where a page is served at the address `host`."""
    if host in EVERY_ADDRESS:
        return socket.gethostname()
    return f"[{host}]" if ":" in host else host


def _bind(host: str, port: int | None) -> socket.socket:
    """Returns a socket on `port`, or, where none is asked for, on `PORT` or any other that is free. Raises UserError."""
    for wanted in (PORT, 0) if port is None else (port,):
        try:
            return socket.create_server((host, wanted), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        except OSError as error:
            if port is not None or error.errno != errno.EADDRINUSE:
                # What the library adds repeats the address.
                why = str(error.strerror).partition(" (")[0]
                raise UserError(
                    f"the page cannot be served at {quote(host)}, port {wanted} ({why}): choose another --host "
                    "or --port, or leave them out"
                ) from error
    raise AssertionError

"""One role, one process: set-up, signals, the role itself, and an exit status that tells how it ended.

SIGTERM and SIGINT ask a role to stop; a second one ends it at once. A role exits with 0 when it did its work or was asked
to stop, with 2 for what the user has to mend and with 1 for a failure; both are named in one line and, in the log, in
full.
"""

import argparse
import asyncio
import contextlib
import logging
import os
import secrets
import signal
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path

import nats.js.errors
import structlog

from bus.address import AddressError, BusAddress
from bus.connection import Bus, BusError, open_bus
from bus.logs import set_up_logs
from bus.presence import Announcer
from bus.server import ServerError, embedded_server
from bus.streams import StreamError, create_streams
from configs.loading import dump_config, fingerprint
from configs.schema import RunConfig

log = structlog.get_logger()

Role = Callable[[RunConfig, Bus, Announcer, Path, asyncio.Event], Coroutine[None, None, None]]


class UsageError(RuntimeError):
    """Something that the user has to mend; the text says what."""


def new_run_id(name: str) -> str:
    """Sortable by time within a configuration; the suffix keeps two runs of one second apart."""
    return f"{name}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def start(arguments: argparse.Namespace, config: RunConfig) -> int:
    """Runs the role that the command line names; returns the exit status."""
    if arguments.command == "bus":
        folder = arguments.folder or Path(config.launch.runs_dir) / new_run_id(config.name)
        return _guarded(lambda stop: _serve_bus(config, folder, stop))
    if arguments.command == "sandbox" and arguments.check:
        return _guarded(lambda stop: _check(config))
    role = arguments.command
    id = arguments.id or f"{role}-{secrets.token_hex(3)}"
    return _guarded(lambda stop: _join(role, id, config, arguments.run, stop))


def _guarded(work: Callable[[asyncio.Event], Coroutine[None, None, None]]) -> int:
    """Runs `work` under signal handlers and turns its errors into an exit status."""

    async def supervised() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()

        def on_signal() -> None:
            if stop.is_set():
                os._exit(130)
            stop.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, on_signal)
        await work(stop)

    code = 0
    try:
        asyncio.run(supervised())
    except (AddressError, UsageError, ServerError, StreamError) as error:
        code = _report(error, 2)
    except Exception as error:  # noqa: BLE001 (the process boundary)
        code = _report(error, 1)
    logging.shutdown()
    return code


def _report(error: Exception, code: int) -> int:
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    logging.getLogger("launch").error(f"{type(error).__name__}: {error}", exc_info=error if code == 1 else None)
    if not logging.getLogger().handlers:
        sys.stderr.write(f"zerotir: {error}\n")
    return code


async def _serve_bus(config: RunConfig, folder: Path, stop: asyncio.Event) -> None:
    """Starts or continues the run in `folder`: server (embedded unless `bus.url` is set), streams, bus.json."""
    folder.mkdir(parents=True, exist_ok=True)
    address_file = folder / "bus.json"
    known = BusAddress.read(address_file) if address_file.exists() else None
    run = known.run if known else folder.name
    set_up_logs("bus", "bus", run, folder / "logs" / "bus.jsonl")
    (folder / "config.yaml").write_text(dump_config(config))
    async with contextlib.AsyncExitStack() as stack:
        if config.bus.url:
            address = known or BusAddress(
                run=run,
                url=config.bus.url,
                user=os.environ.get("ZEROTIR_BUS_USER", ""),
                password=os.environ.get("ZEROTIR_BUS_PASSWORD", ""),
            )
            died: asyncio.Future[int] | asyncio.Task[int] = asyncio.get_running_loop().create_future()
        else:
            address, server = await stack.enter_async_context(embedded_server(folder / "nats", config.bus, run, known))
            died = asyncio.create_task(server.wait())
        bus = await stack.enter_async_context(open_bus(address, config.bus, "bus"))
        await create_streams(bus.js, bus.names, config.bus)
        await (await bus.js.key_value(bus.names.run_bucket)).put("config", fingerprint(config).encode())
        address.write(address_file)
        latest = folder.parent / "latest"
        latest.unlink(missing_ok=True)
        latest.symlink_to(folder.name)
        announcer = Announcer(bus, "bus", "bus")
        announcing = asyncio.create_task(announcer.run())
        await announcer.say("ready")
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait((stopping, died), return_when=asyncio.FIRST_COMPLETED)
        announcing.cancel()
        if died.done():
            raise ServerError(f"nats-server ended with status {died.result()}: see {folder / 'nats' / 'server.log'}")


async def _check(config: RunConfig) -> None:
    from sandbox.jail import Jail, SandboxUnavailable

    try:
        sys.stdout.write(await Jail(config.sandbox).check() + "\n")
    except SandboxUnavailable as error:
        raise UsageError(str(error)) from error


async def _join(role: str, id: str, config: RunConfig, address_file: Path, stop: asyncio.Event) -> None:
    """Joins the run of `address_file` and plays `role` in it until it is done or told to stop."""
    address = BusAddress.read(address_file)
    folder = address_file.resolve().parent
    set_up_logs(role, id, address.run, folder / "logs" / f"{id}.jsonl")
    async with open_bus(address, config.bus, id) as bus:
        await bus.require_streams()
        await _require_same_run(bus, config, folder)
        announcer = Announcer(bus, role, id)
        announcing = asyncio.create_task(announcer.run())
        try:
            await {"sandbox": _sandbox, "actor": _actor, "learner": _learner}[role](
                config, bus, announcer, folder, stop
            )
        finally:
            announcing.cancel()
            if bus.client.is_connected:
                await announcer.leave()


async def _require_same_run(bus: Bus, config: RunConfig, folder: Path) -> None:
    try:
        entry = await (await bus.js.key_value(bus.names.run_bucket)).get("config")
    except nats.js.errors.KeyNotFoundError:
        raise UsageError(f"run {bus.address.run!r} is not set up yet: start `zerotir bus` first") from None
    if (entry.value or b"").decode() != fingerprint(config):
        raise UsageError(
            f"this configuration's model, tasks or rollout differ from the run's: use {folder / 'config.yaml'}"
        )


async def _sandbox(config: RunConfig, bus: Bus, announcer: Announcer, folder: Path, stop: asyncio.Event) -> None:
    from bus.metrics import MetricsWriter
    from sandbox.jail import Jail, SandboxUnavailable
    from sandbox.service import SandboxService

    try:
        jail = Jail(config.sandbox)
        log.info("sandbox checked", isolation=await jail.check())
        service = SandboxService(bus.client, bus.names.execution, jail, config.sandbox)
        await service.start()
    except SandboxUnavailable as error:
        raise UsageError(str(error)) from error
    last = (time.monotonic(), 0, 0.0)

    def measure() -> dict[str, float]:
        nonlocal last
        now = (time.monotonic(), service.executions, service.busy_seconds)
        seconds = now[0] - last[0]
        busy = (now[2] - last[2]) / (seconds * config.sandbox.concurrency)
        values = {
            "executions": now[1],
            "executions_per_s": (now[1] - last[1]) / seconds,
            "failures": service.failures,
            "idle_ratio": 1.0 - min(1.0, busy),
        }
        last = now
        announcer.in_flight = service.in_flight
        return values

    measuring = asyncio.create_task(MetricsWriter(bus, "sandbox", announcer.id).run(measure, every_s=5.0))
    await announcer.say("ready")
    await _until(stop, bus)
    measuring.cancel()
    await service.drain(grace_s=5.0)


async def _actor(config: RunConfig, bus: Bus, announcer: Announcer, folder: Path, stop: asyncio.Event) -> None:
    from configs.models import model_folder

    await announcer.say("loading the engine")
    model = await asyncio.to_thread(model_folder, config.model.path)
    from actors.actor import Actor
    from actors.engine import Engine
    from tasks.grading import Grader

    seed = secrets.randbits(31)
    length = config.rollout.max_prompt_tokens + config.rollout.max_response_tokens
    engine = await Engine.start(model, config.model, config.actor.engine, length, seed)
    try:
        async with Grader() as grader:
            await Actor(config, bus, engine, grader, announcer, seed).run(stop)
    finally:
        await engine.stop()


async def _learner(config: RunConfig, bus: Bus, announcer: Announcer, folder: Path, stop: asyncio.Event) -> None:
    from configs.models import model_folder

    await announcer.say("loading the training engine")
    model = await asyncio.to_thread(model_folder, config.model.path)
    from learner.loop import Learner
    from learner.trainer import Trainer
    from tasks.problems import ProblemOrder, load_problems

    problems = await asyncio.to_thread(load_problems, config.tasks.problems, config.seed)
    trainer = await asyncio.to_thread(Trainer, config, model)
    order = ProblemOrder(problems, config.seed)
    if not await Learner(config, bus, trainer, order, folder, announcer).run(stop):
        await announcer.leave()
        log.info("stopped before the last step; start the learner again to go on from its checkpoint")
        await bus.client.flush(timeout=2)
        logging.shutdown()
        # A training thread cannot be interrupted: leave it behind with the process.
        os._exit(0)
    trainer.policy.close()


async def _until(stop: asyncio.Event, bus: Bus) -> None:
    """Waits for the stop; raises BusError when the bus is lost for good."""
    waits = [asyncio.create_task(stop.wait()), asyncio.create_task(bus.lost.wait())]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()
    if bus.lost.is_set() and not stop.is_set():
        raise BusError(f"the bus at {bus.address.url} did not come back in {bus.config.reconnect_s:.0f} s")

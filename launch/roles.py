"""The roles: what the sandbox, an actor and the learner are made of, each started by a command of its own."""

import argparse
import asyncio
import contextlib
import logging
import os
import secrets
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import nats.errors
import structlog

from bus.address import BusAddress
from bus.connection import Bus, open_bus
from bus.presence import Announcer
from bus.run_record import record_model
from configs.schema import RunConfig
from grading.reward_source import keep_source, with_digest
from launch.joining import Role, guarded, join, model_of_run, new_id, new_run_id, start_engine
from launch.processes import STOPPED
from launch.rank_launcher import end_with_launcher, rank, rank_count, run_rank, start_ranks
from learner.training.plan import require_memory, require_model
from runtime.logs import set_up_logs
from runtime.model_digests import model_digests
from runtime.models import model_folder
from runtime.waiting import any_set

if TYPE_CHECKING:
    from sandbox.service import SandboxService

log = structlog.get_logger()


def start_bus(arguments: argparse.Namespace) -> int:
    """Runs the bus, or writes the files of a cluster's servers; returns the exit status."""
    from launch import bus_role

    config: RunConfig = arguments.config
    if arguments.init:
        return guarded(lambda stop: bus_role.initialise(config, arguments.init))
    folder = arguments.folder or Path(config.launch.runs_dir) / new_run_id(config.name)
    whole = with_digest(config)
    return guarded(lambda stop: bus_role.serve(whole, folder, stop))


def start_sandbox(arguments: argparse.Namespace) -> int:
    """Runs a sandbox, or tries one jail; returns the exit status."""
    config: RunConfig = arguments.config
    if arguments.check or arguments.run:
        from launch.jail_tools import check_isolation, run_program

        return guarded(lambda stop: run_program(config, arguments.run) if arguments.run else check_isolation(config))
    return _start("sandbox", _sandbox, arguments, stays=arguments.stay)


def start_actor(arguments: argparse.Namespace) -> int:
    """Runs an actor; returns the exit status."""
    return _start("actor", _actor, arguments, stays=arguments.stay)


def start_learner(arguments: argparse.Namespace) -> int:
    """Runs the learner or, where a launcher says so, another rank of it; returns the exit status."""
    if arguments.ranks:
        return start_ranks(arguments.ranks)
    end_with_launcher()
    if rank() > 0:
        return guarded(lambda stop: _rank(arguments.config, arguments.bus, stop))
    return _start("learner", _learner, arguments, stays=True)


def _start(role: str, play: Role, arguments: argparse.Namespace, *, stays: bool) -> int:
    id = arguments.id or new_id(role)
    config = arguments.config if role == "sandbox" else with_digest(arguments.config)
    return guarded(lambda stop: join(role, play, id, config, arguments.bus, stop, None if stays else stop))


async def _sandbox(config: RunConfig, bus: Bus, announcer: Announcer, folder: Path, stop: asyncio.Event) -> None:
    from sandbox.check import check
    from sandbox.jail import Jail
    from sandbox.pool import Pool
    from sandbox.service import SandboxService

    jail = Jail(config.sandbox)
    log.info("sandbox checked", isolation=await check(jail))
    if jail.weaker:
        log.warning(jail.weaker)
    async with Pool(jail) as pool:
        service = SandboxService(bus.client, bus.names.execution, pool, config.sandbox, announcer.id)
        await service.start()
        await _serve_sandbox(config, bus, announcer, service, stop)


async def _serve_sandbox(
    config: RunConfig, bus: Bus, announcer: Announcer, service: "SandboxService", stop: asyncio.Event
) -> None:
    from bus.metrics import MetricsWriter

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
        announcer.rates = {"executions_per_s": values["executions_per_s"]}
        return values

    writer = MetricsWriter(bus, "sandbox", announcer.id, emulated=config.emulated)
    measuring = asyncio.create_task(writer.run(measure, every_s=5.0))
    await announcer.say("ready")
    await _until(stop, bus)
    measuring.cancel()
    await service.drain(grace_s=5.0)


async def _actor(config: RunConfig, bus: Bus, announcer: Announcer, folder: Path, stop: asyncio.Event) -> None:
    model = await model_of_run(config, bus, announcer, stop)
    if model is None:
        return
    await announcer.say("loading the engine")
    from actors.actor import Actor
    from actors.emulated_engine import EmulatedEngine
    from actors.engine import Engine
    from actors.outbox import Outbox
    from grading.grader import Grader

    seed = secrets.randbits(31)
    engine: Engine
    async with Grader(grading=config.tasks.grading) as grader:
        if config.actor.engine.kind == "emulated":
            engine = await EmulatedEngine.start(model, config.actor.engine, seed)
        else:
            await asyncio.to_thread(require_model, config, model)
            engine = await start_engine(config, model, seed, stop, announcer)
        outbox = Outbox(bus, folder / "outbox" / bus.address.run, announcer.id)
        try:
            async with _weights_bus(bus, announcer) as weights_bus:
                await Actor(config, bus, weights_bus, engine, grader, outbox, announcer, seed).run(stop)
        finally:
            await engine.stop()


async def _learner(config: RunConfig, bus: Bus, announcer: Announcer, folder: Path, stop: asyncio.Event) -> None:
    from tasks.prompts import keep_template

    await announcer.say("loading the training engine")
    model = await asyncio.to_thread(model_folder, config.model.path)
    template = keep_template(folder, config.tasks.prompt.template)
    # At once: actors wait for it.
    record = partial(record_model, bus, await asyncio.to_thread(model_digests, model), template)
    await record()
    from launch.task_check import require_usable_tasks
    from tasks.problems import ProblemOrder, load_problems

    # What may be the user's mistake comes before what takes long to import.
    order = ProblemOrder(await asyncio.to_thread(load_problems, config.tasks.problems, config.seed), config.seed)
    keep_source(folder, config)
    await require_usable_tasks(config, template, order, model)
    from learner.checkpoints import in_checkpoint_dtype
    from learner.loop import Learner
    from learner.training.trainer import make_trainer

    config = await asyncio.to_thread(in_checkpoint_dtype, config, folder)
    if config.learner.trainer == "deepspeed":
        await asyncio.to_thread(require_model, config, model)
        await asyncio.to_thread(require_memory, config, model, rank_count())
    trainer = await asyncio.to_thread(make_trainer, config, model)
    async with _weights_bus(bus, announcer) as weights_bus:
        done = await Learner(config, bus, weights_bus, trainer, template, order, folder, announcer, record).run(stop)
    if not done:
        log.info("stopped before the last step; start the learner again to go on from its checkpoint")
        await announcer.leave()
        if bus.client.is_connected:
            with contextlib.suppress(nats.errors.Error):
                await bus.client.flush(timeout=2)
        logging.shutdown()
        # A training thread cannot be interrupted: leave it behind with the process.
        os._exit(STOPPED)
    await asyncio.to_thread(trainer.close)


async def _rank(config: RunConfig, address_file: Path, stop: asyncio.Event) -> None:
    """Runs a rank of the learner other than the first: it needs no bus and carries out rank 0's commands."""
    address = BusAddress.read(address_file)
    id = f"learner-rank-{rank()}"
    set_up_logs("learner", id, address.run, address_file.resolve().parent / "logs" / f"{id}.jsonl")
    await run_rank(config, stop)


def _weights_bus(bus: Bus, announcer: Announcer) -> contextlib.AbstractAsyncContextManager[Bus]:
    """Opens a connection for weights alone: no heartbeat waits behind them."""
    return open_bus(bus.address, bus.config, f"{announcer.id}-weights")


async def _until(stop: asyncio.Event, bus: Bus) -> None:
    """Waits for the stop; raises BusError when the bus is lost for good."""
    await any_set(stop, bus.lost)
    if not stop.is_set():
        bus.require_connection()

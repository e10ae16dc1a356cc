"""One role, one process: set-up, signals, the role itself, and an exit status that tells how it ended.

SIGTERM and SIGINT ask a role to stop; a second one ends it at once. A role exits with 0 when it did its work or was asked to
stop, with 2 for what the user has to fix, and with 1 for a failure; a learner that was asked to stop before its last step
exits with 130, since its work is not done. Errors are one line on the terminal and complete in the log.
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
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import nats.errors
import structlog

from bus.address import BusAddress, run_folder
from bus.connection import Bus, BusError, open_bus
from bus.presence import Announcer, last_sign
from bus.run_record import record_model, require_same_config, require_same_model
from configs.agreement import FIXED, SANDBOXED, SHARED
from configs.errors import UserError
from configs.schema import RunConfig
from grading.reward_source import keep_source, with_digest
from launch.ending import is_over, wait_for_end
from launch.extras import missing_extra
from launch.processes import STOPPED
from launch.rank_launcher import end_with_launcher, rank, rank_count, run_rank, start_ranks
from learner.training.plan import require_memory, require_model
from runtime.durations import how_long
from runtime.logs import log_emulated, no_more_on_terminal, set_up_logs
from runtime.model_digests import model_digests
from runtime.models import model_folder
from runtime.waiting import any_set

if TYPE_CHECKING:
    from sandbox.service import SandboxService

log = structlog.get_logger()

Role = Callable[[RunConfig, Bus, Announcer, Path, asyncio.Event], Coroutine[None, None, None]]


def new_run_id(name: str) -> str:
    """Returns an id that sorts by time within a configuration; a suffix keeps two runs of one second apart."""
    return f"{name}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def new_id(role: str) -> str:
    """Returns the name of a process in a run, where the user gives none."""
    return f"{role}-{secrets.token_hex(3)}"


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


def guarded(work: Callable[[asyncio.Event], Coroutine[None, None, None]]) -> int:
    """Runs `work` under signal handlers and turns its errors into an exit status."""

    async def supervised() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()

        def on_signal() -> None:
            if stop.is_set():
                os._exit(STOPPED)
            stop.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, on_signal)
        await work(stop)

    code = 0
    try:
        asyncio.run(supervised())
    except Exception as error:  # noqa: BLE001 (the process boundary)
        code = _report(error)
    logging.shutdown()
    return code


def _report(error: Exception) -> int:
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    if isinstance(error, ModuleNotFoundError) and (text := missing_extra(error)):
        error = UserError(text)
    code = 2 if isinstance(error, UserError) else 1
    if code == 2:
        sys.stderr.write(f"zerotir: {error}\n")
        no_more_on_terminal()
    logging.getLogger("launch").error(f"{type(error).__name__}: {error}", exc_info=error if code == 1 else None)
    return code


async def join(
    role: str,
    play: Role,
    id: str,
    config: RunConfig,
    address_file: Path,
    stop: asyncio.Event,
    ended: asyncio.Event | None,
    terminal: int = logging.INFO,
) -> None:
    """Joins the run of `address_file` as `role` and plays it until it is done or told to stop.

    `ended` is set once the run is done. Where it is done already, actors and sandboxes leave at once, and evaluators once
    they have scored the last version; but those that are for more steps wait. None: the role does not care. `terminal` is
    the lowest level that is logged to stderr.
    """
    address = BusAddress.read(address_file).for_role(role)
    folder = run_folder(address_file)
    set_up_logs(role, id, address.run, folder / "logs" / f"{id}.jsonl", terminal=terminal)
    if config.emulated:
        log_emulated()
    async with open_bus(address, config.bus, id) as bus:
        await bus.require_streams()
        await require_same_config(bus, config, {"learner": FIXED, "sandbox": SANDBOXED}.get(role, SHARED))
        end = await is_over(bus, role) if ended is not None else None
        goes_on = None
        if end is not None:
            done = f"the run is done, since {how_long(bus.clock.now() - end.ended_at)}: {end.steps} steps"
            if config.learner.steps > end.steps:
                log.warning(f"{done}. This role is for {config.learner.steps}, and waits for a learner that goes on")
                goes_on = end
            elif role != "evaluator":
                log.info(f"{done}. To go on with it, give it more (learner.steps), here as for the learner")
                return
        announcer = Announcer(bus, role, id)
        background = [asyncio.create_task(announcer.run())]
        if ended is not None:
            background.append(asyncio.create_task(wait_for_end(bus, role, ended, goes_on)))
        try:
            await play(config, bus, announcer, folder, stop)
        finally:
            for task in background:
                task.cancel()
            if bus.client.is_connected:
                await announcer.leave()


async def model_of_run(config: RunConfig, bus: Bus, announcer: Announcer, stop: asyncio.Event) -> Path | None:
    """Returns the folder of the model, once its files were compared with the learner's; None where told to stop before.

    Waits for a learner that has not started yet. Raises OtherModelError where the files are others, BusError where no
    learner starts in `actor.weights_timeout_s` seconds.
    """
    model = await asyncio.to_thread(model_folder, config.model.path)
    digests = await asyncio.to_thread(model_digests, model)
    if await require_same_model(bus, digests, 0, stop):
        return model
    await announcer.say("waiting for the learner")
    patience_s = config.actor.weights_timeout_s
    if not await require_same_model(bus, digests, patience_s, stop):
        if stop.is_set():
            return None
        raise BusError(
            f"no learner has started in {patience_s:.0f} s; {await last_sign(bus, 'learner')}: is one running?"
        )
    return model


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
    from actors.vllm_engine import VllmEngine
    from grading.grader import Grader

    seed = secrets.randbits(31)
    engine: Engine
    async with Grader(grading=config.tasks.grading) as grader:
        if config.actor.engine.kind == "emulated":
            engine = await EmulatedEngine.start(model, config.actor.engine, seed)
        else:
            await asyncio.to_thread(require_model, config, model)
            length = config.rollout.max_prompt_tokens + config.rollout.max_response_tokens
            engine = await VllmEngine.start(model, config.model, config.actor.engine, length, seed)
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
    from learner.checkpoints import in_checkpoint_dtype
    from learner.loop import Learner
    from learner.training.trainer import make_trainer
    from tasks.problems import ProblemOrder, load_problems

    config = await asyncio.to_thread(in_checkpoint_dtype, config, folder)
    if config.learner.trainer == "deepspeed":
        await asyncio.to_thread(require_model, config, model)
        await asyncio.to_thread(require_memory, config, model, rank_count())
    order = ProblemOrder(await asyncio.to_thread(load_problems, config.tasks.problems, config.seed), config.seed)
    keep_source(folder, config)
    await require_usable_tasks(config, template, order, model)
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

"""One role, one process: signals, its place in the run, and an exit status that tells how it ended.

SIGTERM and SIGINT ask a role to stop; a second one ends it at once. A role exits with 0 when it did its work or was asked to
stop, with 2 for what the user has to fix, and with 1 for a failure; a learner that was asked to stop before its last step
exits with 130, since its work is not done. Errors are one line on the terminal and complete in the log.
"""

import asyncio
import logging
import os
import secrets
import signal
import sys
import time
import traceback
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from bus.address import BusAddress, run_folder
from bus.connection import Bus, BusError, open_bus
from bus.presence import Announcer, last_sign
from bus.run_record import require_same_config, require_same_model
from configs.agreement import FIXED, SANDBOXED, SHARED
from configs.errors import UserError
from configs.schema import RunConfig
from launch.ending import is_over, wait_for_end
from launch.extras import missing_extra
from launch.processes import STOPPED
from runtime.logs import log_emulated, no_more_on_terminal, set_up_logs
from runtime.model_digests import model_digests
from runtime.models import model_folder
from runtime.waiting import done_or_stopped
from runtime.words import how_long
from tracking.tracker import TrackerError

if TYPE_CHECKING:
    from actors.vllm_engine import VllmEngine

log = structlog.get_logger()

Role = Callable[[RunConfig, Bus, Announcer, Path, asyncio.Event], Coroutine[None, None, None]]


def new_run_id(name: str) -> str:
    """Returns an id that sorts by time within a configuration; a suffix keeps two runs of one second apart."""
    return f"{name}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def new_id(role: str) -> str:
    """Returns the name of a process in a run, where the user gives none."""
    return f"{role}-{secrets.token_hex(3)}"


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
    file = no_more_on_terminal()
    if code == 2:
        sys.stderr.write(f"zerotir: {error}\n")
    elif file is not None:
        sys.stderr.write(f"zerotir: {type(error).__name__}: {error} (where it happened: {file})\n")
    elif isinstance(error, BusError | TrackerError):
        sys.stderr.write(f"zerotir: {error}\n")
    else:
        traceback.print_exception(error)
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


async def start_engine(
    config: RunConfig, model: Path, seed: int, stop: asyncio.Event, announcer: Announcer | None = None
) -> "VllmEngine":
    """Starts vLLM on the model in a folder, for a configuration's longest prompt and response. Raises EngineError.

    Where it is told to stop meanwhile it ends this process, which holds nothing of a run's yet: what imports and loads in a
    thread cannot be broken off.
    """
    from actors.vllm_engine import VllmEngine

    length = config.rollout.max_prompt_tokens + config.rollout.max_response_tokens
    starting = asyncio.ensure_future(VllmEngine.start(model, config.model, config.actor.engine, length, seed))
    if not await done_or_stopped(starting, stop):
        log.info("told to stop while the engine starts")
        if announcer is not None:
            await announcer.leave()
        logging.shutdown()
        os._exit(0 if announcer else STOPPED)
    return starting.result()

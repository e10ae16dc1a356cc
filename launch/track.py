"""`zerotir track`: gives a tracker what a run measures and writes, while the run is on or afterwards.

It is one more follower: it reads as `zerotir metrics` does, from the beginning, and nobody in the run knows of it.

    metrics.jsonl of the run's folder, if it is here ──▶ the bus, live ──▶ tracker ──▶ position.json

Started late, it gives the tracker everything from the first step on; started again, it goes on behind what the tracker has.
It leaves once the run is done, and evaluators have written their last.
"""

import argparse
import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nats.errors
import structlog

from bus.address import BusAddress, run_folder
from bus.codec import MessageError
from bus.connection import TRANSIENT_ERRORS, Bus, open_bus
from bus.messages import Metrics
from bus.metrics_history import MetricsHistory
from bus.presence import who_is_alive
from bus.run_record import recorded_end, recorded_settings
from configs.bus import BusConfig
from configs.errors import UserError
from configs.schema import TrackerName
from launch.joining import guarded
from launch.past_run import bus_file_of, config_of, folder_alone, run_id_of, settings_of
from launch.processes import STOPPED
from launch.transcript_samples import TranscriptSamples
from runtime.logs import set_up_logs
from runtime.waiting import done_or_stopped
from tracking.tracker import require_installed
from tracking.worker import Worker

log = structlog.get_logger()

READ_S = 1.0
SAMPLE_EVERY_S = 5.0
SAVE_EVERY_S = 10.0
LOOK_EVERY_S = 5.0
GRACE_S = 8.0
"""Seconds in which it gives the tracker what it has, once it was told to stop."""


def start(arguments: argparse.Namespace) -> int:
    """Gives a run to a tracker until the run is done; returns the exit status."""
    return guarded(lambda stop: _track(arguments.to, bus_file_of(arguments.run), stop))


async def _track(name: TrackerName, bus_file: Path, stop: asyncio.Event) -> None:
    require_installed(name)
    tracking = asyncio.ensure_future(_follow(name, bus_file, stop))
    if await done_or_stopped(tracking, stop, GRACE_S):
        tracking.result()
        if not stop.is_set():
            return
    else:
        log.warning("the tracker does not take the last metrics; the next start gives them to it", tracker=name)
    logging.shutdown()
    # Its thread cannot be interrupted: leave it behind with the process.
    os._exit(STOPPED)


async def _follow(name: TrackerName, bus_file: Path, stop: asyncio.Event) -> None:
    id = f"track-{name}"
    if folder := folder_alone(bus_file):
        run = run_id_of(folder)
        set_up_logs("observer", id, run)
        log.info("the run's servers do not answer: the tracker gets what its folder has", tracker=name)
        await _work(Worker(name, folder, run), settings_of(folder), folder, None, stop)
        return
    address = BusAddress.read(bus_file).for_role("observer")
    folder = run_folder(bus_file)
    set_up_logs("observer", id, address.run, folder / "logs" / f"{id}.jsonl")
    async with open_bus(address, BusConfig(timeout_s=10), id) as bus:
        await bus.require_streams()
        worker = Worker(name, folder, address.run)
        await _work(worker, await recorded_settings(bus), folder, bus, stop)
        if not stop.is_set():
            bus.require_connection()


async def _work(worker: Worker, settings: dict[str, Any], folder: Path, bus: Bus | None, stop: asyncio.Event) -> None:
    """Gives the tracker metrics and transcripts until there are no more, or until told to stop."""
    async with worker.open(settings) as where:
        log.info("the tracker has the run", tracker=worker.name, where=where)
        samples = await asyncio.to_thread(_samples, folder, worker.position.sampled)
        history = MetricsHistory(folder / "metrics.jsonl", bus, worker.position.sequence)
        no_more = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            sampling = group.create_task(_write_samples(worker, samples, no_more)) if samples else None
            await _write_metrics(worker, samples, history, bus, stop)
            no_more.set()
            if sampling is not None and stop.is_set():
                sampling.cancel()


def _samples(folder: Path, after: int) -> TranscriptSamples | None:
    """Returns what reads the run's transcripts; None where there are none here, or of another version of this project."""
    if not (folder / "config.yaml").exists():
        log.info("the tracker gets no transcripts: they are in the run's folder, on the learner's host")
        return None
    try:
        return TranscriptSamples(folder, config_of(folder), after)
    except UserError as error:
        log.info("the tracker gets no transcripts: another version made the run", reason=str(error).split("\n")[0])
        return None


async def _write_samples(worker: Worker, samples: TranscriptSamples, no_more: asyncio.Event) -> None:
    """Gives the tracker transcripts until no more metrics come; what cannot be read is told, and costs no metrics."""
    try:
        while True:
            is_last = no_more.is_set()
            reading = samples.read()
            while (of_step := await asyncio.to_thread(next, reading, None)) is not None:
                await worker.write_samples(of_step)
            if is_last:
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SAMPLE_EVERY_S):
                    await no_more.wait()
    except (UserError, MessageError, ValueError, OSError, ModuleNotFoundError) as error:
        log.warning("the tracker gets no transcripts from here on", reason=f"{type(error).__name__}: {error}")


async def _write_metrics(
    worker: Worker, samples: TranscriptSamples | None, history: MetricsHistory, bus: Bus | None, stop: asyncio.Event
) -> None:
    """Gives the tracker everything until the run is done, its bus is lost, or this process is told to stop."""
    last: int | None = None
    look_at = time.monotonic()
    save_at = look_at + SAVE_EVERY_S
    given = 0
    while not stop.is_set() and not (bus and bus.lost.is_set()):
        measured = await history.read(READ_S)
        if measured:
            await worker.write(measured)
            if samples is not None:
                samples.note([metrics for _, metrics in measured])
            given += len(measured)
        elif bus is None:
            break
        if not measured or time.monotonic() >= save_at:
            if measured:
                log.info("the tracker gets what was measured before", measurements=given, step=_last_step(measured))
            await worker.save()
            save_at = time.monotonic() + SAVE_EVERY_S
        if bus is not None and last is None and time.monotonic() >= look_at:
            last = await _last_of_a_run_that_is_done(bus)
            look_at = time.monotonic() + LOOK_EVERY_S
        if last is not None and history.position >= last:
            break
    log.info("the tracker has everything so far", measurements=given)


def _last_step(measured: Sequence[tuple[int, Metrics]]) -> int | None:
    return next((metrics.step for _, metrics in reversed(measured) if metrics.step is not None), None)


async def _last_of_a_run_that_is_done(bus: Bus) -> int | None:
    """Returns the sequence of its last metrics once the run is done, else None.

    A run that is to go on is not done: its configuration asks for more steps than there were.
    """
    try:
        end = await recorded_end(bus)
        if end is None or (await recorded_settings(bus))["learner"]["steps"] > end.steps:
            return None
        roles = {presence.role for presence in await who_is_alive(bus)}
        if "evaluator" in roles:
            return None
        return (await bus.js.stream_info(bus.names.stream("METRICS"))).state.last_seq
    except (*TRANSIENT_ERRORS, nats.errors.Error) as error:
        log.warning("cannot see whether the run is done, will look again", error=str(error))
        return None

"""Shows a run to people: a line a step, the status, the metrics as they come, the summary at the end."""

import argparse
import asyncio
import os
import sys
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import nats.js.errors

from bus.address import BusAddress
from bus.codec import MessageError
from bus.connection import Bus, BusError, open_bus
from bus.log_reader import LogReader
from bus.messages import Metrics, Presence
from bus.metrics import follow_metrics, measured_by, metrics_line, steps_of
from bus.presence import last_sign, who_is_alive
from bus.run_record import recorded_end
from configs.bus import BusConfig
from launch.accounts import account_lines
from learner.tickets.ledger import BalanceError
from runtime.terminal import printable
from sandbox.client import ServiceStatistics, statistics

WATCH_EVERY_S = 2.0
CLEAR_SCREEN = "\x1b[2J\x1b[H"


def say(text: str) -> None:
    """Prints progress, a line or more; drops it where it cannot be written, on a full disk for one: the work goes on."""
    try:
        lines = "\n".join(map(printable, text.split("\n")))
        sys.stdout.write(f"{time.strftime('%H:%M:%S')}  {lines}\n")
        sys.stdout.flush()
    except OSError:
        # This one would keep the line, and try it again with the next ones and at the process's end.
        sys.stdout = os.fdopen(1, "w", closefd=False)


def how_long(seconds: float) -> str:
    """Returns a length of time for people, in its two largest units."""
    left = max(0, round(seconds))
    parts: list[str] = []
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s")):
        count, left = divmod(left, size)
        if count or parts or unit == "s":
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2])


def step_line(metrics: Metrics, steps: int) -> str:
    """Returns one training step for people; a dash for what the step did not measure."""

    def value(name: str, form: str) -> str:
        width = int(form.partition(".")[0] or 0)
        return f"{metrics.values[name]:{form}}" if name in metrics.values else "-".rjust(width)

    emulated = "EMULATED  " if metrics.values.get("emulated") else ""
    return (
        f"step {metrics.step:>3}/{steps}  {emulated}accuracy {value('accuracy', '4.0%')}  "
        f"code {value('code_ratio', '4.0%')}  "
        f"calls ok {value('successful_call_ratio', '4.0%')}  tokens {value('response_length', '4.0f')}  "
        f"staleness {value('staleness_mean', '.1f')}  KL {value('behaviour_kl', '.4f')}  "
        f"{value('step_seconds', '.0f')} s (waited {value('wait_seconds', '.0f')} s)"
    )


def summary(folder: Path, plots: list[Path]) -> str:
    """Returns what came of a run, and where it lies. Raises BalanceError where its tickets do not add up."""
    steps = steps_of(folder)
    emulated = " by an emulated engine: no figure here is a model's" if steps and steps[-1].get("emulated") else ""
    lines = [f"summary of {folder.name}: {len(steps)} steps{emulated}"]
    if steps:
        lines += [f"  {line}" for line in (*progress_lines(steps), *account_lines(steps))]
    paths = {
        "metrics": folder / "metrics.jsonl",
        "logs": folder / "logs",
        "checkpoint": folder / "model",
        **{plot.stem: plot for plot in plots},
    }
    lines += [f"  {name:<18} {path}" for name, path in paths.items() if path.exists()]
    return "\n".join(lines)


def progress_lines(steps: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns what the first five and the last five of a run's steps had, a line for each measure; see `steps_of`."""
    lines = []
    first, last = steps[:5], steps[-5:]
    for name, unit in (("accuracy", "%"), ("code_ratio", "%"), ("response_length", " tokens"), ("staleness_mean", "")):
        measured = [[record[name] for record in part if name in record] for part in (first, last)]
        if not all(measured):
            continue
        before, after = map(fmean, measured)
        scale = 100 if unit == "%" else 1
        lines.append(
            f"{name:<18} {before * scale:6.1f}{unit} (first {len(first)} steps)  ->  "
            f"{after * scale:6.1f}{unit} (last {len(last)} steps)"
        )
    return lines


def sandbox_line(service: ServiceStatistics) -> str:
    """Returns one sandbox service's statistics for people."""
    return (
        f"  sandbox   {service.name:<18} {service.in_flight} of {service.slots} slots in use, "
        f"{service.executions} executions ({service.failures} failed, {service.refused} refused as busy, "
        f"{service.cancelled} cancelled), idle jails: {service.idle_jails} bare, "
        f"{service.idle_jails_with_packages} with packages"
    )


def show_status(arguments: argparse.Namespace) -> int:
    """Prints who is in the run and the balance of tickets, once or until Ctrl-C; 1 where the balance does not close."""

    async def show() -> None:
        address = BusAddress.read(arguments.bus).for_role("observer")
        async with open_bus(address, BusConfig(timeout_s=10), "status") as bus:
            await bus.require_streams()
            sys.stdout.write(await _status(bus))
            while arguments.watch:
                await asyncio.sleep(WATCH_EVERY_S)
                text = await _status(bus)
                sys.stdout.write((CLEAR_SCREEN if sys.stdout.isatty() else "") + text)
                sys.stdout.flush()

    return _view(show)


async def _status(bus: Bus) -> str:
    steps = await _steps(bus)
    emulated = ", EMULATED engine" if steps and steps[-1].get("emulated") else ""
    end = await recorded_end(bus)
    done = f", finished {how_long(bus.clock.now() - end.ended_at)} ago after {end.steps} steps" if end else ""
    lines = [f"run {bus.address.run} at {bus.address.url}{emulated}{done}"]
    alive = await who_is_alive(bus)
    lines += [f"  {presence_line(presence, bus.clock.now())}" for presence in alive]
    for role in ("learner", "sandbox", "actor") if end is None else ():
        if role not in {presence.role for presence in alive}:
            lines.append(f"  {role:<8} none alive; {await last_sign(bus, role)}")
    lines += [sandbox_line(service) for service in await statistics(bus.client, bus.names.execution)]
    for kind in ("TICKETS", "RETRIES", "RESULTS", "WEIGHTS", "METRICS", "DEADLETTERS"):
        state = (await bus.js.stream_info(bus.names.stream(kind))).state
        lines.append(f"  {kind:<12} {state.messages} messages, {state.bytes / 2**20:.1f} MiB")
    if steps:
        lines.append(f"  after step {steps[-1]['step']}:")
        lines += [f"  {line}" for line in (*(progress_lines(steps) if end else ()), *account_lines(steps))]
    return "\n".join(lines) + "\n"


def presence_line(presence: Presence, now: float) -> str:
    """Returns one role that is alive, for people; `now` is the run's time."""
    rates = "  ".join(f"{name} {value:.4g}" for name, value in presence.rates.items())
    return printable(
        f"{presence.role:<8} {presence.id:<18} {presence.state:<36} weights {presence.version or '-':<8} "
        f"in flight {presence.in_flight:<4} on {presence.host}, {max(0.0, now - presence.time):.0f} s ago  {rates}".rstrip()
    )


async def _steps(bus: Bus) -> list[dict[str, Any]]:
    """Returns the values of each of the learner's steps, in order; of a step that was trained again, the last.

    Raises UnreadError where the bus does not give all of them.
    """
    steps: dict[int, dict[str, Any]] = {}
    stream, subject = bus.names.stream("METRICS"), f"{bus.names.metrics}.learner.*"
    try:
        newest = await bus.js.get_last_msg(stream, subject)
    except nats.js.errors.NotFoundError:
        return []
    reader = LogReader(bus, stream, subject)
    try:
        async for _, subject, data in reader.everything(newest.seq or 0):
            try:
                metrics = measured_by(bus.names, subject, data)
            except MessageError:
                continue
            if metrics.step is not None:
                steps[metrics.step] = {"step": metrics.step, **metrics.values}
    finally:
        await reader.close()
    return [steps[step] for step in sorted(steps)]


def show_metrics(arguments: argparse.Namespace) -> int:
    """Prints metrics as they come, until Ctrl-C."""

    async def show() -> None:
        address = BusAddress.read(arguments.bus).for_role("observer")
        async with open_bus(address, BusConfig(timeout_s=10), "metrics") as bus:
            await bus.require_streams()
            async for sequence, metrics in follow_metrics(bus):
                if arguments.role not in (None, metrics.role):
                    continue
                if arguments.json:
                    line = metrics_line(metrics, sequence, address.run)
                else:
                    values = "  ".join(f"{name} {value:.4g}" for name, value in metrics.values.items())
                    step = "" if metrics.step is None else f" step {metrics.step}"
                    line = f"{time.strftime('%H:%M:%S', time.localtime(metrics.time))} {metrics.id}{step}  {values}"
                sys.stdout.write(line + "\n")
                sys.stdout.flush()

    return _view(show)


def _view(show: Callable[[], Coroutine[None, None, None]]) -> int:
    try:
        asyncio.run(show())
    except BusError as error:
        sys.stderr.write(f"zerotir: {error}\n")
        return 2
    except BalanceError as error:
        sys.stderr.write(f"zerotir: {error}\n")
        return 1
    return 0

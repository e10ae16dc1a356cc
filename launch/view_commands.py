"""`zerotir status` and `zerotir metrics`: a run as its servers tell it, or as its folder does where they do not answer."""

import argparse
import asyncio
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import nats.js.errors

from bus.address import BusAddress
from bus.alarms import recorded_alarms
from bus.codec import MessageError
from bus.connection import Bus, BusError, open_bus
from bus.log_reader import LogReader
from bus.metrics import follow_metrics, measured_by, metrics_line
from bus.presence import last_sign, who_is_alive
from bus.run_record import recorded_end
from configs.bus import BusConfig
from launch.accounts import account_lines
from launch.past_run import folder_alone, print_metrics, status_of
from launch.views import presence_line, progress_lines, sandbox_line, values_line
from learner.tickets.ledger import BalanceError
from runtime.logs import set_up_logs
from runtime.words import how_long
from sandbox.client import statistics
from weights.codec import WeightsError

WATCH_EVERY_S = 2.0
CLEAR_SCREEN = "\x1b[2J\x1b[H"


def show_status(arguments: argparse.Namespace) -> int:
    """Prints who is in the run and the balance of tickets, once or until Ctrl-C; 1 where the balance does not close.

    Where its servers do not answer, prints what the run's folder says.
    """

    async def show() -> None:
        if folder := folder_alone(arguments.bus):
            sys.stdout.write(status_of(folder))
            return
        address = BusAddress.read(arguments.bus).for_role("observer")
        async with open_bus(address, BusConfig(timeout_s=10), "status") as bus:
            await bus.require_streams()
            sys.stdout.write(await _status(bus))
            while arguments.watch:
                await asyncio.sleep(WATCH_EVERY_S)
                text = await _status(bus)
                sys.stdout.write((CLEAR_SCREEN if sys.stdout.isatty() else "") + text)
                sys.stdout.flush()

    return view(show)


async def _status(bus: Bus) -> str:
    steps = await _steps(bus)
    emulated = ", EMULATED engine" if steps and steps[-1].get("emulated") else ""
    end = await recorded_end(bus)
    done = f", finished {how_long(bus.clock.now() - end.ended_at)} ago after {end.steps} steps" if end else ""
    lines = [f"run {bus.address.run} at {bus.address.url}{emulated}{done}"]
    alive = await who_is_alive(bus)
    alarms = await recorded_alarms(bus)
    lines += [f"  {alarm.line(end.ended_at if end else bus.clock.now())}" for alarm in alarms]
    if alarms and end is None and "learner" not in {presence.role for presence in alive}:
        lines.append("  (alarms are those of the learner that is gone: nobody looks any more)")
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
    """Prints metrics as they come, until Ctrl-C; where the run's servers do not answer, those of its folder."""

    async def show() -> None:
        if folder := folder_alone(arguments.bus):
            sys.stderr.write("zerotir: its servers do not answer; these are the metrics in its folder\n")
            print_metrics(folder, arguments.role, as_json=arguments.json)
            return
        address = BusAddress.read(arguments.bus).for_role("observer")
        async with open_bus(address, BusConfig(timeout_s=10), "metrics") as bus:
            await bus.require_streams()
            async for sequence, metrics in follow_metrics(bus):
                if arguments.role not in (None, metrics.role):
                    continue
                if arguments.json:
                    line = metrics_line(metrics, sequence, address.run)
                else:
                    line = values_line(metrics.time, metrics.id, metrics.step, metrics.values)
                sys.stdout.write(line + "\n")
                sys.stdout.flush()

    return view(show)


def view(show: Callable[[], Coroutine[None, None, None]]) -> int:
    """Runs a view and turns its errors into an exit status; whatever is logged goes to standard error."""
    set_up_logs("observer", "view", "")
    try:
        asyncio.run(show())
    except (BusError, WeightsError) as error:
        sys.stderr.write(f"zerotir: {error}\n")
        return 2
    except BalanceError as error:
        sys.stderr.write(f"zerotir: {error}\n")
        return 1
    return 0

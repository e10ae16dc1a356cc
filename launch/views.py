"""What people see of a run: a line a step, the status, the metrics as they come, the summary at the end."""

import asyncio
import json
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from statistics import fmean
from typing import Any

from bus.address import AddressError, BusAddress
from bus.codec import decode
from bus.connection import Bus, BusError, open_bus
from bus.log_reader import LogReader
from bus.messages import Metrics
from bus.metrics import follow_metrics, metrics_line
from bus.presence import who_is_alive
from configs.schema import BusConfig


def step_line(metrics: Metrics, steps: int) -> str:
    """One training step for people."""
    value = metrics.values.get
    return (
        f"step {metrics.step:>3}/{steps}  accuracy {value('accuracy', 0):4.0%}  code {value('code_ratio', 0):4.0%}  "
        f"calls ok {value('successful_call_ratio', 0):4.0%}  tokens {value('response_length', 0):4.0f}  "
        f"staleness {value('staleness_mean', 0):.1f}  KL {value('behaviour_kl', 0):.4f}  "
        f"{value('step_seconds', 0):.0f} s (waited {value('wait_seconds', 0):.0f} s)"
    )


def steps_of(folder: Path) -> list[dict[str, Any]]:
    """The learner's records of a run, one a step, in order; a step that was trained again counts once, the last time."""
    path = folder / "metrics.jsonl"
    records: dict[int, dict[str, Any]] = {}
    if path.exists():
        for line in path.read_text().splitlines():
            record = json.loads(line)
            if record["role"] == "learner" and record["step"] is not None:
                records[record["step"]] = record
    return [records[step] for step in sorted(records)]


def summary(folder: Path, plots: list[Path]) -> str:
    """What came of a run, and where it lies."""
    steps = steps_of(folder)
    lines = [f"summary of {folder.name}: {len(steps)} steps"]
    if steps:
        first, last = steps[:5], steps[-5:]
        for name, unit in (
            ("accuracy", "%"),
            ("code_ratio", "%"),
            ("response_length", " tokens"),
            ("staleness_mean", ""),
        ):
            before, after = (fmean(record.get(name, 0.0) for record in part) for part in (first, last))
            scale = 100 if unit == "%" else 1
            lines.append(
                f"  {name:<18} {before * scale:6.1f}{unit} (first {len(first)} steps)  ->  "
                f"{after * scale:6.1f}{unit} (last {len(last)} steps)"
            )
        tickets = {
            name: steps[-1].get(f"tickets_{name}", 0) for name in ("issued", "trained", "filtered", "failed", "open")
        }
        lines.append("  tickets            " + ", ".join(f"{count:.0f} {name}" for name, count in tickets.items()))
    paths = {
        "metrics": folder / "metrics.jsonl",
        "logs": folder / "logs",
        "checkpoint": folder / "model",
        **{plot.stem: plot for plot in plots},
    }
    lines += [f"  {name:<18} {path}" for name, path in paths.items() if path.exists()]
    return "\n".join(lines)


def show_status(address_file: Path) -> int:
    """Prints who is in the run and the balance of tickets."""

    async def show() -> None:
        address = BusAddress.read(address_file)
        async with open_bus(address, BusConfig(timeout_s=10), "status") as bus:
            await bus.require_streams()
            sys.stdout.write(f"run {address.run} at {address.url}\n")
            for presence in await who_is_alive(bus):
                sys.stdout.write(
                    f"  {presence.role:<8} {presence.id:<18} {presence.state:<40} weights {presence.version or '-':<8} "
                    f"in flight {presence.in_flight:<4} on {presence.host}, {time.time() - presence.time:.0f} s ago\n"
                )
            for kind in ("TICKETS", "RESULTS", "WEIGHTS", "METRICS", "DEADLETTERS"):
                state = (await bus.js.stream_info(bus.names.stream(kind))).state
                sys.stdout.write(f"  {kind:<12} {state.messages} messages, {state.bytes / 2**20:.1f} MiB\n")
            last = await _last_step(bus)
            if last is not None:
                names = ("issued", "trained", "filtered", "failed", "open", "ignored")
                balance = ", ".join(f"{last.values.get(f'tickets_{name}', 0):.0f} {name}" for name in names)
                sys.stdout.write(f"  step {last.step}: tickets {balance}\n")

    return _view(show)


async def _last_step(bus: Bus) -> Metrics | None:
    last = None
    reader = LogReader(bus, bus.names.stream("METRICS"), f"{bus.names.metrics}.learner.*")
    while messages := await reader.read(500, 0.5):
        last = decode(messages[-1][1], Metrics)
    return last


def show_metrics(address_file: Path, role: str | None, *, as_json: bool) -> int:
    """Prints metrics as they come, until Ctrl-C."""

    async def show() -> None:
        address = BusAddress.read(address_file)
        async with open_bus(address, BusConfig(timeout_s=10), "metrics") as bus:
            await bus.require_streams()
            async for sequence, metrics in follow_metrics(bus):
                if role not in (None, metrics.role):
                    continue
                if as_json:
                    line = metrics_line(metrics, sequence)
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
    except (AddressError, BusError) as error:
        sys.stderr.write(f"zerotir: {error}\n")
        return 2
    return 0

"""Puts what is known of a run into words: a line a step, who is alive, the summary at the end."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from shlex import quote
from statistics import fmean
from typing import Any

from bus.messages import Metrics, Presence
from bus.metrics import steps_of
from launch.accounts import account_lines
from runtime.terminal import printable
from runtime.words import time_left
from sandbox.client import ServiceStatistics
from tracking.worker import where_to_look

PACE_STEPS = 10
"""Steps that say how long one takes."""


def step_line(metrics: Metrics, steps: int, left_s: float | None = None) -> str:
    """Returns one training step for people; a dash for what the step did not measure.

    `left_s`: seconds that the rest of the run is estimated to take.
    """

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
        f"{'' if left_s is None else f'  {time_left(left_s)}'}"
    )


def seconds_left(steps: Sequence[Mapping[str, Any]], wanted: int) -> float | None:
    """Returns the seconds that a run is estimated to take yet, by its last ten steps; None where nothing is known or left.

    Args:
        steps: records of its steps, in order (`bus.metrics.steps_of`).
        wanted: how many there will be.
    """
    measured = [record["step_seconds"] for record in steps[-PACE_STEPS:] if "step_seconds" in record]
    left = wanted - steps[-1]["step"] if steps else 0
    return left * fmean(measured) if measured and left > 0 else None


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
    lines += [f"  {name:<18} {where}" for name, where in where_to_look(folder).items()]
    if any((folder / "results").glob("*.results")):
        lines.append(f"  {'transcripts':<18} read them with: zerotir transcripts {quote(str(folder))}")
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


def presence_line(presence: Presence, now: float) -> str:
    """Returns one role that is alive, for people; `now` is the run's time."""
    rates = "  ".join(f"{name} {value:.4g}" for name, value in presence.rates.items())
    return printable(
        f"{presence.role:<8} {presence.id:<18} {presence.state:<36} weights {presence.version or '-':<8} "
        f"in flight {presence.in_flight:<4} on {presence.host}, {max(0.0, now - presence.time):.0f} s ago  {rates}".rstrip()
    )


def values_line(measured_at: float, id: str, step: int | None, values: Mapping[str, float]) -> str:
    """Returns what one process measured at a time, for people."""
    shown = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
    return f"{time.strftime('%H:%M:%S', time.localtime(measured_at))} {id}{'' if step is None else f' step {step}'}  {shown}"

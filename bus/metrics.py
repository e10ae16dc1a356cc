"""The metrics log: every role writes, anyone may follow, and neither ever blocks the work."""

import asyncio
import contextlib
import json
import math
import os
import re
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import nats.errors
import nats.js.errors
import structlog

from bus.codec import MessageError, decode, encode
from bus.connection import TRANSIENT_ERRORS, Bus, BusError
from bus.log_reader import LogReader
from bus.messages import LATEST, Metrics
from bus.streams import Names

log = structlog.get_logger()

OF_STEPS = ("learner", "evaluator")
"""Roles whose metrics belong to a training step, or a weight version; a step that others name means nothing."""
FLOAT_LIMIT = 1e300
"""Numbers below it can be added up as floats."""


def slug(reason: str) -> str:
    """Returns a reason as it stands in a metric's name."""
    return re.sub(r"[^a-z0-9]+", "_", reason.lower())[:40].strip("_")


def measured(role: str, id: str, values: dict[str, float], step: int | None, now: float) -> Metrics:
    """Returns what `values` hold at the time `now`; those that are not finite are left out."""
    finite = {name: float(value) for name, value in values.items() if math.isfinite(value)}
    return Metrics(role=role, id=id, time=now, step=step, values=finite)


class MetricsWriter:
    """Writes one role's measurements, without waiting for the bus."""

    def __init__(self, bus: Bus, role: str, id: str, *, emulated: bool = False) -> None:
        """`emulated`: everything that is written says so, by the value `emulated`."""
        self._bus = bus
        self._role = role
        self._id = id
        self._marks = {"emulated": 1.0} if emulated else {}

    async def write(self, values: dict[str, float], step: int | None = None) -> float:
        """Sends finite values, and returns the time that they carry; while the bus is away they are dropped."""
        metrics = measured(self._role, self._id, self._marks | values, step, self._bus.clock.now())
        try:
            await self._bus.client.publish(f"{self._bus.names.metrics}.{self._role}.{self._id}", encode(metrics))
        except nats.errors.Error as error:
            log.warning("metrics dropped", error=str(error))
        return metrics.time

    async def run(self, measure: Callable[[], dict[str, float]], every_s: float) -> None:
        """Writes what `measure` returns every `every_s` seconds until cancelled."""
        while True:
            await asyncio.sleep(every_s)
            await self.write(measure())


async def follow_metrics(bus: Bus, start: int = 1) -> AsyncIterator[tuple[int, Metrics]]:
    """Yields all metrics from sequence `start` on, past and to come, as (sequence, metrics)."""
    stream = bus.names.stream("METRICS")
    reader = LogReader(bus, stream, f"{bus.names.metrics}.*.*", start)
    async for sequence, subject, data in reader.follow():
        try:
            metrics = measured_by(bus.names, subject, data)
        except MessageError as error:
            await bus.dead_letter(stream, sequence, data, str(error))
            continue
        yield sequence, metrics


def measured_by(names: Names, subject: str, data: bytes) -> Metrics:
    """Returns the metrics in a message. Raises MessageError also where the subject names another process than they do."""
    metrics = decode(data, Metrics)
    if subject != f"{names.metrics}.{metrics.role}.{metrics.id}":
        raise MessageError(f"metrics of {metrics.role} {metrics.id}, written by {subject.removeprefix(names.metrics)}")
    return metrics


def metrics_line(metrics: Metrics, sequence: int, run: str) -> str:
    """Returns one line of `metrics.jsonl`, without the line end."""
    return json.dumps({"run": run, "seq": sequence, **record_of(metrics)}, allow_nan=False)


def record_of(metrics: Metrics) -> dict[str, Any]:
    """Returns what a line of `metrics.jsonl` says of who measured it and when, and the values."""
    about = {"time": round(metrics.time, 3), "role": metrics.role, "id": metrics.id, "step": metrics.step}
    return {**about, **metrics.values}


def steps_of(folder: Path) -> list[dict[str, Any]]:
    """Returns the learner's records in the `metrics.jsonl` of a run's folder, one a step, in order.

    A step that was trained again counts once, the last time; a last line that is still being written does not count.
    """
    steps = {
        record["step"]: record
        for record in records_of(folder / "metrics.jsonl")
        if record["role"] == "learner" and record["step"] is not None
    }
    return [steps[step] for step in sorted(steps)]


def records_of(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the records of a `metrics.jsonl`, none where there is no file; leaves out lines that are no such records."""
    if not path.is_file():
        return
    with path.open(errors="replace") as lines:
        for line in lines:
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(record, dict) and _is_record(record):
                yield record


def _is_record(record: dict[str, Any]) -> bool:
    step = record.get("step", "")
    values = (value for name, value in record.items() if name not in ("run", "role", "id", "step"))
    numbers = all(isinstance(value, int | float) and abs(value) < FLOAT_LIMIT for value in values)
    return (
        all(isinstance(record.get(name), str) for name in ("role", "id"))
        and (step is None or isinstance(step, int))
        and numbers
        and 0 <= record.get("time", -1) <= LATEST
    )


def run_of(path: Path) -> str | None:
    """Returns the run that a `metrics.jsonl` is of; None where no line names one."""
    named = (record.get("run") for record in records_of(path))
    return next((name for name in named if isinstance(name, str)), None)


def last_sequence(path: Path) -> int:
    """Returns the sequence of the last whole line of a `metrics.jsonl`, 0 where there is none."""
    if not path.exists():
        return 0
    last = 0
    for line in path.read_text().splitlines():
        try:
            last = max(last, int(json.loads(line)["seq"]))
        except (ValueError, KeyError):
            continue
    return last


class MetricsRecorder:
    """Appends the metrics log to a file; goes on where the file ends."""

    def __init__(self, bus: Bus, path: Path, see: Callable[[Metrics], None]) -> None:
        """`see` is called with what was appended."""
        self._bus = bus
        self._path = path
        self._see = see
        self._sequence = 0
        """Sequence of the message that was recorded last."""
        self._measured_at = 0.0
        """When the learner measured what was recorded last of it."""
        self._grown = asyncio.Event()

    async def run(self) -> None:
        """Records until cancelled."""
        _cut_torn_tail(self._path)
        self._sequence = last_sequence(self._path)
        with contextlib.suppress(*TRANSIENT_ERRORS, nats.js.errors.APIError, BusError):
            await self.recover()
        with self._path.open("a") as file:
            async for sequence, metrics in follow_metrics(self._bus, self._sequence + 1):
                self._sequence = sequence
                file.write(metrics_line(metrics, sequence, self._bus.address.run) + "\n")
                file.flush()
                self._see(metrics)
                if metrics.role == "learner":
                    self._measured_at = metrics.time
                self._grown.set()

    async def recover(self) -> bool:
        """Has the stream go on where the file ends, if it has lost what is in the file; returns whether it had.

        Raises what nats-py raises.
        """
        state = (await self._bus.js.stream_info(self._bus.names.stream("METRICS"))).state
        if state.last_seq >= self._sequence:
            return False
        await self._bus.skip_to("METRICS", self._sequence + 1)
        return True

    async def recorded(self, time: float, patience_s: float) -> None:
        """Waits until the file has what the learner measured at a time, as `MetricsWriter.write` returned it.

        Warns where it has not after `patience_s` seconds; what is missing is recorded when the run goes on in its folder.
        """
        try:
            async with asyncio.timeout(patience_s):
                while self._measured_at != time:
                    self._grown.clear()
                    await self._grown.wait()
        except TimeoutError:
            log.warning("the last metrics are not in the file", file=str(self._path))


def _cut_torn_tail(path: Path) -> None:
    """Removes what a kill or a full disk left of a last line: the next one would be appended to it."""
    if path.exists() and not (data := path.read_bytes()).endswith(b"\n"):
        os.truncate(path, data.rfind(b"\n") + 1)

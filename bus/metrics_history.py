"""Everything that a run has measured, past and to come: from the file in its folder where that is here, then from the bus.

The bus keeps metrics for a time (`bus.metrics_age_s`), the file on the learner's host keeps them for ever. Both count
messages alike, so reading goes on in the one where it ended in the other.
"""

import asyncio
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import nats.js.errors
import structlog
from pydantic import ValidationError

from bus.codec import MessageError
from bus.connection import TRANSIENT_ERRORS, Bus
from bus.log_reader import LogReader
from bus.messages import RESERVED, Metrics
from bus.metrics import measured_by, records_of

log = structlog.get_logger()

TOGETHER = 500
"""Messages that are read at once."""


class MetricsHistory:
    """Reads the metrics of one run, in order, each once."""

    def __init__(self, path: Path, bus: Bus | None, after: int) -> None:
        """`path`: the run's `metrics.jsonl`, here or not; `after`: the sequence up to which they are known already."""
        self._lines = recorded_metrics(path, after)
        self._is_read = False
        """The file is."""
        self._bus = bus
        self._reader: LogReader | None = None
        self.position = after
        """The sequence up to which was read."""

    async def read(self, timeout_s: float) -> list[tuple[int, Metrics]]:
        """Returns the next ones as (sequence, metrics); none where nothing came in `timeout_s` seconds."""
        found: list[tuple[int, Metrics]] = []
        if not self._is_read:
            # A long file takes long to read, also up to where it is new.
            found = await asyncio.to_thread(lambda: list(islice(self._lines, TOGETHER)))
            self._is_read = not found
        if not found and self._bus is not None:
            found = await self._from_bus(self._bus, timeout_s)
        if found:
            self.position = max(self.position, found[-1][0])
        return found

    async def _from_bus(self, bus: Bus, timeout_s: float) -> list[tuple[int, Metrics]]:
        stream = bus.names.stream("METRICS")
        if self._reader is None:
            try:
                first = (await bus.js.stream_info(stream)).state.first_seq
            except (*TRANSIENT_ERRORS, nats.js.errors.APIError) as error:
                log.warning("metrics not readable, will try again", error=str(error))
                await asyncio.sleep(timeout_s)
                return []
            if first > self.position + 1:
                log.warning(
                    "the bus keeps these metrics no longer: they are in metrics.jsonl on the learner's host",
                    first=self.position + 1,
                    last=first - 1,
                )
            self._reader = LogReader(bus, stream, f"{bus.names.metrics}.*.*", self.position + 1)
        found = []
        for sequence, subject, data in await self._reader.entries(TOGETHER, timeout_s):
            self.position = sequence
            try:
                found.append((sequence, measured_by(bus.names, subject, data)))
            except MessageError as error:
                log.warning("metrics left out that cannot be read", sequence=sequence, error=str(error))
        return found


def recorded_metrics(path: Path, after: int) -> Iterator[tuple[int, Metrics]]:
    """Yields what a `metrics.jsonl` has beyond sequence `after`, as (sequence, metrics); nothing where there is no file."""
    for record in records_of(path):
        sequence = record.get("seq")
        if not isinstance(sequence, int) or sequence <= after:
            continue
        values = {name: value for name, value in record.items() if name not in RESERVED}
        about = {name: record[name] for name in ("time", "role", "id", "step")}
        try:
            yield sequence, Metrics(**about, values=values)
        except ValidationError as error:
            log.warning("metrics left out that cannot be read", sequence=sequence, error=str(error)[:300])

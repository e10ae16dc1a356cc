"""Works for one tracker: a thread that waits for it, and the position up to which it has everything.

A tracker may take long, fail or hang: its server is away, its disk is full. That holds up this worker alone. The position is
written down after the tracker has taken what came before, so what is cut off is given to it again: nothing is lost, and a
point that is there twice is the same one.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import structlog
from pydantic import BaseModel, ConfigDict, ValidationError

from bus.messages import Count, Metrics, Time
from configs.errors import UserError
from configs.schema import TrackerName
from runtime.files import make_folder, write_whole
from runtime.locks import HeldError, held
from tracking.tracker import Row, Sample, Tracker, TrackerError, start_tracker

log = structlog.get_logger()

POSITION = "position.json"
SLOW_S = 60.0
"""Seconds after which a tracker that has not answered is told of, again and again."""
HANGS_S = 300.0
"""Seconds after which it is given up."""


class Position(BaseModel):
    """Says what a tracker has of a run."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")
    run: str
    sequence: Count = 0
    """Position in the metrics log up to which it has everything."""
    began: Time | None = None
    """When the first measurement was made that it was given; None before."""
    sampled: Count = 0
    """The last step whose transcripts it has."""
    where: str = ""
    """Where people find it."""


class Worker:
    """Gives one tracker what a run measures."""

    def __init__(self, name: TrackerName, folder: Path, run: str) -> None:
        """`folder` is the tracker's own; without it, everything begins anew. Raises UserError where it is another run's."""
        self.name = name
        self._folder = folder
        self._file = folder / POSITION
        self.position = Position(run=run)
        with contextlib.suppress(FileNotFoundError):
            try:
                self.position = Position.model_validate_json(self._file.read_bytes())
            except ValidationError as error:
                raise UserError(
                    f"{self._file} cannot be read: remove its folder to give {name} everything anew"
                ) from error
        if self.position.run != run:
            raise UserError(f"{folder} is of run {self.position.run}, this is {run}")
        self._saved = self.position
        self._tracker: Tracker
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"to-{name}")

    @contextlib.asynccontextmanager
    async def open(self, config: dict[str, Any]) -> AsyncIterator[str]:
        """Begins or goes on with the run in the tracker, and yields where people find it; closes it at the end.

        Raises UserError for what the user has to fix or where another process does this already, TrackerError.
        """
        make_folder(self._folder, "RUN")
        try:
            with held(self._folder / "lock"):
                after = self.position.sequence
                self._tracker = await self._call(
                    lambda: start_tracker(self.name, self._folder, self.position.run, config, after)
                )
                self.position = self.position.model_copy(update={"where": self._tracker.where})
                await self.save()
                yield self._tracker.where
                await self.save()
                await self._call(self._tracker.close)
        except HeldError as error:
            raise UserError(f"{self.name} gets this run already from {error.holder}") from error

    async def write(self, measured: list[tuple[int, Metrics]]) -> None:
        """Gives it measurements, (position, metrics) in order. Raises TrackerError."""
        began = self.position.began
        if began is None:
            began = measured[0][1].time
        rows = [Row.of(sequence, metrics, began) for sequence, metrics in measured]
        await self._call(lambda: self._tracker.write(rows))
        self.position = self.position.model_copy(update={"sequence": rows[-1].sequence, "began": began})

    async def write_samples(self, samples: list[Sample]) -> None:
        """Gives it transcripts of one step. Raises TrackerError."""
        await self._call(lambda: self._tracker.write_samples(samples))
        self.position = self.position.model_copy(update={"sampled": samples[0].step})

    async def save(self) -> None:
        """Writes down what the tracker has taken. Raises TrackerError."""
        position = self.position
        if position == self._saved:
            return
        await self._call(self._tracker.flush)
        write_whole(self._file, position.model_dump_json())
        self._saved = position

    async def _call[T](self, work: Callable[[], T]) -> T:
        """Returns what `work` does in the tracker's thread, and says so while it takes long.

        Raises TrackerError where it does not end.
        """
        done = asyncio.get_running_loop().run_in_executor(self._thread, work)
        waited = 0.0
        while True:
            finished, _ = await asyncio.wait((done,), timeout=SLOW_S)
            if finished:
                return done.result()
            waited += SLOW_S
            if waited >= HANGS_S:
                raise TrackerError(f"{self.name} has not answered for {waited:.0f} s")
            log.warning("the tracker does not answer; the run does not wait for it", tracker=self.name, seconds=waited)


def where_to_look(folder: Path) -> dict[str, str]:
    """Returns where people find the run in each tracker that has its own folder in `folder`, by the tracker's name."""
    found = {}
    for file in sorted(folder.glob(f"*/{POSITION}")):
        with contextlib.suppress(ValidationError, OSError):
            found[file.parent.name] = Position.model_validate_json(file.read_bytes()).where
    return found

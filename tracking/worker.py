"""Works for one tracker: a thread that waits for it, and the position up to which it has everything.

A tracker may take long, fail or hang: its server is away, its disk is full. That holds up this worker alone. The position is
written down once the tracker has what came before for certain (`Tracker.settles_s`). What is cut off is given to it again:
nothing is lost, and a point that is there twice is the same one.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import structlog
from pydantic import BaseModel, ConfigDict, ValidationError

from bus.messages import Count, Metrics, Time
from configs.errors import UserError
from configs.schema import TrackerName
from runtime.files import write_whole
from runtime.locks import HeldError, held
from tracking.tracker import Row, Sample, Tracker, TrackerError, start_tracker

log = structlog.get_logger()

FOLDER = "trackers"
"""Folder of a run in which each tracker has its own."""
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
    """When the first measurement was made, by another role than an actor; None before."""
    sampled: Count = 0
    """The last step whose transcripts it has."""
    destination: str = ""
    """Tells one place where the tracker keeps runs from another."""
    where: str = ""
    """Where people find it."""


class Worker:
    """Gives one tracker what a run measures."""

    def __init__(self, name: TrackerName, run_folder: Path, run: str) -> None:
        """Keeps the tracker's files in a folder of its own in the run's; without that, everything begins anew."""
        self.name = name
        self.position = Position(run=run)
        """What the tracker was given; from `open` on."""
        self._folder = run_folder / FOLDER / name
        self._file = self._folder / POSITION
        self._run = run
        self._saved = self.position
        self._given: list[tuple[float, Position]] = []
        """What it was given when, by the monotonic clock, and may not have settled."""
        self._tracker: Tracker
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"to-{name}")

    @contextlib.asynccontextmanager
    async def open(self, config: dict[str, Any]) -> AsyncIterator[str]:
        """Begins or goes on with the run in the tracker, and yields where people find it; closes it at the end.

        Where the tracker has the run at another place than before it begins anew. Raises UserError for what the user has to
        fix or where another process does this already, TrackerError.
        """
        with contextlib.ExitStack() as stack:
            self._take_folder(stack)
            self.position = self._read()
            after = self.position.sequence
            self._tracker = await self._call(lambda: start_tracker(self.name, self._folder, self._run, config, after))
            if after and self.position.destination != self._tracker.destination:
                log.info("the tracker has this run at another place than before: it gets everything", tracker=self.name)
                self.position = Position(run=self._run)
            found = {"destination": self._tracker.destination, "where": self._tracker.where}
            self.position = self.position.model_copy(update=found)
            self._write(self.position)
            yield self._tracker.where
            await self._call(self._tracker.close)
            self._write(self.position)

    def _take_folder(self, stack: contextlib.ExitStack) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(held(self._folder / "lock"))
        except HeldError as error:
            raise UserError(f"{self.name} gets this run already from {error.holder}") from error
        except OSError as error:
            raise UserError(
                f"{self._folder} cannot be written ({error.strerror}): what a tracker has of a run is noted there; track a "
                "copy of the run's folder"
            ) from error

    def _read(self) -> Position:
        try:
            position = Position.model_validate_json(self._file.read_bytes())
        except FileNotFoundError:
            return Position(run=self._run)
        except (OSError, ValidationError) as error:
            raise UserError(
                f"{self._file} cannot be read: remove its folder to give {self.name} everything anew"
            ) from error
        if position.run != self._run:
            raise UserError(
                f"{self._folder} is of run {position.run}, this is {self._run}: remove it to give {self.name} this one, or "
                "keep the files of two runs in folders of their own"
            )
        return position

    def _write(self, position: Position) -> None:
        write_whole(self._file, position.model_dump_json())
        self._saved = position

    async def write(self, measured: list[tuple[int, Metrics]]) -> None:
        """Gives it measurements, (position, metrics) in order. Raises TrackerError."""
        # Whoever may write an actor's metrics makes up their times.
        first = next((metrics.time for _, metrics in measured if metrics.role != "actor"), None)
        began = first if self.position.began is None else self.position.began
        rows = [Row.of(sequence, metrics, began) for sequence, metrics in measured]
        await self._call(lambda: self._tracker.write(rows))
        self.position = self.position.model_copy(update={"sequence": rows[-1].sequence, "began": began})

    async def write_samples(self, samples: list[Sample]) -> None:
        """Gives it transcripts of one step. Raises TrackerError."""
        await self._call(lambda: self._tracker.write_samples(samples))
        sampled = max(self.position.sampled, samples[0].step)
        self.position = self.position.model_copy(update={"sampled": sampled})

    async def save(self) -> None:
        """Writes down what the tracker was given long enough ago to have it for certain. Raises TrackerError."""
        now, settles_s = time.monotonic(), self._tracker.settles_s
        if settles_s is None:
            return
        if not self._given or self._given[-1][1] != self.position:
            self._given.append((now, self.position))
        await self._call(self._tracker.flush)
        settled = [position for given_at, position in self._given if given_at <= now - settles_s]
        if settled and settled[-1] != self._saved:
            self._write(settled[-1])
        self._given = self._given[max(0, len(settled) - 1) :]

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
                # Whatever comes of it, nobody is interested any more.
                done.add_done_callback(lambda given_up: given_up.cancelled() or given_up.exception())
                raise TrackerError(f"{self.name} has not answered for {waited:.0f} s")
            log.warning("the tracker does not answer; the run does not wait for it", tracker=self.name, seconds=waited)


def where_to_look(run_folder: Path, since: float = 0.0) -> dict[str, str]:
    """Returns where people find the run in each of its trackers, by the tracker's name.

    Leaves out those that were not at work since a time, seconds since the epoch.
    """
    found = {}
    for file in sorted((run_folder / FOLDER).glob(f"*/{POSITION}")):
        with contextlib.suppress(ValidationError, OSError):
            if file.stat().st_mtime < since:
                continue
            found[file.parent.name] = Position.model_validate_json(file.read_bytes()).where
    return found

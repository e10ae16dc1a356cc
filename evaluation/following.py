"""The evaluator of a live run: takes a version from the weight log, scores it, and writes the scores to the metrics.

    waiting      for a version that is due: the newest at first, then `evaluation.every` versions after the last one scored,
                 and the last one of the run
    loading      it, by the actors' own way from the weight log into the engine
    scoring      with nothing loaded meanwhile: every sample is of this version and no other

The run's sandboxes run the code; nothing waits for the evaluator.
"""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import structlog

from actors.engine import Engine
from actors.weight_loader import WeightLoader
from bus.codec import MessageError, decode
from bus.connection import TRANSIENT_ERRORS, Bus, BusError
from bus.messages import Manifest
from bus.metrics import MetricsWriter
from bus.presence import Announcer
from configs.schema import RunConfig
from evaluation.plan import Plan
from evaluation.scoring import Scores, score
from grading.grader import Grader
from runtime.waiting import any_set
from sandbox.client import SandboxClient
from weights.log import newest

log = structlog.get_logger()

POLL_S = 1.0
LOAD_S = 60.0
"""Seconds for the newest version to come over the bus, before it is asked for again."""


class Following:
    """Evaluates a run's versions as they come, each in a folder of its own."""

    def __init__(
        self,
        config: RunConfig,
        plan: Plan,
        bus: Bus,
        weights_bus: Bus,
        engine: Engine,
        grader: Grader,
        announcer: Announcer,
        folder: Path,
        tell: Callable[[str], None],
    ) -> None:
        """Results go to `folder`/VERSION."""
        self._config = config
        self._plan = plan
        self._bus = bus
        self._weights_bus = weights_bus
        self._engine = engine
        self._grader = grader
        self._announcer = announcer
        self._folder = folder
        self._tell = tell
        self._loader = WeightLoader(weights_bus, engine, config.weights.snapshot_location)
        self._runner = SandboxClient(bus.client, bus.names.execution, config.sandbox)

    async def run(self, stop: asyncio.Event, ended: asyncio.Event | None) -> Scores | None:
        """Scores versions until `stop`, or until the run has `ended` and its last one is scored; returns the last scores.

        Without `ended` scores one version. Raises BusError when the bus is lost or no weights come, EngineError when the
        engine fails.
        """
        scores = None
        due = 0
        last = False
        # What ends the scoring: being told, or having lost the bus, without which no code runs.
        ending = asyncio.Event()
        watching = asyncio.create_task(self._watch(stop, ending))
        try:
            await self._announcer.say("waiting for weights")
            deadline = time.monotonic() + self._config.actor.weights_timeout_s
            while not ending.is_set():
                # Asked first: no version comes after the end.
                last = last or (ended is not None and ended.is_set())
                there = await self._newest()
                if last and self._engine.version is not None and there is not None:
                    due = min(due, self._engine.version.n + 1)
                    if there < due:
                        break
                if not await self._take(due, there):
                    if self._engine.version is None and time.monotonic() > deadline:
                        waited = self._config.actor.weights_timeout_s
                        raise BusError(f"no weights on the bus after {waited:.0f} s: is a learner running?")
                    await asyncio.sleep(POLL_S)
                    continue
                assert self._engine.version is not None
                due = self._engine.version.n + self._config.evaluation.every
                scores = await self._score(ending)
                if ended is None:
                    break
                await self._announcer.say(f"waiting for version {due}")
            self._bus.require_connection()
            return scores
        finally:
            watching.cancel()
            self._loader.close()

    async def _newest(self) -> int | None:
        """Returns the number of the newest version; None where there is none yet, or the bus does not say."""
        try:
            _, data = await newest(self._weights_bus)
            return decode(data, Manifest).version.n if data else None
        except (*TRANSIENT_ERRORS, MessageError) as error:
            log.warning("weight log out of reach", error=str(error))
            return None

    async def _take(self, due: int, there: int | None) -> bool:
        """Loads the newest version if it is due; `there` is its number."""
        if there is None or there < due or not await self._loader.update(LOAD_S):
            return False
        self._announcer.version = str(self._engine.version)
        return self._loader.newest >= due

    async def _score(self, ending: asyncio.Event) -> Scores:
        version = str(self._engine.version)

        def tell(line: str) -> None:
            self._announcer.state = f"evaluating version {version}: {line}"
            self._tell(self._announcer.state)

        tell("begins")
        scores = await score(
            self._plan,
            f"{self._bus.address.run} version {version}",
            self._folder / version,
            self._engine,
            self._runner,
            self._grader,
            self._config.actor.max_rollouts,
            ending,
            tell,
        )
        if scores.finished:
            for row in scores.rows:
                id = f"{self._announcer.id}/{row.data}/{row.max_tool_calls}"
                await MetricsWriter(self._bus, "evaluator", id).write(row.metrics(), step=self._loader.newest)
        return scores

    async def _watch(self, stop: asyncio.Event, ending: asyncio.Event) -> None:
        await any_set(stop, self._bus.lost)
        ending.set()

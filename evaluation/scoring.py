"""One set of weights from a plan to a report, in a folder that a second start goes on in."""

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from actors.engine import Engine
from actors.rollout import CodeRunner
from evaluation.evaluator import PROGRESS_EVERY_S, Evaluator
from evaluation.plan import Plan
from evaluation.records import Journal
from evaluation.results import write_report
from evaluation.summary import Row
from grading.grader import Grader


@dataclass(frozen=True)
class Scores:
    """Says what came of scoring one version."""

    rows: list[Row]
    finished: bool
    """False when it was stopped."""
    missing: Counter[str]
    """Samples that infrastructure did not give in this session, by reason."""


async def score(
    plan: Plan,
    weights: str,
    folder: Path,
    engine: Engine,
    runner: CodeRunner,
    grader: Grader,
    in_flight: int,
    stop: asyncio.Event,
    tell: Callable[[str], None],
    tell_every_s: float = PROGRESS_EVERY_S,
) -> Scores:
    """Evaluates what the engine holds; `weights` identifies it, so that no folder ever mixes samples of two.

    `tell` gets a line of progress every `tell_every_s` seconds.

    The report is written also when `stop` ends it early. Raises JournalError, PromptError, and EngineError when the engine
    dies; what was finished before is kept.
    """
    settings = plan.settings(weights)
    with Journal(folder, settings) as journal:
        evaluator = Evaluator(plan, engine, runner, grader, in_flight, tell, tell_every_s)
        finished = await evaluator.run(journal, stop)
        rows = await asyncio.to_thread(
            write_report, folder, weights, plan, settings, journal.samples, evaluator.left_out
        )
    return Scores(rows, finished, evaluator.missing)

"""Grading: whether the model's answer equals the gold answer.

Only text that the model sampled, outside of blocks, can be the answer. It is read and compared in processes of their own,
since the text of a policy under optimisation is hostile: nothing scans it in the caller's event loop. An answer that
chokes a process is graded 0, with the part `ungradable`. If the gold answer is not equal to itself, that is an error and
never a reward. The reward is the part `correct` plus the penalties that the configuration names, each a part of its own.

    grade --> a quick turn: QUICK_S of processor time      --verdict--> grade
                 | it takes longer
                 +--> a patient turn: `timeout_s`, in a process of low priority

So answers that take long wait for one another, and nobody waits for them. There are at most `workers` processes for each
kind of turn, each with at most 2 GiB of memory.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self

import structlog

from configs.tasks import GradingConfig
from grading.comparison import Verdict
from grading.processes import GradingError, NoVerdict, OutOfTime, UngradableError, Worker, Workshop
from grading.reading import Reading
from grading.text import as_number

__all__ = ["Grade", "Grader", "GradingError", "UngradableError"]

log = structlog.get_logger()

QUICK_S = 0.1
"""Seconds of processor time: usual answers take a hundredth of a second."""


@dataclass(frozen=True)
class Grade:
    """The judgement of one response."""

    parts: dict[str, float]
    """0 or 1: `correct`; `answered`: there was an answer; `ungradable`: it choked the grader; `unevaluated`: it equals the
    gold answer and is no result (`grading.results`), so it is not correct. Not positive, where the configuration has them:
    `format_penalty`, `unparsable_penalty`, `overlong_penalty`."""
    answer: str | None
    """What was taken for the answer."""
    void_turns: int = 0
    """Turns that close no code block and hold no answer."""
    code_unused: bool = False
    """The answer is not seen to come from a call."""

    @property
    def reward(self) -> float:
        """Returns the reward: 1 for a right answer, less the penalties."""
        return self.parts["correct"] + sum(value for part, value in self.parts.items() if part.endswith("_penalty"))

    def with_length(self, length: int, limit: int, truncated: bool, config: GradingConfig) -> "Grade":
        """Returns the grade with the penalty for `length` of at most `limit` tokens (DAPO, arXiv 2503.14476, eq. 13)."""
        if not config.overlong_penalty:
            return self
        excess = length - (limit - config.overlong_tokens)
        share = 1.0 if truncated else min(max(excess / max(config.overlong_tokens, 1), 0.0), 1.0)
        return replace(self, parts={**self.parts, "overlong_penalty": -config.overlong_penalty * share})


class Grader:
    """Grades responses; an asynchronous context manager that owns processes, by default as many as there are cores.

    They start when they are first needed and are gone when the context is left.
    """

    def __init__(self, workers: int | None = None) -> None:
        self._workers = workers or len(os.sched_getaffinity(0))
        self._workshop = Workshop()
        self._quick_turns, self._patient_turns = asyncio.Semaphore(self._workers), asyncio.Semaphore(self._workers)
        self._idle: list[Worker] = []
        self._gradable: set[tuple[str, str]] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        while self._idle:
            self._idle.pop().end()
        await self._workshop.close()

    async def grade(
        self,
        turns: Sequence[str],
        answer: str,
        config: GradingConfig,
        outputs: Sequence[str] = (),
        problem: str = "",
    ) -> Grade:
        """Judges the response that consists of `turns`, the texts that the model sampled, against the gold `answer`.

        `outputs`: what the calls between them gave; nothing in them can be the answer. `problem`: the problem's text, which
        the answer must not copy.

        Raises UngradableError when the gold answer can't be graded by the rule, GradingError when no process can be run or
        the machine gives it no time.
        """
        if config.rule == "last_number" and as_number(answer) is None:
            raise UngradableError(
                f"the gold answer {answer[:80]!r} is not a number: grade these problems by the rule `boxed`"
            )
        request = {
            "turns": list(turns),
            "outputs": list(outputs),
            "problem": problem,
            "gold": answer,
            "config": config.model_dump(mode="json"),
        }
        try:
            reading, verdict = await self._judge(request, config.timeout_s)
        except NoVerdict as error:
            if request["turns"] != _gold_turns(answer, config):
                await self.require_gradable(answer, config)
            reading = error.reading or Reading(answer=None, well_formed=False, void_turns=0, code_unused=False)
            verdict = Verdict(equal=False, parsed=True, refused=True)
        return _grade(reading, verdict, config)

    async def require_gradable(self, gold: str, config: GradingConfig) -> None:
        """Raises UngradableError where the gold answer itself would not be graded right, GradingError as `grade` does.

        One comparison for each gold answer, however often it is asked for.
        """
        if (gold, config.rule) in self._gradable:
            return
        grade = await self.grade(_gold_turns(gold, config), gold, config)
        if not grade.parts["correct"]:
            raise UngradableError(f"the gold answer {gold[:80]!r} is not graded equal to itself: fix the problem")
        self._gradable.add((gold, config.rule))

    async def _judge(self, request: dict[str, Any], timeout_s: float) -> tuple[Reading, Verdict]:
        """Raises NoVerdict where the response used up its time, or ended its process twice without a word."""
        patient, deaths = False, 0
        while True:
            turn = self._patient() if patient else self._quick(fresh=deaths > 0)
            seconds = timeout_s if patient else min(QUICK_S, timeout_s)
            try:
                async with turn as worker:
                    return await worker.judge({**request, "patient": patient}, seconds)
            except NoVerdict as error:
                out_of_time = isinstance(error, OutOfTime)
                if out_of_time and not patient:
                    patient = True
                    continue
                deaths += not out_of_time
                end = str(request["turns"][-1:])[-80:]
                log.info("no verdict on a response", end=end, deaths=deaths, reason=str(error))
                # A process that something else killed costs nobody a reward.
                if out_of_time or deaths == 2:
                    raise

    @asynccontextmanager
    async def _quick(self, *, fresh: bool) -> AsyncIterator[Worker]:
        async with self._quick_turns:
            worker = self._idle.pop() if self._idle and not fresh else await self._workshop.worker()
            yield worker
            # Not after an error: the worker is gone.
            self._idle.append(worker)

    @asynccontextmanager
    async def _patient(self) -> AsyncIterator[Worker]:
        async with self._patient_turns:
            worker = await self._workshop.worker()
            yield worker
            # It stays at a low priority.
            worker.end()


def _gold_turns(gold: str, config: GradingConfig) -> list[str]:
    answer = f"\\boxed{{{gold}}}"
    return [f"<answer>{answer}</answer>" if config.answer_tag else answer]


def _grade(reading: Reading, verdict: Verdict, config: GradingConfig) -> Grade:
    penalties = {
        "format_penalty": config.format_penalty * (not reading.well_formed),
        "unparsable_penalty": config.unparsable_penalty * (not verdict.parsed),
    }
    parts = {
        "correct": float(verdict.equal),
        "answered": float(reading.answer is not None),
        "ungradable": float(verdict.refused),
        "unevaluated": float(verdict.unevaluated),
    }
    parts |= {part: -value for part, value in penalties.items() if getattr(config, part)}
    return Grade(parts, reading.answer, reading.void_turns, reading.code_unused)

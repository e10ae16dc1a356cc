"""Grading: whether the model's answer equals the gold answer.

Only text that the model sampled, outside of blocks, can be the answer. It is read and compared in processes of their own,
since the text of a policy under optimisation is hostile: nothing scans it in the caller's event loop. An answer that
chokes a process is graded 0, with the part `ungradable`. If the gold answer is not equal to itself, that is an error and
never a reward. The reward is the part `correct` plus the penalties that the configuration names, each a part of its own.
With `reward_function` the user's function says what the reward is, and there is none where it fails
(`grading.reward_function`).

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
from dataclasses import asdict, dataclass, replace
from types import TracebackType
from typing import Any, Self

import structlog

from configs.tasks import GradingConfig
from grading.comparison import Verdict
from grading.errors import GradingError, NoRewardError, UngradableError
from grading.processes import NoVerdict, OutOfTime, Worker, Workshop
from grading.reading import Reading
from grading.reward_function import Call, Reward
from grading.text import as_number

log = structlog.get_logger()

QUICK_S = 0.1
"""Seconds of processor time: usual answers take a hundredth of a second."""


@dataclass(frozen=True)
class Grade:
    """The judgement of one response."""

    reward: float
    """1 for a right answer, less the penalties; or what the reward function says."""
    parts: dict[str, float]
    """0 or 1: `correct`; `answered`: there was an answer; `ungradable`: it choked the grader; `unevaluated`: it equals the
    gold answer and is no result (`grading.results`), so it is not correct. Not positive, where the configuration has them:
    `format_penalty`, `unparsable_penalty`, `overlong_penalty`. A reward function's own parts stand beside the first four."""
    answer: str | None
    """What was taken for the answer."""
    void_turns: int = 0
    """Turns that close no code block and hold no answer."""
    code_unused: bool = False
    """The answer is not seen to come from a call."""

    def with_length(self, length: int, limit: int, truncated: bool, config: GradingConfig) -> "Grade":
        """Returns the grade with the penalty for `length` of at most `limit` tokens (DAPO, arXiv 2503.14476, eq. 13)."""
        if not config.overlong_penalty:
            return self
        excess = length - (limit - config.overlong_tokens)
        share = 1.0 if truncated else min(max(excess / max(config.overlong_tokens, 1), 0.0), 1.0)
        penalty = -config.overlong_penalty * share
        return replace(self, reward=self.reward + penalty, parts={**self.parts, "overlong_penalty": penalty})


class Grader:
    """Grades responses; an asynchronous context manager that owns processes, by default as many as there are cores.

    They start when they are first needed and are gone when the context is left. With a reward function, which they load,
    entering the context starts them: it raises RewardFunctionError where that function cannot be loaded. Each response that
    it judges has a process of its own, so that nothing of one response is left for the next.
    """

    def __init__(self, workers: int | None = None, *, grading: GradingConfig | None = None) -> None:
        """`grading` names the reward function that responses can be graded by, with its digest; there is no other."""
        self._workers = workers or len(os.sched_getaffinity(0))
        self._function = _function_of(grading) if grading else None
        self._workshop = Workshop(*self._function or ())
        self._quick_turns, self._patient_turns = asyncio.Semaphore(self._workers), asyncio.Semaphore(self._workers)
        self._idle: list[Worker] = []
        self._gradable: set[tuple[str, str]] = set()

    async def __aenter__(self) -> Self:
        if self._function:
            try:
                await self._workshop.start()
            except BaseException:
                await self._workshop.close()
                raise
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
        calls: Sequence[Call] = (),
        problem: str = "",
    ) -> Grade:
        """Judges the response that consists of `turns`, the texts that the model sampled, against the gold `answer`.

        `calls`: those between them; nothing in their outputs can be the answer. `problem`: the problem's text, which the
        answer must not copy.

        Raises UngradableError when the gold answer can't be graded by the rule, NoRewardError when the reward function gives
        no reward, RewardFunctionError when it cannot be loaded again, GradingError when no process can be run or the machine
        gives it no time.
        """
        if (function := _function_of(config)) and function != self._function:
            raise GradingError(f"this process grades by the reward function {self._function}, not by {function}")
        if not function and config.rule == "last_number" and as_number(answer) is None:
            raise UngradableError(
                f"the gold answer {answer[:80]!r} is not a number: grade these problems by the rule `boxed`"
            )
        request = {
            "turns": list(turns),
            "calls": [asdict(call) for call in calls],
            "problem": problem,
            "gold": answer,
            "config": config.model_dump(mode="json"),
        }
        try:
            reading, verdict = await self._judge(request, config.timeout_s)
        except NoVerdict as error:
            if function:
                raise NoRewardError(f"gave no reward: {error}") from error
            if request["turns"] != gold_turns(answer, config):
                await self.require_gradable(answer, config)
            reading = error.reading or Reading(answer=None, well_formed=False, void_turns=0, code_unused=False)
            verdict = Verdict(equal=False, parsed=True, refused=True)
        return _rewarded(reading, verdict) if isinstance(verdict, Reward) else _grade(reading, verdict, config)

    async def require_gradable(self, gold: str, config: GradingConfig) -> None:
        """Raises UngradableError where the gold answer itself would not be graded right, GradingError as `grade` does.

        What a reward function takes for right nobody else knows: with one this says nothing. One comparison for each gold
        answer, however often it is asked for.
        """
        if config.reward_function is not None or (gold, config.rule) in self._gradable:
            return
        grade = await self.grade(gold_turns(gold, config), gold, config)
        if not grade.parts["correct"]:
            raise UngradableError(f"the gold answer {gold[:80]!r} is not graded equal to itself: fix the problem")
        self._gradable.add((gold, config.rule))

    async def _judge(self, request: dict[str, Any], timeout_s: float) -> tuple[Reading, Verdict | Reward]:
        """Raises NoVerdict where the response used up its time, or ended its process twice without a word."""
        patient, deaths = False, 0
        while True:
            own = request["config"]["reward_function"] is not None
            turn = self._patient() if patient else self._quick(alone=own or deaths > 0)
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
    async def _quick(self, *, alone: bool) -> AsyncIterator[Worker]:
        """Yields a worker for a quick turn; `alone`: one that has served nobody else, and will not."""
        async with self._quick_turns:
            worker = self._idle.pop() if self._idle and not alone else await self._workshop.worker()
            yield worker
            # Not after an error: the worker is gone.
            if alone:
                worker.end()
            else:
                self._idle.append(worker)

    @asynccontextmanager
    async def _patient(self) -> AsyncIterator[Worker]:
        async with self._patient_turns:
            worker = await self._workshop.worker()
            yield worker
            # It stays at a low priority.
            worker.end()


def _function_of(config: GradingConfig) -> tuple[str, str] | None:
    if config.reward_function is None:
        return None
    if config.reward_function_digest is None:
        raise GradingError("a reward function is loaded by its digest only: see grading.reward_source.with_digest")
    return config.reward_function, config.reward_function_digest


def gold_turns(gold: str, config: GradingConfig) -> list[str]:
    """Returns the turns of a response that holds the gold answer alone."""
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
    applied = {part: -value for part, value in penalties.items() if getattr(config, part)}
    reward = parts["correct"] + sum(applied.values())
    return Grade(reward, parts | applied, reading.answer, reading.void_turns, reading.code_unused)


def _rewarded(reading: Reading, reward: Reward) -> Grade:
    parts = {"answered": float(reading.answer is not None), "ungradable": 0.0, "unevaluated": 0.0, **reward.parts}
    return Grade(reward.reward, parts, reading.answer, reading.void_turns, reading.code_unused)

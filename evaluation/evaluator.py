"""Scoring one set of weights: every job of a plan to a graded sample in the journal.

    who              waits for                                   bound
    each of the      the engine and the sandbox                  `rollout.deadline_s`
    `in_flight`      the grader                                  a few times `tasks.grading.timeout_s`
    workers          the pause before another try                `RETRY_S`

A failure of infrastructure (engine, sandbox, grader, deadline) is tried again with a new rollout and counted; past
`ATTEMPTS`, and where the user's reward function fails at once, the sample is missing, said and counted, and the next start
tries it again. It is never scored as wrong.
Problems that no response could be graded on (a prompt that is too long, a gold answer that does not equal itself) are
left out before anything is generated, and named.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import structlog

from actors.engine import DeadlineError, Engine, EngineError
from actors.rollout import CodeRunner, Response, Rollout
from evaluation.plan import DataSet, Job, Plan
from evaluation.records import Journal, Sample
from grading.errors import GradingError, NoRewardError, UngradableError
from grading.grader import Grade, Grader
from runtime.words import time_left
from sandbox.client import SandboxError
from tasks.problems import Problem
from tasks.prompts import render_prompt
from transcripts.passages import passages

log = structlog.get_logger()

ATTEMPTS = 3
RETRY_S = 2.0
PROGRESS_EVERY_S = 15.0


@dataclass(frozen=True)
class LeftOut:
    """A problem that is not asked."""

    data: str
    problem: str
    reason: str


class Evaluator:
    """Plays a plan with an engine whose weights nobody changes meanwhile."""

    def __init__(
        self,
        plan: Plan,
        engine: Engine,
        runner: CodeRunner,
        grader: Grader,
        in_flight: int,
        tell: Callable[[str], None],
        tell_every_s: float,
    ) -> None:
        """`in_flight`: rollouts at once; `tell` gets a line of progress every `tell_every_s` seconds."""
        self._plan = plan
        self._engine = engine
        self._runner = runner
        self._grader = grader
        self._in_flight = in_flight
        self._tell = tell
        self._tell_every_s = tell_every_s
        self.left_out: list[LeftOut] = []
        self.missing: Counter[str] = Counter()
        """Samples that were given up in this session, by reason."""

    async def run(self, journal: Journal, stop: asyncio.Event) -> bool:
        """Plays what the journal lacks; False when `stop` was set before everything was tried.

        Raises EngineError when the engine dies, and PromptError for a template that does not work at all.
        """
        await self._check_problems(stop)
        unusable = {(each.data, each.problem) for each in self.left_out}
        jobs = [job for job in self._plan.jobs() if job.key[:2] not in unusable]
        pending = [job for job in jobs if job.key not in journal.samples]
        if len(pending) < len(jobs):
            self._tell(f"{len(jobs) - len(pending)} of {len(jobs)} samples are there already")
        queue = iter(pending)
        workers = [asyncio.create_task(self._work(queue, journal)) for _ in range(min(self._in_flight, len(pending)))]
        others = [
            asyncio.create_task(stop.wait()),
            asyncio.create_task(self._progress(journal, len(jobs), len(pending))),
        ]
        try:
            left = set(workers)
            while left and not stop.is_set():
                done, _ = await asyncio.wait((*left, *others), return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    # A worker's error is everybody's: the engine died, or the code has a fault.
                    task.result()
                left -= done
        finally:
            for task in (*workers, *others):
                task.cancel()
            await asyncio.gather(*workers, *others, return_exceptions=True)
        return not stop.is_set()

    async def _check_problems(self, stop: asyncio.Event) -> None:
        self.left_out = []
        for data in self._plan.data:
            for problem in data.problems:
                if stop.is_set():
                    return
                if reason := await self._unusable(data, problem):
                    self.left_out.append(LeftOut(data.name, problem.id, reason))
                    log.warning("a problem is left out", data=data.name, problem=problem.id, reason=reason)

    async def _unusable(self, data: DataSet, problem: Problem) -> str | None:
        prompt, limit = self._prompt(problem), self._plan.rollout.max_prompt_tokens
        if len(prompt) > limit:
            return f"its prompt has {len(prompt)} tokens, the limit is {limit}"
        try:
            await self._grader.require_gradable(problem.answer, data.grading)
        except UngradableError as error:
            return str(error)
        return None

    def _prompt(self, problem: Problem) -> list[int]:
        plan = self._plan
        return render_prompt(plan.template, problem.text, self._engine.tokenizer, chat=plan.prompt.chat)

    async def _work(self, queue: Iterator[Job], journal: Journal) -> None:
        for job in queue:
            if (sample := await self._sample(job)) is not None:
                journal.append(sample)

    async def _sample(self, job: Job) -> Sample | None:
        """Returns a graded sample; None where infrastructure failed too often."""
        prompt = self._prompt(job.problem)
        reason = ""
        for attempt in range(1, ATTEMPTS + 1):
            started = time.monotonic()
            try:
                rollout = Rollout(self._engine, self._runner, self._engine.tokenizer, self._plan.limits(job))
                response = await rollout.run(prompt)
                seconds = time.monotonic() - started
                problem = job.problem
                grade = await self._grader.grade(
                    response.turns, problem.answer, job.data.grading, response.calls, problem.text
                )
            except NoRewardError as error:
                # Another rollout might go well, and nobody would see what the function fails at.
                log.warning("no reward for a sample", sample=job.key, reason=str(error))
                reason = "the reward function failed, the log says how"
                break
            except (DeadlineError, SandboxError, GradingError, EngineError) as error:
                if self._engine.failed:
                    raise
                reason = f"{type(error).__name__}: {error}"
                log.warning("infrastructure failed under a sample", sample=job.key, attempt=attempt, reason=reason)
                await asyncio.sleep(RETRY_S * attempt if attempt < ATTEMPTS else 0)
            else:
                return self._record(job, prompt, response, grade, seconds, attempt)
        self.missing[reason] += 1
        return None

    def _record(
        self, job: Job, prompt: list[int], response: Response, grade: Grade, seconds: float, attempt: int
    ) -> Sample:
        return Sample(
            data=job.data.name,
            problem=job.problem.id,
            max_tool_calls=job.max_tool_calls,
            number=job.number,
            reward=grade.reward,
            parts=grade.parts,
            answer=grade.answer,
            passages=tuple(passages(response.tokens, response.loss_mask, self._engine.tokenizer)),
            tool_calls=tuple(response.tool_calls),
            refused_calls=response.refused_calls,
            finish_reason=response.finish_reason,
            prompt_tokens=len(prompt),
            response_tokens=len(response.tokens),
            sampled_tokens=sum(response.loss_mask),
            seconds=round(seconds, 3),
            attempts=attempt,
        )

    async def _progress(self, journal: Journal, whole: int, pending: int) -> None:
        """Says how far it is, until cancelled. The time left assumes that what comes costs what was done did."""
        begun, tokens = time.monotonic(), self._engine.generated_tokens
        there = len(journal.samples)
        while True:
            await asyncio.sleep(self._tell_every_s)
            done, seconds = len(journal.samples) - there, time.monotonic() - begun
            rate = (self._engine.generated_tokens - tokens) / seconds
            line = f"{whole - pending + done} of {whole} samples, {rate:.0f} tokens/s"
            if done:
                line += f", {time_left(seconds / done * (pending - done))}"
            if self.missing:
                line += f", {self.missing.total()} missing"
            self._tell(line)

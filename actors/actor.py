"""The actor: pulls tickets, runs rollouts, publishes each the moment it is finished.

    who                 waits for                              who unblocks it
    pulling             a slot in the cache, tickets           rollouts that end; the dispatcher
    each rollout        a weight version, the engine, a        the weight follower; the engine; the sandbox;
                        sandbox, space in the result stream    the learner, which purges
    weight follower     a manifest newer than its own          the learner

When infrastructure fails, the ticket is handed back. It becomes a `Failure` only past the delivery limit or the deadline,
and only from an actor whose lease has held throughout. An actor holds at most `actor.max_rollouts` tickets, and no more
than the engine's cache has slots for. One task holds each ticket until its result is stored, so results that the bus does
not take hold the actor back.
"""

import asyncio
import time
from dataclasses import dataclass

import structlog

from actors.admission import Admission
from actors.busy_clock import BusyClock
from actors.engine import DeadlineError, Engine, EngineError
from actors.leases import LeasedTicket, TicketSource
from actors.outbox import Outbox
from actors.rollout import Response, Rollout
from actors.weight_loader import WeightLoader
from bus.connection import Bus, BusError
from bus.messages import MAX_TEXT, Failure, FinishReason, Trajectory
from bus.metrics import MetricsWriter
from bus.presence import Announcer, last_sign
from configs.errors import UserError
from configs.schema import RunConfig
from grading.errors import GradingError, NoRewardError, UngradableError
from grading.grader import Grade, Grader
from runtime.waiting import done_or_stopped
from sandbox.client import SandboxClient, SandboxError
from tasks.prompts import PromptError, render_prompt

log = structlog.get_logger()

METRICS_EVERY_S = 5.0
HAND_BACK_S = 2.0
"""Seconds in which an actor that leaves hands its tickets back; without a bus their leases run out instead."""
MAX_ENGINE_FAILURES = 8
"""Rollouts in a row that fail in the engine before the actor takes it for broken and ends."""
UNUSABLE_PROMPT, DEADLINE, NO_REWARD = "unusable prompt", "deadline passed", "reward function failed"
OWN_FAULTS = (UNUSABLE_PROMPT, DEADLINE, NO_REWARD)
"""Reasons that may lie in the actor: another tokenizer, an engine that is too slow, what a reward function needs. Others lie
in the ticket."""
MAX_SAME_FAILURES = 24
LEAST_GROUPS = 3
"""Tickets that an actor may fail at for one of these while it has finished none, and of how many groups."""


@dataclass(frozen=True)
class HandBack:
    """Says why a ticket has no answer yet and is offered to all actors again."""

    reason: str


class UselessActorError(UserError):
    """Every ticket failed at this actor for the same reason; the text says which."""


class Actor:
    """Serves tickets until it is told to stop or its engine fails."""

    def __init__(
        self,
        config: RunConfig,
        bus: Bus,
        weights_bus: Bus,
        engine: Engine,
        grader: Grader,
        outbox: Outbox,
        announcer: Announcer,
        seed: int,
    ) -> None:
        self._config = config
        self._bus = bus
        self._engine = engine
        self._grader = grader
        self._outbox = outbox
        self._announcer = announcer
        self._seed = seed
        self._sandbox = SandboxClient(bus.client, bus.names.execution, config.sandbox)
        self._tickets = TicketSource(bus)
        self._weights = WeightLoader(
            weights_bus, engine, config.weights.snapshot_location, recompute=config.actor.on_update == "recompute"
        )
        emulated = config.actor.engine.kind == "emulated"
        self._metrics = MetricsWriter(bus, "actor", announcer.id, emulated=emulated)
        self._rollouts: set[asyncio.Task[None]] = set()
        self._crash: BaseException | None = None
        """What nobody foresaw in a rollout, or an engine that keeps failing: the actor ends with it."""
        self._admission = Admission(engine.cache_tokens, config.actor.max_rollouts, config.rollout)
        self._finished = 0
        self._failed = 0
        self._own_failures: dict[str, list[int]] = {}
        """Groups of the tickets that failed for what may be this actor's fault, by reason."""
        self._handed_back = 0
        self._late = 0
        self._late_tokens = 0
        self._engine_failures = 0
        """Failures in a row."""
        self._busy = BusyClock()
        self._last = (time.monotonic(), 0)

    async def run(self, stop: asyncio.Event) -> None:
        """Raises EngineError or BusError when it cannot go on; returns after `stop`."""
        try:
            async with asyncio.TaskGroup() as group:
                background = [
                    group.create_task(self._follow_weights()),
                    group.create_task(self._metrics.run(self._measure, METRICS_EVERY_S)),
                    group.create_task(self._watch()),
                    group.create_task(self._outbox.run()),
                ]
                await self._announcer.say("waiting for weights")
                if await self._first_weights(stop):
                    await self._announcer.say("ready")
                    await self._pull_until(stop)
                    await self._announcer.say("stopping")
                    await self._shut_down()
                for task in background:
                    task.cancel()
        finally:
            for rollout in self._rollouts:
                rollout.cancel()
            await asyncio.gather(*self._rollouts, return_exceptions=True)
            self._outbox.keep()
            self._weights.close()

    async def _first_weights(self, stop: asyncio.Event) -> bool:
        deadline = time.monotonic() + self._config.actor.weights_timeout_s
        while not stop.is_set():
            if await self._weights.reach(0, timeout_s=0.5):
                return True
            if time.monotonic() > deadline:
                raise BusError(
                    f"no weights on {self._bus.names.manifests} after {self._config.actor.weights_timeout_s:.0f} s; "
                    f"{await last_sign(self._bus, 'learner')}: is a learner running?"
                )
        return False

    async def _pull_until(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            if self._crash is not None:
                # The actor ends in a moment (`_watch`): until then it takes no ticket that another one could answer.
                await asyncio.sleep(0.1)
                continue
            if not (free := self._admission.room(len(self._rollouts))):
                await asyncio.wait(self._rollouts, return_when=asyncio.FIRST_COMPLETED, timeout=1.0)
                continue
            for leased in await self._pull(free, stop):
                self._start(leased)

    async def _pull(self, count: int, stop: asyncio.Event) -> list[LeasedTicket]:
        pulling = asyncio.create_task(self._tickets.pull(count, timeout_s=0.5))
        try:
            # It is over in a moment, unless the bus is away.
            return pulling.result() if await done_or_stopped(pulling, stop, HAND_BACK_S) else []
        finally:
            pulling.cancel()

    def _start(self, leased: LeasedTicket) -> None:
        task = asyncio.create_task(self._serve(leased), name=f"ticket-{leased.ticket.number}")
        self._rollouts.add(task)
        self._announcer.in_flight = len(self._rollouts)
        self._busy.set(True)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._rollouts.discard(task)
        self._announcer.in_flight = len(self._rollouts)
        self._busy.set(bool(self._rollouts))
        if not task.cancelled() and (error := task.exception()) is not None:
            self._crash = error

    async def _shut_down(self) -> None:
        """Gives rollouts their grace, then hands the rest back."""
        if self._rollouts:
            await asyncio.wait(self._rollouts, timeout=self._config.actor.grace_s)
        for rollout in self._rollouts:
            rollout.cancel()
        if self._rollouts:
            await asyncio.wait(self._rollouts, timeout=HAND_BACK_S)

    async def _serve(self, leased: LeasedTicket) -> None:
        """Works on one ticket to its end: a stored result and an acknowledgement, or a hand-back."""
        ticket = leased.ticket
        try:
            async with leased.kept_alive():
                if ticket.number in self._outbox.taken_over:
                    await leased.done()
                    return
                result = await self._answer(leased)
                if isinstance(result, HandBack):
                    log.info("ticket handed back", ticket=ticket.number, reason=result.reason)
                    self._handed_back += 1
                    await leased.hand_back()
                    return
                if isinstance(result, Failure) and leased.lapsed:
                    # The bus has given it to another actor, or will: that one may fare better.
                    log.warning("ticket given up, its lease had run out", ticket=ticket.number, reason=result.reason)
                    return
                result = await self._outbox.store(result)
                await leased.done()
        except asyncio.CancelledError:
            self._handed_back += 1
            await leased.hand_back()
            raise
        if isinstance(result, Failure):
            self._failed += 1
            self._require_some_to_succeed(result)
            log.warning("ticket failed", ticket=ticket.number, reason=result.reason, detail=result.detail)
        else:
            self._finished += 1

    async def _answer(self, leased: LeasedTicket) -> Trajectory | Failure | HandBack:
        """Works on a ticket; returns a trajectory, a failure that is final, or why the ticket is handed back."""
        ticket = leased.ticket
        if leased.failures >= self._config.actor.max_deliveries:
            detail = f"{leased.failures} times an actor vanished with it, or its engine or grader failed"
            return self._failure(leased, "too many deliveries", detail)
        try:
            prompt = render_prompt(ticket.template, ticket.problem, self._engine.tokenizer, chat=ticket.chat)
        except PromptError as error:
            return self._failure(leased, UNUSABLE_PROMPT, str(error))
        if len(prompt) > ticket.rollout.max_prompt_tokens:
            limit = ticket.rollout.max_prompt_tokens
            return self._failure(leased, "prompt too long", f"{len(prompt)} tokens, the limit is {limit}")
        patience = self._weights.patience_s
        if not await self._weights.reach(ticket.min_version, patience):
            return HandBack(f"version {ticket.min_version} did not come in {patience:.0f} s")
        started_at = self._bus.clock.now()
        try:
            await self._grader.require_gradable(ticket.answer, ticket.grading)
            rollout = Rollout(self._engine, self._sandbox, self._engine.tokenizer, ticket.rollout)
            with self._admission.running(len(prompt), rollout.length):
                response = await rollout.run(prompt)
            self._engine_failures = 0
            if response.lowest_version < ticket.min_version:
                # A learner that went back to its checkpoint published older weights while this was written.
                return HandBack("older weights than the ticket allows came meanwhile")
            grade = await self._grader.grade(
                response.turns, ticket.answer, ticket.grading, response.calls, ticket.problem
            )
            truncated = response.finish_reason is FinishReason.LENGTH
            limit = ticket.rollout.max_response_tokens
            grade = grade.with_length(len(response.tokens), limit, truncated, ticket.grading)
        except DeadlineError as error:
            self._late += 1
            self._late_tokens += error.length
            return self._failure(leased, DEADLINE, str(error), error.length)
        except UngradableError as error:
            return self._failure(leased, "ungradable gold answer", str(error))
        except NoRewardError as error:
            # Another rollout might go well, and the run would not see what the function fails at.
            return self._failure(leased, NO_REWARD, str(error))
        except (SandboxError, GradingError, EngineError) as error:
            log.warning("infrastructure failed under a rollout, handing back", ticket=ticket.number, error=str(error))
            if isinstance(error, EngineError):
                self._count_engine_failure(error)
            # Anybody may want for a sandbox; what an engine or grader fails at may be this ticket's doing.
            leased.failures += not isinstance(error, SandboxError)
            return HandBack("infrastructure failed")
        return self._trajectory(leased, prompt, response, grade, started_at)

    def _require_some_to_succeed(self, failure: Failure) -> None:
        """Ends an actor that has only failed, and for one reason of its own: it would use up tickets faster than others."""
        if failure.reason not in OWN_FAULTS:
            return
        groups = self._own_failures.setdefault(failure.reason, [])
        groups.append(failure.group)
        only = self._finished == 0 and len(self._own_failures) == 1
        if only and len(groups) >= MAX_SAME_FAILURES and len(set(groups)) >= LEAST_GROUPS and self._crash is None:
            self._crash = UselessActorError(
                f"{len(groups)} tickets of {len(set(groups))} problems failed here and none succeeded, for one reason: "
                f"{failure.reason} ({failure.detail}); fix that, then start the actor again"
            )

    def _count_engine_failure(self, error: EngineError) -> None:
        self._engine_failures += 1
        if self._engine_failures >= MAX_ENGINE_FAILURES and self._crash is None:
            self._crash = EngineError(
                f"{self._engine_failures} rollouts in a row failed in the engine, the last because {error}: "
                "this actor hands its tickets back and ends"
            )

    def _trajectory(
        self, leased: LeasedTicket, prompt: list[int], response: Response, grade: Grade, started_at: float
    ) -> Trajectory:
        ticket = leased.ticket
        tokens, mask, logprobs = response.arrays(prompt)
        return Trajectory(
            ticket=ticket.number,
            group=ticket.group,
            tokens=tokens,
            prompt_length=len(prompt),
            loss_mask=mask,
            logprobs=logprobs,
            versions=tuple(response.versions),
            temperature=ticket.rollout.temperature,
            reward=grade.reward,
            reward_parts=grade.parts,
            tool_calls=tuple(response.tool_calls),
            finish_reason=response.finish_reason,
            void_turns=grade.void_turns,
            hallucinated_outputs=response.hallucinated_outputs,
            code_unused=grade.code_unused,
            problem_id=ticket.problem_id[:MAX_TEXT],
            gold_answer=ticket.answer[:MAX_TEXT],
            answer=None if grade.answer is None else grade.answer[:MAX_TEXT],
            attempts=leased.failures + 1,
            actor=self._announcer.id,
            seed=self._seed,
            issued_at=ticket.issued_at,
            started_at=started_at,
            first_token_at=started_at + response.first_token_s,
            published_at=self._bus.clock.now(),
            run=self._bus.address.run,
        )

    def _failure(self, leased: LeasedTicket, reason: str, detail: str, response_length: int = 0) -> Failure:
        return Failure(
            ticket=leased.ticket.number,
            group=leased.ticket.group,
            reason=reason,
            detail=detail[:10_000],
            response_length=response_length,
            attempts=leased.failures + 1,
            actor=self._announcer.id,
            published_at=self._bus.clock.now(),
            run=self._bus.address.run,
        )

    async def _follow_weights(self) -> None:
        while True:
            if await self._weights.update(timeout_s=60.0):
                self._announcer.version = str(self._engine.version)

    async def _watch(self) -> None:
        while not self._bus.lost.is_set():
            if self._crash is not None:
                raise self._crash
            if self._engine.failed:
                raise EngineError("the engine died; this actor hands its tickets back and ends")
            await asyncio.sleep(0.5)
        self._bus.require_connection()

    def _measure(self) -> dict[str, float]:
        now, tokens = time.monotonic(), self._engine.generated_tokens
        then, before = self._last
        self._last = (now, tokens)
        self._announcer.rates = {"tokens_per_s": (tokens - before) / (now - then)}
        return {
            **self._announcer.rates,
            "in_flight": len(self._rollouts),
            "slots": len(self._rollouts) + self._admission.room(len(self._rollouts)),
            "cache_use": self._engine.cache_use,
            "preemptions": self._engine.preemptions,
            "late": self._late,
            "late_length": self._late_tokens / max(self._late, 1),
            "finished": self._finished,
            "failed": self._failed,
            "handed_back": self._handed_back,
            "waiting_results": len(self._outbox),
            "idle_ratio": 1.0 - self._busy.share(),
            "weight_version": self._weights.newest,
            "weight_sync_seconds": self._weights.sync_seconds,
            "weight_pause_seconds": self._weights.pause_seconds,
            "weight_bytes": self._weights.bytes_received,
            "weight_fallbacks": self._weights.fallbacks,
        }

"""An actor on a real bus, over an engine that plays a script: admission, retries, the deadline, what results tell."""

import asyncio
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from actors.actor import MAX_ENGINE_FAILURES, MAX_SAME_FAILURES, Actor, UselessActorError
from actors.engine import Completion, DeadlineError, EngineError, Sampling
from actors.leases import TicketSource
from actors.outbox import Outbox
from bus.codec import decode
from bus.connection import Bus
from bus.log_reader import LogReader
from bus.messages import Failure, TensorEntry, Ticket, Trajectory, VersionSpan, WeightVersion
from bus.presence import Announcer
from configs.bus import WeightsConfig
from configs.loading import load_config
from configs.tasks import GradingConfig
from grading.grader import Grader
from grading.reward_source import source_digest
from runtime.models import model_folder
from weights.codec import Layout
from weights.writer import WeightWriter

CONFIG = load_config(
    "tiny",
    ["rollout.slowest_tokens_per_s=80", "rollout.max_tool_calls=0", "tasks.grading.overlong_penalty=0.5"],
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZEROTIR_CACHE", str(tmp_path_factory.mktemp("cache")))
        return AutoTokenizer.from_pretrained(Path(model_folder("random-tiny")))


class PlayedEngine:
    """Answers the problem `fail N: TEXT` with TEXT after N failures, `flood` with all it may, `hang` too slowly,
    and `back: TEXT` with TEXT, the first time by weights older than those that were loaded.

    Where it is `numb`, a failure is an answer whose log-probabilities are no numbers. Counts what it does at once.
    """

    def __init__(self, tokenizer: Any, cache_tokens: int, *, numb: bool = False) -> None:
        self.numb = numb
        self.tokenizer = tokenizer
        self.cache_tokens = cache_tokens
        self.cache_use, self.preemptions = 0.0, 0
        self.version: WeightVersion | None = None
        self.failed = False
        self.generated_tokens = 0
        self.at_once = self.most_at_once = 0
        self.failures = 0
        self.went_back = False

    async def load(
        self, version: WeightVersion, tensors: Sequence[TensorEntry], path: str, *, recompute: bool = False
    ) -> float:
        self.version = version
        return 0.0

    async def generate(self, tokens: list[int], sampling: Sampling) -> Completion:
        assert self.version is not None
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            return await self._answer(self.tokenizer.decode(tokens), sampling.max_tokens)
        finally:
            self.at_once -= 1

    async def _answer(self, problem: str, max_tokens: int) -> Completion:
        await asyncio.sleep(0.05)
        if problem == "hang":
            raise DeadlineError(33)
        version = self.version
        if problem.startswith("back: "):
            problem = problem.replace("back", "fail 0")
            if not self.went_back:
                self.went_back, version = True, WeightVersion(epoch=1, n=0)
        command, _, text = ("fail 0: " + "5 " * 100 if problem == "flood" else problem).partition(": ")
        logprob = -1.0
        if self.failures < int(command.removeprefix("fail ")):
            self.failures += 1
            if not self.numb:
                raise EngineError("the engine refused a request")
            logprob = math.nan
        tokens = self.tokenizer.encode(text, add_special_tokens=False)[:max_tokens]
        assert version is not None
        return Completion(
            tokens=tokens,
            logprobs=[logprob] * len(tokens),
            versions=[VersionSpan(version=version, start=0, end=len(tokens))],
            finish_reason="length" if len(tokens) == max_tokens else "stop",
            stop=None,
            first_token_s=0.0,
            seconds=0.0,
        )


async def serve(
    bus: Bus,
    engine: PlayedEngine,
    problems: list[str],
    folder: Path,
    version: int = 0,
    answer: str = "5",
    group: int = 8,
    grading: GradingConfig = CONFIG.tasks.grading,
) -> list[Trajectory | Failure]:
    """Returns what an actor answers to a ticket for each problem, whose right answer is `answer`, in the tickets' order.

    `version` is the newest of the weights, and the oldest that the tickets allow.
    """
    writer = WeightWriter(bus, WeightsConfig())
    await writer.open()
    await writer.publish(version, writer.spare_state(Layout.of([("w", "float32", (4,), 16)])))
    for number, problem in enumerate(problems, start=1):
        ticket = Ticket(
            number=number, group=(number - 1) // group, sample=(number - 1) % group,
            problem_id="p", problem=problem, answer=answer,
            template="{problem}", chat=False, grading=grading, rollout=CONFIG.rollout, min_version=version,
            issued_at=time.time(),
        )  # fmt: skip
        await bus.publish(bus.names.tickets, ticket)
    results: dict[int, Trajectory | Failure] = {}
    outbox = Outbox(bus, folder, "a")
    stop = asyncio.Event()
    reader = LogReader(bus, bus.names.stream("RESULTS"), bus.names.results)
    async with Grader(grading=grading) as grader, asyncio.timeout(300):
        actor = Actor(CONFIG, bus, bus, engine, grader, outbox, Announcer(bus, "actor", "a"), seed=7)  # type: ignore[arg-type]
        running = asyncio.create_task(actor.run(stop))
        while len(results) < len(problems) and not running.done():
            for _, data in await reader.read(16, timeout_s=0.5):
                result = decode(data, Trajectory, Failure)
                assert result.ticket not in results
                results[result.ticket] = result
        stop.set()
        await running
    await reader.close()
    return [results[number] for number in sorted(results)]


@pytest.mark.parametrize("numb", [False, True], ids=["refused", "not finite"])
async def test_a_failure_of_the_engine_is_tried_again_and_never_graded(
    bus: Bus, tokenizer: Any, tmp_path: Path, numb: bool
):
    engine = PlayedEngine(tokenizer, 10**6, numb=numb)
    [result] = await serve(bus, engine, ["fail 2: it is 5"], tmp_path)
    assert engine.failures == 2
    assert isinstance(result, Trajectory)
    assert result.reward == 1
    assert tokenizer.decode(result.tokens.tolist()) == "fail 2: it is 5it is 5"


async def test_an_actor_that_fails_at_every_ticket_for_one_reason_ends(bus: Bus, tokenizer: Any, tmp_path: Path):
    with pytest.raises(ExceptionGroup) as caught:
        await serve(bus, PlayedEngine(tokenizer, 10**6), ["hang"] * (MAX_SAME_FAILURES + 8), tmp_path)
    [error] = caught.value.exceptions
    assert isinstance(error, UselessActorError)
    assert f"{MAX_SAME_FAILURES} tickets of 3 problems failed here and none succeeded, for one reason: deadline" in str(
        error
    )


async def test_tickets_that_are_at_fault_themselves_end_no_actor(bus: Bus, tokenizer: Any, tmp_path: Path):
    problems = ["1" * 500] * (MAX_SAME_FAILURES + 8)
    results = await serve(bus, PlayedEngine(tokenizer, 10**6), problems, tmp_path)
    assert {result.reason for result in results if isinstance(result, Failure)} == {"prompt too long"}
    assert len(results) == len(problems)


async def test_one_problem_that_takes_too_long_ends_no_actor(bus: Bus, tokenizer: Any, tmp_path: Path):
    """Its group may be as large as anything."""
    results = await serve(bus, PlayedEngine(tokenizer, 10**6), ["hang"] * (MAX_SAME_FAILURES + 8), tmp_path, group=40)
    assert len(results) == MAX_SAME_FAILURES + 8


async def test_one_ticket_that_succeeds_is_enough_to_go_on(bus: Bus, tokenizer: Any, tmp_path: Path):
    problems = ["fail 0: it is 5", *["hang"] * (MAX_SAME_FAILURES + 8)]
    results = await serve(bus, PlayedEngine(tokenizer, 10**6), problems, tmp_path)
    assert [isinstance(result, Failure) for result in results] == [False, *[True] * (MAX_SAME_FAILURES + 8)]


def rewarded(folder: Path, source: str) -> GradingConfig:
    (folder / "rewards.py").write_text(source)
    name = f"{folder / 'rewards.py'}:reward"
    return GradingConfig(rule="last_number", reward_function=name, reward_function_digest=source_digest(name))


async def test_a_reward_function_gives_the_reward_and_where_it_fails_the_ticket_does(
    bus: Bus, tokenizer: Any, tmp_path: Path
):
    source = """
def reward(problem, answer, turns, calls):
    return {"reward": {"it is 5": 2.5, "it is 7": -1.0, r"\\boxed{5}": 0}[turns[-1]], "length": len(turns[-1])}
"""
    problems = ["fail 0: it is 5", "fail 0: it is 6", "fail 0: it is 7"]
    grading = rewarded(tmp_path, source)
    good, failed, bad = await serve(bus, PlayedEngine(tokenizer, 10**6), problems, tmp_path, grading=grading)
    assert isinstance(good, Trajectory)
    assert (good.reward, good.reward_parts["correct"], good.reward_parts["length"]) == (2.5, 1.0, 7.0)
    assert isinstance(bad, Trajectory)
    assert (bad.reward, bad.reward_parts["correct"]) == (-1.0, 0.0)
    assert isinstance(failed, Failure)
    assert (failed.reason, failed.attempts) == ("reward function failed", 1)
    assert "raised KeyError: 'it is 6' (rewards.py, line 3)" in failed.detail


async def test_an_actor_whose_reward_function_only_fails_ends(bus: Bus, tokenizer: Any, tmp_path: Path):
    grading = rewarded(tmp_path, "def reward(**given): return None\n")
    problems = ["fail 0: it is 5"] * (MAX_SAME_FAILURES + 8)
    with pytest.raises(ExceptionGroup) as caught:
        await serve(bus, PlayedEngine(tokenizer, 10**6), problems, tmp_path, grading=grading)
    [error] = caught.value.exceptions
    assert isinstance(error, UselessActorError)
    assert "for one reason: reward function failed (the reward function returned None" in str(error)


async def test_an_engine_that_keeps_failing_ends_the_actor_and_gives_its_tickets_back(
    bus: Bus, tokenizer: Any, tmp_path: Path
):
    engine = PlayedEngine(tokenizer, 10**6, numb=True)
    with pytest.raises(ExceptionGroup) as caught:
        await serve(bus, engine, ["fail 1000: it is 5"] * MAX_ENGINE_FAILURES, tmp_path)
    [error] = caught.value.exceptions
    assert isinstance(error, EngineError)
    assert "8 rollouts in a row" in str(error)
    assert "not finite" in str(error)
    assert (await bus.js.stream_info(bus.names.stream("RESULTS"))).state.messages == 0
    # Another actor gets them.
    source = TicketSource(bus)
    held: set[int] = set()
    async with asyncio.timeout(60):
        while len(held) < MAX_ENGINE_FAILURES:
            held |= {leased.ticket.number for leased in await source.pull(MAX_ENGINE_FAILURES, 1.0)}


async def test_a_gold_answer_that_its_rule_cannot_grade_is_refused_before_anything_is_generated(
    bus: Bus, tokenizer: Any, tmp_path: Path
):
    engine = PlayedEngine(tokenizer, 10**6)
    [result] = await serve(bus, engine, ["fail 0: it is 5"], tmp_path, answer="five")
    assert isinstance(result, Failure)
    assert (result.reason, result.attempts) == ("ungradable gold answer", 1)
    assert "'five' is not a number" in result.detail
    assert engine.most_at_once == 0


async def test_what_older_weights_wrote_than_the_ticket_allows_is_written_anew(
    bus: Bus, tokenizer: Any, tmp_path: Path
):
    # A learner that went back to its checkpoint published its version 0 in the middle of the rollout.
    engine = PlayedEngine(tokenizer, 10**6)
    [result] = await serve(bus, engine, ["back: it is 5"], tmp_path, version=3)
    assert engine.went_back
    assert isinstance(result, Trajectory)
    assert result.lowest_version == 3


async def test_a_rollout_past_its_deadline_is_a_failure_that_tells_its_length(bus: Bus, tokenizer: Any, tmp_path: Path):
    late, whole = await serve(bus, PlayedEngine(tokenizer, 10**6), ["hang", "flood"], tmp_path)
    assert isinstance(late, Failure)
    assert late.response_length == 33
    assert "deadline" in late.reason
    # What the model can do is to use up its budget: that is graded.
    assert isinstance(whole, Trajectory)
    assert whole.response_length == CONFIG.rollout.max_response_tokens
    assert whole.reward_parts["overlong_penalty"] == -0.5
    assert whole.reward == 0.5


async def test_no_more_rollouts_are_admitted_than_the_cache_has_room_for(bus: Bus, tokenizer: Any, tmp_path: Path):
    engine = PlayedEngine(tokenizer, CONFIG.rollout.max_prompt_tokens // 2)
    results = await serve(bus, engine, ["fail 0: 5"] * 12, tmp_path)
    assert len(results) == 12
    assert engine.most_at_once == 1
    assert CONFIG.actor.max_rollouts > 1

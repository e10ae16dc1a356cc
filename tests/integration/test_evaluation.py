"""The evaluator with a real engine and real jails on the tiny model: stopped, resumed, failing, and in a live run."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from actors.engine import Completion, Engine, Sampling
from actors.vllm_engine import VllmEngine
from bus.connection import Bus
from bus.messages import ExecutionResult, FinishReason, WeightVersion
from bus.metrics import follow_metrics
from bus.presence import Announcer, who_is_alive
from configs.loading import load_config
from configs.schema import RunConfig
from evaluation.checkpoint import CheckpointImage
from evaluation.following import Following
from evaluation.plan import Plan, choose, make_plan
from evaluation.records import Sample
from evaluation.runner import LocalRunner
from evaluation.scoring import Scores, score
from grading.grader import Grader
from grading.reward_source import with_digest
from sandbox.client import SandboxError
from sandbox.jail import Jail
from sandbox.pool import Pool
from sandbox.service import SandboxService
from tasks.prompts import load_template
from tests.integration.source import Source

CONFIG = load_config("tiny", ["evaluation.samples=2", "evaluation.every=2"])


@pytest.fixture(scope="module")
async def engine(tiny_engine: VllmEngine, folder: Path) -> VllmEngine:
    """With the checkpoint's weights."""
    with CheckpointImage.read(folder) as image:
        await tiny_engine.load(WeightVersion(epoch=0, n=0), image.tensors, image.path)
    return tiny_engine


@pytest.fixture(scope="module")
async def pool() -> AsyncIterator[Pool]:
    async with Pool(Jail(CONFIG.sandbox)) as pool:
        yield pool


def plan_of(config: RunConfig, budgets: tuple[int, ...], samples: int, limit: int) -> Plan:
    return make_plan(config, choose(config, [], budgets, samples, limit), load_template(config.tasks.prompt.template))


async def play(
    plan: Plan, folder: Path, engine: Engine, runner, stop: asyncio.Event | None = None, in_flight: int = 8
) -> tuple[Scores, list[str]]:
    told: list[str] = []
    async with asyncio.timeout(120), Grader(grading=plan.data[0].grading) as grader:
        scores = await score(
            plan, "tiny", folder, engine, runner, grader, in_flight, stop or asyncio.Event(), told.append
        )
    return scores, told


def read(folder: Path) -> list[Sample]:
    return [Sample.model_validate_json(line) for line in (folder / "samples.jsonl").read_bytes().splitlines()]


async def once(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


async def test_an_evaluation_is_stopped_in_the_middle_and_goes_on(engine: Engine, pool: Pool, tmp_path: Path):
    plan = plan_of(CONFIG, (0, 1), samples=2, limit=3)
    runner, path = LocalRunner(pool, CONFIG.sandbox), tmp_path / "samples.jsonl"
    stop = asyncio.Event()
    first = asyncio.create_task(play(plan, tmp_path, engine, runner, stop, in_flight=2))
    await once(lambda: path.exists() and path.read_bytes().count(b"\n") >= 4)
    stop.set()
    scores, _ = await first
    begun = path.read_bytes()
    finished = begun.count(b"\n")
    assert not scores.finished
    assert 4 <= finished < 12
    assert sum(row.missing for row in scores.rows) <= 12 - finished
    assert "INCOMPLETE" in (tmp_path / "results.md").read_text()
    assert not json.loads((tmp_path / "results.json").read_text())["complete"]

    # As a process leaves it that is killed while it writes.
    path.write_bytes(begun + b'{"data":"digit_')
    scores, told = await play(plan, tmp_path, engine, runner)
    assert scores.finished
    assert told[0] == f"{finished} of 12 samples are there already"
    assert path.read_bytes().startswith(begun)
    samples = read(tmp_path)
    assert sorted(sample.key for sample in samples) == sorted(job.key for job in plan.jobs())

    for row, budget in zip(scores.rows, (0, 1), strict=True):
        mine = [sample for sample in samples if sample.max_tool_calls == budget]
        assert (row.max_tool_calls, row.samples, row.missing, row.accuracy.problems) == (budget, 6, 0, 3)
        assert row.accuracy.value == pytest.approx(sum(sample.correct for sample in mine) / 6)
        assert row.pass_at[1].value == pytest.approx(row.accuracy.value)
        assert row.code_ratio.value == pytest.approx(sum(bool(sample.tool_calls) for sample in mine) / 6)
        assert row.calls_per_response == sum(len(sample.tool_calls) for sample in mine) / 6
        assert row.truncated_ratio == sum(sample.finish_reason is FinishReason.LENGTH for sample in mine) / 6
        assert all(len(sample.tool_calls) <= budget for sample in mine)
        assert all(0 < sample.sampled_tokens <= sample.response_tokens <= 160 for sample in mine)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["complete"]
    assert [row["max_tool_calls"] for row in results["rows"]] == [0, 1]
    assert shown_on(tmp_path / "index.html") == [
        [passage.text for passage in sample.passages] for sample in sorted(samples, key=lambda s: s.key[1:])
    ]


def shown_on(page: Path) -> list[list[str]]:
    """The transcripts on a page, each passage put together again from its pieces."""

    class Data(HTMLParser):
        found, inside = "", False

        def handle_starttag(self, tag, attrs):
            self.inside = ("id", "transcripts") in attrs

        def handle_data(self, data):
            self.found += data if self.inside else ""

    parser = Data()
    parser.feed(page.read_text())
    shown = []
    for sample in json.loads(parser.found)["samples"]:
        passages: list[str] = []
        before = "output"
        for kind, text, *_ in sample["pieces"]:
            if kind == "output":
                passages.append(f"\n{text}\n")
            elif before == "output":
                passages.append(text)
            else:
                passages[-1] += text
            before = kind
        shown.append(passages)
    return shown


class Failing:
    """A sandbox that fails the first programs that it is given, or all of them."""

    def __init__(self, runner: LocalRunner, failures: float) -> None:
        self._runner = runner
        self.left = failures

    async def execute(self, code: str, timeout_s: float) -> ExecutionResult:
        if self.left > 0:
            self.left -= 1
            raise SandboxError("the jail is on fire")
        return await self._runner.execute(code, timeout_s)


async def test_a_failure_of_infrastructure_is_done_again_and_never_scored(
    engine: Engine, pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("evaluation.evaluator.RETRY_S", 0.01)
    plan = plan_of(CONFIG, (1,), samples=4, limit=6)
    runner = LocalRunner(pool, CONFIG.sandbox)
    scores, _ = await play(plan, tmp_path / "some", engine, Failing(runner, 3))
    [row] = scores.rows
    assert (row.samples, row.missing, row.retries) == (24, 0, 3)
    assert any(
        call.success or "Error" in call.output for sample in read(tmp_path / "some") for call in sample.tool_calls
    )
    assert "3 rollouts were lost to infrastructure" in (tmp_path / "some" / "results.md").read_text()

    # Tried once, every sample that has code executed is missing; tried again, it might have none.
    with monkeypatch.context() as patch:
        patch.setattr("evaluation.evaluator.ATTEMPTS", 1)
        scores, _ = await play(plan, tmp_path / "all", engine, Failing(runner, float("inf")))
    samples = read(tmp_path / "all")
    assert scores.missing.total() == 24 - len(samples) > 0
    assert list(scores.missing) == ["SandboxError: the jail is on fire"]
    assert not any(sample.tool_calls for sample in samples)
    assert sum(row.missing for row in scores.rows) == scores.missing.total()
    # Those that were given up are had by the next start.
    scores, _ = await play(plan, tmp_path / "all", engine, runner)
    assert (scores.rows[0].samples, scores.missing.total()) == (24, 0)
    assert all(sample.attempts == 1 for sample in read(tmp_path / "all"))


class Numb:
    """An engine whose arithmetic has failed, as with weights that are not numbers."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    async def generate(self, tokens: list[int], sampling: Sampling) -> Completion:
        completion = await self._engine.generate(tokens, sampling)
        return replace(completion, logprobs=[*completion.logprobs[:-1], float("nan")])


async def test_what_was_sampled_without_a_finite_probability_is_never_scored(
    engine: Engine, pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("evaluation.evaluator.RETRY_S", 0.01)
    plan = plan_of(CONFIG, (0,), samples=2, limit=2)
    numb: Any = Numb(engine)
    scores, _ = await play(plan, tmp_path, numb, LocalRunner(pool, CONFIG.sandbox))
    assert scores.missing == {"EngineError: the engine returned a log-probability that is not finite": 4}
    assert "INCOMPLETE" in (tmp_path / "results.md").read_text()
    assert not (tmp_path / "samples.jsonl").exists() or read(tmp_path) == []


async def test_problems_that_cannot_be_graded_or_asked_are_left_out_and_named(
    engine: Engine, pool: Pool, tmp_path: Path
):
    rows = [("good", "1+1=", "2"), ("words", "1+1=", "a lot"), ("long", "1" * 200, "2")]
    file = tmp_path / "set.jsonl"
    file.write_text("".join(json.dumps({"id": i, "problem": p, "answer": a}) + "\n" for i, p, a in rows))
    plan = make_plan(CONFIG, choose(CONFIG, [str(file)], (0,), 2, None), load_template(CONFIG.tasks.prompt.template))
    scores, _ = await play(plan, tmp_path / "out", engine, LocalRunner(pool, CONFIG.sandbox))
    [row] = scores.rows
    assert (row.samples, row.missing, row.accuracy.problems) == (2, 0, 1)
    left_out = json.loads((tmp_path / "out" / "results.json").read_text())["left_out"]
    assert [(each["problem"], each["reason"].split(" ")[-1]) for each in left_out] == [
        ("words", "`boxed`"),
        ("long", "64"),
    ]


async def test_a_reward_function_scores_and_a_sample_that_it_fails_at_is_missing(
    engine: Engine, pool: Pool, tmp_path: Path
):
    (tmp_path / "rewards.py").write_text(
        "import pathlib\n"
        "def reward(problem, answer, turns, calls):\n"
        "    open(pathlib.Path(__file__).with_name('asked'), 'a').write('.')\n"
        "    return {'reward': 2.5, 'correct': 0, 'style': 1} if problem.startswith('1') else None\n"
    )
    rows = [{"id": str(n), "problem": f"{n}+0=", "answer": str(n)} for n in (1, 2)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = load_config(
        "tiny",
        [
            "evaluation.samples=2",
            f"evaluation.data={{sums: {{file: '{tmp_path / 'sums.jsonl'}'}}}}",
            f"tasks.grading.reward_function={tmp_path / 'rewards.py'}:reward",
        ],
    )
    plan = plan_of(with_digest(config), (0,), samples=2, limit=2)
    scores, _ = await play(plan, tmp_path / "out", engine, LocalRunner(pool, CONFIG.sandbox))
    [row] = scores.rows
    assert (row.samples, row.missing, row.retries, row.accuracy.value, row.reward) == (2, 2, 0, 0.0, 2.5)
    assert row.reward_parts == {"style": 1.0}
    assert row.metrics()["reward_style"] == 1.0
    assert scores.missing == {"the reward function failed, the log says how": 2}
    # Once each: what is missing was not sampled again.
    assert (tmp_path / "asked").read_text() == "...."
    table = (tmp_path / "out" / "results.md").read_text()
    assert "| reward |" in table
    assert "| 2.500 |" in table


async def test_in_a_live_run_it_scores_versions_as_they_come_and_reports_them(
    engine: VllmEngine, pool: Pool, folder: Path, bus: Bus, tmp_path: Path
):
    source = Source(folder, bus)
    await source.writer.open()
    service = SandboxService(bus.client, bus.names.execution, pool, CONFIG.sandbox, "sandbox")
    await service.start()
    plan = plan_of(CONFIG, (0, 1), samples=2, limit=3)
    announcer = Announcer(bus, "evaluator", "evaluator")
    stop, ended = asyncio.Event(), asyncio.Event()
    scored: dict[str, WeightVersion] = {}

    def tell(line: str) -> None:
        scored[line] = engine.version  # type: ignore[assignment]

    engine.version = None
    async with asyncio.timeout(120), Grader() as grader:
        following = Following(CONFIG, plan, bus, bus, engine, grader, announcer, tmp_path, tell)
        running = asyncio.create_task(following.run(stop, ended))
        await source.publish()
        # Not due: every second version is.
        await once(lambda: (tmp_path / "0.0" / "results.json").exists())
        source.change(0.1)
        await source.publish()
        await once(lambda: announcer.state == "waiting for version 2")
        source.change(0.1)
        await source.publish()
        await once(lambda: (tmp_path / "0.2" / "results.json").exists())
        await once(lambda: announcer.state == "waiting for version 4")
        [presence] = await who_is_alive(bus)
        assert (presence.role, presence.version, presence.state) == ("evaluator", "0.2", "waiting for version 4")
        # Not due, but the last of the run.
        source.change(0.1)
        await source.publish()
        ended.set()
        await running
    await service.drain(5.0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.0", "0.2", "0.3"]
    written = []
    async with asyncio.timeout(60):
        async for _, metrics in follow_metrics(bus):
            written.append(metrics)
            if len(written) == 6:
                break
    assert {(m.role, m.id, m.step) for m in written} == {
        ("evaluator", f"evaluator/digit_sums/{budget}", version) for budget in (0, 1) for version in (0, 2, 3)
    }
    for metrics in written:
        results = json.loads((tmp_path / f"0.{metrics.step}" / "results.json").read_text())
        [row] = [row for row in results["rows"] if row["max_tool_calls"] == metrics.values["max_tool_calls"]]
        assert metrics.values["accuracy"] == row["accuracy"]["value"]
        assert metrics.values["samples"] == 6

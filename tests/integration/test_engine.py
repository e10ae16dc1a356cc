"""The vLLM engine on a tiny model with random weights, held against a Hugging Face forward pass in float32."""

import asyncio
import contextlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import psutil
import pytest
import torch

from actors.engine import Completion, DeadlineError, Engine, EngineError, Sampling
from actors.rollout import Response, Rollout
from actors.vllm_engine import VllmEngine
from bus.messages import ExecutionResult, WeightVersion
from configs.schema import RolloutConfig
from tests.integration.conftest import CONFIG, MAX_LENGTH, MODEL
from tests.integration.reference import Reference
from tests.unit.scripted import result


@pytest.fixture(scope="module")
def shared_reference(folder: Path) -> Iterator[Reference]:
    memory = Path(f"/dev/shm/zerotir-test-{os.getpid()}")
    yield Reference(folder, memory)
    memory.unlink(missing_ok=True)


@pytest.fixture
async def reference(tiny_engine: VllmEngine, shared_reference: Reference) -> Reference:
    """The reference, with its first weights in it and in the engine."""
    shared_reference.restore()
    await tiny_engine.load(*shared_reference.publish())
    return shared_reference


async def sample(engine: VllmEngine, prompt: list[int], **changes: Any) -> Completion:
    arguments: dict[str, Any] = {"max_tokens": 40, "stop": (), "temperature": 1.0, "top_p": 1.0, "top_k": 0}
    arguments |= {"seed": 7, "deadline_s": 600.0}
    return await engine.generate(prompt, Sampling(**(arguments | changes)))


async def sampling(engine: VllmEngine) -> None:
    """Waits until a request has sampled its first token."""
    async with asyncio.timeout(60):
        while not any(
            state.detokenizer.num_output_tokens() for state in engine._llm.output_processor.request_states.values()
        ):
            await asyncio.sleep(0.01)


async def until_asked(engine: VllmEngine, count: int) -> None:
    """Waits until the engine has so many requests, and has nothing left to be told of them."""
    async with asyncio.timeout(60):
        while len(engine._llm.output_processor.request_states) < count:
            await asyncio.sleep(0.01)
    await engine._llm.get_weight_version()


def assert_covered(completion: Completion) -> None:
    assert completion.versions[0].start == 0
    assert completion.versions[-1].end == len(completion.tokens) == len(completion.logprobs)
    for before, after in zip(completion.versions, completion.versions[1:], strict=False):
        assert before.end == after.start
        assert before.version != after.version


def alive(process: psutil.Process) -> bool:
    """It runs; one that has ended and waits to be reaped does not."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def our_children(before: set[psutil.Process]) -> set[psutil.Process]:
    """Live children that are new since `before`; Python's own resource tracker stays until the end of the tests."""
    ours = set()
    for process in set(psutil.Process().children(recursive=True)) - before:
        # It may end at any moment, between these two questions too.
        with contextlib.suppress(psutil.NoSuchProcess):
            if alive(process) and "resource_tracker" not in str(process.cmdline()):
                ours.add(process)
    return ours


def assert_agree(completion: Completion, reference: Reference, prompt: list[int], temperature: float = 1.0) -> None:
    """Each token's log-probability is the reference's."""
    rows = reference.logprobs(prompt, completion.tokens, temperature)
    expected = rows[range(len(completion.tokens)), completion.tokens]
    torch.testing.assert_close(torch.tensor(completion.logprobs), expected, atol=1e-4, rtol=0)


async def test_nothing_is_generated_before_weights_are_known(tiny_engine: VllmEngine, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tiny_engine, "version", None)
    with pytest.raises(EngineError, match="no weights"):
        await sample(tiny_engine, [5, 6, 7])


async def test_greedy_tokens_are_those_of_transformers(tiny_engine: VllmEngine, reference: Reference):
    completion = await sample(tiny_engine, reference.prompt, temperature=0.0)
    assert completion.tokens == reference.greedy(reference.prompt, 40)
    assert completion.finish_reason == "length"
    assert completion.stop is None


@pytest.mark.parametrize("temperature", [1.0, 0.7])
async def test_logprobs_are_of_the_sampling_distribution(
    tiny_engine: VllmEngine, reference: Reference, temperature: float
):
    completions = await asyncio.gather(
        *(sample(tiny_engine, reference.prompt, temperature=temperature, seed=seed) for seed in range(6))
    )
    assert len({tuple(c.tokens) for c in completions}) == 6
    for c in completions:
        assert_agree(c, reference, reference.prompt, temperature)


async def test_loaded_weights_are_generated_with(tiny_engine: VllmEngine, reference: Reference):
    before = await sample(tiny_engine, reference.prompt, temperature=0.0)
    reference.perturb(seed=3)
    version, tensors, memory = reference.publish()
    seconds = await tiny_engine.load(version, tensors, memory)
    assert seconds > 0
    assert tiny_engine.version == version
    # The same prompt again: blocks of the prefix cache that hold old keys and values must not be taken.
    after = await sample(tiny_engine, reference.prompt, temperature=0.0)
    assert after.tokens == reference.greedy(reference.prompt, 40) != before.tokens
    assert [span.version for span in after.versions] == [version]
    assert_agree(await sample(tiny_engine, reference.prompt, seed=11), reference, reference.prompt)


async def test_a_request_past_its_deadline_tells_how_much_it_sampled(
    tiny_engine: VllmEngine, reference: Reference, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("actors.vllm_engine.LOOK_EVERY_S", 0.01)
    with pytest.raises(DeadlineError) as caught:
        await sample(tiny_engine, reference.prompt, max_tokens=400, temperature=0.0, deadline_s=0.0)
    assert 0 < caught.value.length < 400
    # It was aborted, and the engine goes on.
    assert not tiny_engine._llm.output_processor.request_states
    assert len((await sample(tiny_engine, reference.prompt, temperature=0.0)).tokens) == 40


async def test_a_pause_is_no_generation_and_an_engine_that_hangs_is_an_error(
    tiny_engine: VllmEngine, reference: Reference, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("actors.vllm_engine.LOOK_EVERY_S", 0.01)
    started = time.monotonic()
    running = asyncio.create_task(sample(tiny_engine, reference.prompt, max_tokens=400, temperature=0.0))
    await sampling(tiny_engine)
    await tiny_engine._llm.pause_generation(mode="keep", clear_cache=False)
    await asyncio.sleep(3)
    await tiny_engine._llm.resume_generation()
    completion = await running
    assert 0 < completion.seconds < time.monotonic() - started - 1
    await tiny_engine._llm.pause_generation(mode="keep", clear_cache=False)
    monkeypatch.setattr("actors.vllm_engine.STALL_TIMEOUT_S", 0.5)
    with pytest.raises(EngineError, match="hangs"):
        await sample(tiny_engine, reference.prompt)
    assert tiny_engine.failed
    tiny_engine.failed = False
    await tiny_engine._llm.resume_generation()
    assert len((await sample(tiny_engine, reference.prompt, temperature=0.0)).tokens) == 40


async def test_a_long_prompt_is_not_continued_from_another_versions_cache(
    tiny_engine: VllmEngine, reference: Reference
):
    prompt = reference.prompt * 20  # several blocks of the prefix cache
    await sample(tiny_engine, prompt, temperature=0.0)
    reference.perturb(seed=4)
    await tiny_engine.load(*reference.publish())
    assert_agree(await sample(tiny_engine, prompt, seed=5), reference, prompt)


async def test_what_waits_while_weights_are_loaded_takes_nothing_from_the_old_ones_cache(
    tiny_engine: VllmEngine, reference: Reference
):
    prompt = reference.prompt * 20  # several blocks of the prefix cache
    await sample(tiny_engine, prompt, temperature=0.0)
    await tiny_engine._llm.pause_generation(mode="keep", clear_cache=False)
    waiting = [asyncio.create_task(sample(tiny_engine, prompt, seed=seed)) for seed in range(3)]
    await until_asked(tiny_engine, 3)
    reference.perturb(seed=5)
    version, tensors, memory = reference.publish()
    await tiny_engine.load(version, tensors, memory)
    for completion in await asyncio.gather(*waiting):
        assert [span.version for span in completion.versions] == [version]
        assert_agree(completion, reference, prompt)


async def test_requests_in_flight_go_on_with_new_weights(tiny_engine: VllmEngine, reference: Reference):
    old = tiny_engine.version
    reference.bias({reference.end: -20.0})  # so that they run long enough
    await tiny_engine.load(*reference.publish())
    first = tiny_engine.version
    assert first != old
    tasks = [asyncio.create_task(sample(tiny_engine, reference.prompt, max_tokens=450, seed=seed)) for seed in range(8)]
    await sampling(tiny_engine)
    assert not any(task.done() for task in tasks)
    reference.perturb(seed=5)
    reference.bias({reference.end: -20.0})
    await tiny_engine.load(*reference.publish())
    async with asyncio.timeout(120):
        completions = await asyncio.gather(*tasks)
    spanning = [c for c in completions if len(c.versions) == 2]
    assert spanning, [c.versions for c in completions]
    for c in completions:
        assert_covered(c)
    for c in spanning:
        assert [span.version for span in c.versions] == [first, tiny_engine.version]
    # Up to the load the first version's distribution holds, after it another one does.
    reference.restore()
    reference.bias({reference.end: -20.0})
    for c in spanning:
        end = c.versions[0].end
        expected = reference.logprobs(reference.prompt, c.tokens, 1.0)[range(len(c.tokens)), c.tokens]
        difference = (torch.tensor(c.logprobs) - expected).abs()
        assert difference[:end].max() < 1e-4
        assert difference[end:].mean() > 1e-2


class Recorder:
    """Keeps what each request of a rollout was and became."""

    def __init__(self, engine: VllmEngine) -> None:
        self._engine = engine
        self.requests: list[tuple[WeightVersion | None, list[int], Completion]] = []
        """The version at which each was asked for, its prompt and what came of it."""

    async def generate(self, tokens: list[int], sampling: Sampling) -> Completion:
        version = self._engine.version
        self.requests.append((version, tokens, completion := await self._engine.generate(tokens, sampling)))
        return completion


class Printing:
    """Runs nothing; what it prints looks like the end of the sequence and like code. Its `signal`th call sets `called`."""

    def __init__(self, signal: int) -> None:
        self._left = signal
        self.called = asyncio.Event()

    async def execute(self, code: str, timeout_s: float) -> ExecutionResult:
        self._left -= 1
        if self._left == 0:
            self.called.set()
        return result(stdout="<eos> 6\n```python\n")


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("keep", [True, False], ids=["keep", "recompute"])
async def test_logprobs_of_rollouts_across_calls_and_an_update(
    tiny_engine: VllmEngine, reference: Reference, keep: bool, temperature: float
):
    """What runs in the moment in which the weights come, and what after it, is a matter of luck: so there are some tries."""
    for _ in range(8):
        if await requests_across_an_update(tiny_engine, reference, keep, temperature):
            return
    pytest.fail("too few requests before, across and after the weights' coming: the test shows nothing")


async def requests_across_an_update(
    tiny_engine: VllmEngine, reference: Reference, keep: bool, temperature: float
) -> bool:
    """Checks all log-probabilities of rollouts during which weights are loaded; whether there were enough of each kind."""
    reference.restore()
    bias = {reference.end: -20.0} | {
        reference.tokenizer.convert_tokens_to_ids(f): 2.0 for f in ("```python\n", "```\n")
    }
    reference.bias(bias)
    await tiny_engine.load(*reference.publish())
    first = tiny_engine.version
    # Made before anything runs: while they are made nothing is asked for, and what runs comes to its end.
    reference.restore()
    reference.perturb(seed=9)
    reference.bias(bias)
    update = reference.publish()
    config = RolloutConfig(
        max_tool_calls=4, max_response_tokens=400, max_output_tokens=40, temperature=temperature, stop=()
    )
    runner = Printing(signal=10)
    recorders = [Recorder(tiny_engine) for _ in range(8)]
    rollouts = [Rollout(cast(Engine, recorder), runner, reference.tokenizer, config) for recorder in recorders]
    running = [asyncio.create_task(rollout.run(reference.prompt)) for rollout in rollouts]
    async with asyncio.timeout(120):
        everything = asyncio.gather(*running)
        called = asyncio.create_task(runner.called.wait())
        await asyncio.wait((called, everything), return_when=asyncio.FIRST_COMPLETED)
        called.cancel()
        await tiny_engine.load(*update, recompute=not keep)
        responses: list[Response] = await everything

    after = calls = 0
    told_apart: list[float] = []
    for response, recorder in zip(responses, recorders, strict=True):
        calls += len(response.tool_calls)
        # The trajectory holds what the requests sampled, in order, and none of the inserted tokens is a special one.
        rows = list(zip(response.tokens, response.loss_mask, response.logprobs, strict=True))
        assert [row[0] for row in rows if row[1]] == [t for _, _, c in recorder.requests for t in c.tokens]
        assert [row[2] for row in rows if row[1]] == [p for _, _, c in recorder.requests for p in c.logprobs]
        assert reference.end not in [row[0] for row in rows if not row[1]]
        for asked_at, prompt, completion in recorder.requests:
            new_only = completion.versions[0].version != first
            if new_only and asked_at == first:
                continue  # it came while the weights were loaded: nobody can tell what it found in the cache
            after += new_only
            actual = torch.tensor(completion.logprobs)
            expected = reference.across_versions(prompt, completion, temperature, keep=keep)
            torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)
            if len(completion.versions) == 2 and completion.versions[1].end - completion.versions[1].start > 3:
                wrong = reference.across_versions(prompt, completion, temperature, keep=not keep)
                told_apart.append(float((actual - wrong).abs().max()))
    if not told_apart or min(calls, after) <= 8:
        return False
    assert max(told_apart) > 1e-2
    return True


async def test_a_cancelled_request_is_aborted(tiny_engine: VllmEngine, reference: Reference):
    reference.bias({reference.end: -20.0})
    await tiny_engine.load(*reference.publish())
    task = asyncio.create_task(sample(tiny_engine, reference.prompt, max_tokens=450))
    await sampling(tiny_engine)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not tiny_engine._llm.output_processor.request_states


async def test_the_size_of_the_cache_is_known(tiny_engine: VllmEngine):
    # Keys and values, two layers, two heads of 64 numbers of four bytes: 2,048 bytes a token.
    assert tiny_engine.cache_tokens == pytest.approx(CONFIG.kv_cache_gb * 2**30 / 2048, rel=0.01)


async def test_a_stop_string_is_included_and_reported(tiny_engine: VllmEngine, reference: Reference):
    word = "```python"
    (token,) = reference.tokenizer.encode(word, add_special_tokens=False)
    reference.bias({token: 2.5, reference.end: -20.0})
    await tiny_engine.load(*reference.publish())
    completions = await asyncio.gather(
        *(sample(tiny_engine, reference.prompt, stop=("Human:", word), max_tokens=200, seed=n) for n in range(6))
    )
    for completion in completions:
        assert completion.stop == word
        assert completion.finish_reason == "stop"
        # Its tokens are all there, and nothing after them.
        assert completion.tokens.index(token) == len(completion.tokens) - 1
        assert_covered(completion)
    assert max(len(completion.tokens) for completion in completions) > 1


async def test_a_stop_string_of_several_tokens_is_kept_whole(tiny_engine: VllmEngine, reference: Reference):
    letters = [reference.tokenizer.convert_tokens_to_ids(letter) for letter in "ab"]
    reference.bias({letters[0]: 4.0, letters[1]: 4.0, reference.end: -20.0})
    await tiny_engine.load(*reference.publish())
    completion = await sample(tiny_engine, reference.prompt, stop=("abba",), max_tokens=400)
    assert completion.stop == "abba"
    assert completion.tokens[-4:] == [letters[0], letters[1], letters[1], letters[0]]
    assert_covered(completion)


async def test_the_end_of_the_sequence_is_no_stop_string(tiny_engine: VllmEngine, reference: Reference):
    end = reference.end
    reference.bias({end: 2.5})
    await tiny_engine.load(*reference.publish())
    completion = await sample(tiny_engine, reference.prompt, stop=("```python",), max_tokens=200)
    assert completion.stop is None
    assert completion.finish_reason == "stop"
    assert completion.tokens[-1] == end
    assert end not in completion.tokens[:-1]
    assert_covered(completion)


async def test_sampling_follows_the_seed(tiny_engine: VllmEngine, reference: Reference):
    first, same, other = [await sample(tiny_engine, reference.prompt, seed=seed) for seed in (21, 21, 22)]
    assert first.tokens == same.tokens
    assert first.tokens != other.tokens


async def test_cancelling_frees_the_request(tiny_engine: VllmEngine, reference: Reference):
    reference.bias({reference.end: -20.0})
    await tiny_engine.load(*reference.publish())
    task = asyncio.create_task(sample(tiny_engine, reference.prompt, max_tokens=450))
    await sampling(tiny_engine)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert tiny_engine._llm.get_num_unfinished_requests() == 0
    # Every place is free again: as many requests as the engine runs at once finish together.
    async with asyncio.timeout(60):
        await asyncio.gather(*(sample(tiny_engine, reference.prompt, seed=n) for n in range(CONFIG.max_running)))


async def test_a_request_that_cannot_be_served_is_an_error(tiny_engine: VllmEngine, reference: Reference):
    with pytest.raises(EngineError):
        await sample(tiny_engine, reference.prompt * 100)
    assert not tiny_engine.failed
    assert (await sample(tiny_engine, reference.prompt)).tokens


@pytest.mark.slow
async def test_what_is_preempted_after_a_load_is_computed_by_the_new_weights(folder: Path, shared_reference: Reference):
    """Two responses in a cache with room for one and a half, with new weights at about a fifth of them.

    One of them has to leave the cache when it is full, and finds some of its blocks there again when it comes back.
    """
    reference = shared_reference
    config = CONFIG.model_copy(update={"kv_cache_gb": 680 * 2048 / 2**30})
    engine = await VllmEngine.start(folder, MODEL, config, MAX_LENGTH, seed=5)
    reference.restore()
    reference.bias({reference.end: -20.0})
    await engine.load(*reference.publish())
    running = [asyncio.create_task(sample(engine, reference.prompt, max_tokens=450, seed=seed)) for seed in (1, 2)]
    async with asyncio.timeout(60):
        while min((engine._sampled(id) for id in ("0", "1")), default=0) < 90:
            await asyncio.sleep(0.001)
    await engine._llm.pause_generation(mode="keep", clear_cache=False)
    reference.perturb(seed=6)
    reference.bias({reference.end: -20.0})
    await engine.load(*reference.publish())
    completions = await asyncio.gather(*running)
    await engine.stop()
    agree = []
    for completion in completions:
        assert completion.versions[1].start < 300, "the weights came too late for this test"
        expected = reference.logprobs(reference.prompt, completion.tokens, 1.0)[range(450), completion.tokens]
        agree.append(float((torch.tensor(completion.logprobs) - expected)[-20:].abs().max()) < 1e-4)
    # The other one kept what it had read with the old weights.
    assert sorted(agree) == [False, True]


@pytest.mark.slow
async def test_a_killed_engine_is_an_error_and_stop_leaves_no_process(folder: Path, shared_reference: Reference):
    before = set(psutil.Process().children(recursive=True))
    engine = await VllmEngine.start(folder, MODEL, CONFIG, MAX_LENGTH, seed=2)
    shared_reference.restore()
    shared_reference.bias({shared_reference.end: -20.0})
    await engine.load(*shared_reference.publish())
    started = our_children(before)
    assert started
    task = asyncio.create_task(sample(engine, shared_reference.prompt, max_tokens=450))
    await sampling(engine)
    for process in started:
        process.kill()
    async with asyncio.timeout(60):
        with pytest.raises(EngineError):
            await task
    assert engine.failed
    await engine.stop()
    assert not our_children(before)


@pytest.mark.slow
async def test_a_tied_head_follows_and_stop_ends_every_process(
    folder: Path, shared_reference: Reference, tmp_path: Path
):
    tied_folder = tmp_path / "tied"
    shutil.copytree(folder, tied_folder)
    config = json.loads((tied_folder / "config.json").read_text())
    (tied_folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    tied = Reference(tied_folder, tmp_path / "weights", drop=("lm_head.weight",))
    before = set(psutil.Process().children(recursive=True))
    engine = await VllmEngine.start(tied_folder, MODEL, CONFIG, MAX_LENGTH, seed=3)
    for seed in (1, 2):
        tied.perturb(seed)
        tied.model.tie_weights()
        await engine.load(*tied.publish())
        assert_agree(await sample(engine, tied.prompt), tied, tied.prompt)

    version, tensors, memory = tied.publish()
    wrong = tensors[0].model_copy(update={"shape": (1, *tensors[0].shape)})
    with pytest.raises(EngineError, match="could not be loaded"):
        await engine.load(version, (wrong, *tensors[1:]), memory)
    assert engine.failed
    assert engine.version != version

    started = our_children(before)
    assert started
    await engine.stop()
    assert not our_children(before)
    assert not any(alive(process) for process in started)


ALONE = """
import asyncio, sys
from pathlib import Path
from actors.vllm_engine import VllmEngine
from tests.integration.conftest import CONFIG, MAX_LENGTH, MODEL

async def main():
    engine = await VllmEngine.start(Path(sys.argv[1]), MODEL, CONFIG, MAX_LENGTH, seed=4)
    print("up", flush=True)
    await asyncio.sleep(600)

if __name__ == "__main__":
    asyncio.run(main())
"""


@pytest.mark.slow
async def test_an_actor_that_is_killed_leaves_no_engine_process(folder: Path, tmp_path: Path):
    program = tmp_path / "alone.py"
    program.write_text(ALONE)
    actor = await asyncio.create_subprocess_exec(
        sys.executable, str(program), str(folder), stdout=asyncio.subprocess.PIPE, env={**os.environ, "PYTHONPATH": "."}
    )
    assert actor.stdout is not None
    async with asyncio.timeout(300):
        while await actor.stdout.readline() != b"up\n":
            assert actor.returncode is None
    started = psutil.Process(actor.pid).children(recursive=True)
    engine = [process for process in started if "VLLM::EngineCore" in " ".join(process.cmdline())]
    assert engine, [process.cmdline() for process in started]
    actor.kill()
    await actor.wait()
    async with asyncio.timeout(60):
        while any(alive(process) for process in engine):
            await asyncio.sleep(0.05)

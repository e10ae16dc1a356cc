"""The vLLM engine on a tiny model with random weights, held against a Hugging Face forward pass in float32."""

import asyncio
import time

import pytest
import torch

from actors.engine import DeadlineError, EngineError
from actors.vllm_engine import VllmEngine
from tests.integration.conftest import CONFIG
from tests.integration.engine_requests import assert_agree, assert_covered, sample, sampling, until_asked
from tests.integration.reference import Reference


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

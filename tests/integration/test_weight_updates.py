"""From the learner's writer over the bus into a running engine, held against a fresh engine on the exported checkpoint."""

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from actors.engine import Completion, Sampling
from actors.vllm_engine import VllmEngine
from actors.weight_loader import WeightLoader
from bus.connection import Bus
from bus.messages import VersionSpan, WeightVersion
from launch.weights_command import _write_checkpoint
from tests.integration.source import Source
from weights.follower import WeightFollower

pytestmark = pytest.mark.slow


@pytest.fixture
def engine(tiny_engine: VllmEngine) -> VllmEngine:
    return tiny_engine


@pytest.fixture
async def source(folder: Path, bus: Bus) -> Source:
    source = Source(folder, bus)
    await source.writer.open()
    return source


async def sample(engine: VllmEngine, prompt: list[int], **changes: Any) -> Completion:
    arguments: dict[str, Any] = {"max_tokens": 60, "stop": (), "temperature": 0.0, "top_p": 1.0, "top_k": 0}
    arguments |= {"seed": 3, "deadline_s": 600.0}
    return await engine.generate(prompt, Sampling(**(arguments | changes)))


async def fresh(checkpoint: Path, prompt: list[int]) -> tuple[list[int], torch.Tensor, Any]:
    """Greedy tokens, their log-probabilities and the weights' digests of a new engine that reads the checkpoint itself."""
    from vllm import AsyncEngineArgs, SamplingParams
    from vllm.v1.engine.async_llm import AsyncLLM

    llm = AsyncLLM.from_engine_args(
        AsyncEngineArgs(
            model=str(checkpoint), dtype="float32", max_model_len=512, max_num_seqs=8, enforce_eager=True,
            logprobs_mode="processed_logprobs", generation_config="vllm", kv_cache_memory_bytes=2**30, block_size=32,
        )
    )  # fmt: skip
    try:
        last: Any = None
        sampling = SamplingParams(max_tokens=60, temperature=0.0, logprobs=0)
        async for output in llm.generate({"prompt_token_ids": prompt}, sampling, request_id="fresh"):
            last = output
        answer = last.outputs[0]
        logprobs = [entry[token].logprob for token, entry in zip(answer.token_ids, answer.logprobs, strict=True)]
        return list(answer.token_ids), torch.tensor(logprobs), await llm.compute_weight_checksums()
    finally:
        if llm.output_handler is not None:
            llm.output_handler.cancel()
        await asyncio.to_thread(llm.shutdown, 5.0)


async def test_after_updates_the_engine_is_a_fresh_engine_on_the_exported_checkpoint(
    engine: VllmEngine, source: Source, bus: Bus, tmp_path: Path
):
    loader = WeightLoader(bus, engine, recompute=False)
    greedy: list[list[int]] = []
    try:
        for _ in range(4):
            await source.publish()
            assert await loader.update(20)
            greedy.append((await sample(engine, source.prompt)).tokens)
            source.change(0.4)
        assert engine.version == WeightVersion(epoch=0, n=3)
        assert len({tuple(tokens) for tokens in greedy}) > 1, "the updates changed nothing: the test shows nothing"
        assert loader.fallbacks == 0
    finally:
        loader.close()
    # A reader of its own, as `zerotir weights --export` is one.
    follower = WeightFollower(bus)
    await follower.reach(WeightVersion(epoch=0, n=3))
    assert follower.state is not None
    checkpoint = tmp_path / "exported"
    _write_checkpoint(follower.state, "random-tiny", checkpoint)
    ours = await sample(engine, source.prompt)
    digests = await engine._llm.compute_weight_checksums()
    tokens, logprobs, fresh_digests = await fresh(checkpoint, source.prompt)
    assert tokens == ours.tokens
    torch.testing.assert_close(torch.tensor(ours.logprobs), logprobs, atol=1e-5, rtol=0)
    assert digests == fresh_digests
    assert digests
    shutil.rmtree(checkpoint)


@pytest.mark.parametrize("recompute", [True, False], ids=["recompute", "keep"])
async def test_running_requests_keep_or_recompute_their_keys_and_values(
    engine: VllmEngine, source: Source, bus: Bus, recompute: bool
):
    loader = WeightLoader(bus, engine, recompute=recompute)
    try:
        source.model.model.embed_tokens.weight.requires_grad_(False)
        await source.publish()
        assert await loader.update(20)
        first = engine.version
        running = [
            asyncio.create_task(sample(engine, source.prompt, max_tokens=300, temperature=1.0, seed=seed))
            for seed in range(6)
        ]
        await asyncio.sleep(0.15)
        source.change(0.3)
        await source.publish()
        assert await loader.update(20)
        completions = [done for done in await asyncio.gather(*running) if len(done.versions) == 2]
    finally:
        loader.close()
    assert completions, "every request ended before the update: the test shows nothing"
    for completion in completions:
        old, new = completion.versions
        assert [old.version, new.version] == [first, engine.version]
        # A pass with the new weights alone has recomputed keys and values: it agrees with `recompute` and not with `keep`.
        difference = (torch.tensor(completion.logprobs) - source.logprobs(completion.tokens)).abs()[new.start :]
        if recompute:
            assert difference.max() < 1e-4, VersionSpan.model_dump(new)
        else:
            assert difference.max() > 1e-2


async def test_a_ticket_waits_for_its_version_as_long_as_versions_take_here(engine: VllmEngine, bus: Bus):
    loader = WeightLoader(bus, engine)
    assert loader.patience_s == 30.0
    loader.sync_seconds = 70.0
    assert loader.patience_s == 140.0
    loader.sync_seconds = 4000.0
    assert loader.patience_s == 300.0

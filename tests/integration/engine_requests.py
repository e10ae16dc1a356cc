"""Requests of the tiny engine, and what is to hold of what comes of them."""

import asyncio
from typing import Any

import torch

from actors.engine import Completion, Sampling
from actors.vllm_engine import VllmEngine
from tests.integration.reference import Reference


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


def assert_agree(completion: Completion, reference: Reference, prompt: list[int], temperature: float = 1.0) -> None:
    """Each token's log-probability is the reference's."""
    rows = reference.logprobs(prompt, completion.tokens, temperature)
    expected = rows[range(len(completion.tokens)), completion.tokens]
    torch.testing.assert_close(torch.tensor(completion.logprobs), expected, atol=1e-4, rtol=0)

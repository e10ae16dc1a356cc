"""The engine under rollouts: log-probabilities across tool calls and updates of the weights."""

import asyncio
from typing import cast

import pytest
import torch

from actors.engine import Completion, Engine, Sampling
from actors.rollout import Response, Rollout
from actors.vllm_engine import VllmEngine
from bus.messages import ExecutionResult, WeightVersion
from configs.schema import RolloutConfig
from tests.integration.reference import Reference
from tests.unit.scripted import result


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

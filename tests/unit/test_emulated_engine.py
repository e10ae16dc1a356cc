"""The emulated engine keeps the engine's contract: budgets, stop strings, versions of tokens, and the seed decides."""

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import pytest

from actors.emulated_engine import EmulatedEngine, PlainTokenizer
from actors.emulated_scheduler import PREFILL_SPEED
from actors.engine import DeadlineError, EngineError, Sampling
from bus.messages import WeightVersion
from configs.schema import EngineConfig
from runtime.models import model_folder

ROLLOUT: dict[str, Any] = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "seed": None, "deadline_s": 600.0}


@pytest.fixture(scope="module")
def tokenizer() -> PlainTokenizer:
    return PlainTokenizer(model_folder("random-tiny"))


async def ready(tokenizer: PlainTokenizer, seed: int = 0, **emulation: float) -> EmulatedEngine:
    config = EngineConfig.model_validate({"kind": "emulated", "emulation": {"tokens_per_s": 1e6, **emulation}})
    engine = EmulatedEngine(tokenizer, config, seed)
    await engine.load(WeightVersion(epoch=0, n=0), [], "")
    return engine


async def ask(engine: EmulatedEngine, stop: tuple[str, ...], max_tokens: int = 1000):
    return await engine.generate([1, 2], Sampling(max_tokens=max_tokens, stop=stop, **ROLLOUT))


async def test_it_generates_nothing_before_its_first_weights(tokenizer: PlainTokenizer):
    with pytest.raises(EngineError, match="no weights"):
        await ask(EmulatedEngine(tokenizer, EngineConfig(kind="emulated"), 0), ())


async def test_a_pace_below_the_slowest_meets_the_deadline(tokenizer: PlainTokenizer):
    engine = await ready(tokenizer, tokens_per_s=100.0)
    with pytest.raises(DeadlineError) as caught:
        await engine.generate([1, 2], Sampling(max_tokens=1000, stop=(), **ROLLOUT | {"deadline_s": 0.05}))
    assert caught.value.length == 5


async def test_the_seed_decides_what_is_written(tokenizer: PlainTokenizer):
    async def written(seed: int) -> list[list[int]]:
        engine = await ready(tokenizer, seed)
        return [(await ask(engine, ("```python",))).tokens for _ in range(5)]

    assert await written(1) == await written(1)
    assert await written(1) != await written(2)


async def test_a_turn_ends_with_a_stop_string_an_end_or_the_budget(tokenizer: PlainTokenizer):
    caller, talker = await ready(tokenizer, call_ratio=1.0), await ready(tokenizer, call_ratio=0.0)
    opened = await ask(caller, ("```python",))
    assert (opened.stop, opened.finish_reason) == ("```python", "stop")
    assert tokenizer.decode(opened.tokens).endswith("```python")
    program = await ask(caller, ("```",))
    assert program.stop == "```"
    assert "print(" in tokenizer.decode(program.tokens)
    # Where no program may be written, none is.
    for engine, stop in ((caller, ()), (talker, ("```python",))):
        answer = await ask(engine, stop)
        assert answer.stop is None
        assert answer.tokens[-1] == tokenizer.eos_token_id
        assert "```" not in tokenizer.decode(answer.tokens)
    cut = await ask(caller, ("```python",), max_tokens=7)
    assert (len(cut.tokens), cut.stop, cut.finish_reason) == (7, None, "length")


async def test_tokens_carry_the_version_that_was_loaded_when_they_were_due(
    tokenizer: PlainTokenizer, monkeypatch: pytest.MonkeyPatch
):
    engine = await ready(tokenizer, tokens_per_s=50, median_tokens=100, spread=0)
    # A clock of the test's own: half a second passes before the load, the rest after it.
    now = time.monotonic()
    monkeypatch.setattr("actors.emulated_engine.time", SimpleNamespace(monotonic=lambda: now))
    running = asyncio.create_task(ask(engine, ()))
    await asyncio.sleep(0)
    now += 0.501 + 2 / PREFILL_SPEED / 50
    await engine.load(WeightVersion(epoch=0, n=1), [], "")
    now += 60.0
    assert engine.cache_use == 0.0
    completion = await running
    assert [(span.version.n, span.start, span.end) for span in completion.versions] == [
        (0, 0, 25),
        (1, 25, len(completion.tokens)),
    ]
    assert len(completion.logprobs) == len(completion.tokens)
    running = asyncio.create_task(ask(engine, ()))
    await asyncio.sleep(0)
    now += 60.0
    assert engine.cache_use == 0.0
    later = await running
    assert [span.version.n for span in later.versions] == [1]


async def test_what_is_sampled_and_what_it_occupies_can_be_seen_while_it_runs(
    tokenizer: PlainTokenizer, monkeypatch: pytest.MonkeyPatch
):
    engine = await ready(tokenizer, tokens_per_s=50, median_tokens=100, spread=0, cache_tokens=200)
    now = time.monotonic()
    monkeypatch.setattr("actors.emulated_engine.time", SimpleNamespace(monotonic=lambda: now))
    sampling = Sampling(max_tokens=100, stop=(), **ROLLOUT)
    running = asyncio.create_task(engine.generate([1] * 50, sampling))
    await asyncio.sleep(0)
    assert sampling.progress.sampled() == 0
    now += 50 / PREFILL_SPEED / 50 + 1.001
    assert sampling.progress.sampled() == 50
    assert engine.cache_use == pytest.approx(0.5, abs=0.01)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert (sampling.progress.sampled(), engine.cache_use, engine.preemptions) == (0, 0.0, 0)


async def test_a_full_cache_preempts_and_answers_are_whole(tokenizer: PlainTokenizer):
    engine = await ready(tokenizer, median_tokens=100, spread=0, cache_tokens=400)
    alone = [await ask(engine, ()) for _ in range(4)]
    engine = await ready(tokenizer, median_tokens=100, spread=0, cache_tokens=400, tokens_per_s=2000)
    together = await asyncio.gather(*[ask(engine, ()) for _ in range(4)])
    assert engine.preemptions > 0
    assert [each.tokens for each in together] == [each.tokens for each in alone]
    assert all([(span.start, span.end) for span in each.versions] == [(0, len(each.tokens))] for each in together)
    assert all(each.seconds == len(each.tokens) / 2000 for each in together)


async def test_a_request_larger_than_the_cache_is_refused(tokenizer: PlainTokenizer):
    engine = await ready(tokenizer, median_tokens=100, spread=0, cache_tokens=90)
    with pytest.raises(EngineError, match="does not fit"):
        await ask(engine, ())


def test_the_plain_tokenizer_agrees_with_the_models_own(tokenizer: PlainTokenizer):
    from transformers import AutoTokenizer

    own = AutoTokenizer.from_pretrained(model_folder("random-tiny"))
    for text in ("2+3=", "a ```python\nprint(1)\n```\n", own.eos_token):
        for split in (True, False):
            mine = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=split)
            assert mine == own.encode(text, add_special_tokens=False, split_special_tokens=split)
            assert tokenizer.decode(mine) == own.decode(mine)
        assert tokenizer(text)["input_ids"] == own(text)["input_ids"]
    assert (len(tokenizer), tokenizer.eos_token_id) == (len(own), own.eos_token_id)

"""The vLLM engine on a tiny model with random weights, held against a Hugging Face forward pass in float32."""

import asyncio
import json
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from actors.engine import Completion, Engine, EngineError
from bus.messages import TensorEntry, WeightVersion
from configs.models import model_folder
from configs.schema import EngineConfig, ModelConfig

MAX_LENGTH = 512
MODEL = ModelConfig(path="random-tiny", dtype="float32")
CONFIG = EngineConfig(max_running=16, kv_cache_gb=1, enforce_eager=True, start_timeout_s=300)
PROMPT = "What is 2 + 3?\n"


class Reference:
    """The same model in transformers, and its weights as a host copy that an engine loads."""

    def __init__(self, folder: Path, memory: Path, drop: tuple[str, ...] = ()) -> None:
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.prompt: list[int] = self.tokenizer.encode(PROMPT, add_special_tokens=False)
        self._memory = memory
        self._drop = drop
        self._original = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        self._version = 0

    def perturb(self, seed: int) -> None:
        """Moves every weight so far from the first ones that greedy texts differ."""
        generator = torch.Generator().manual_seed(seed)
        state = {
            name: tensor + 0.5 * tensor.std() * torch.randn(tensor.shape, generator=generator)
            for name, tensor in self._original.items()
        }
        self.model.load_state_dict(state)

    @torch.no_grad()
    def bias(self, logits: dict[int, float]) -> None:
        """Adds about so much to the logit of each of these tokens, at every position.

        The head has no bias: one dimension of the residual stream is made a constant that only these tokens read.
        """
        head = self.model.lm_head.weight
        self.model.model.embed_tokens.weight[:, 0] = 0.4
        head[:, 0] = 0.0
        hidden = self.model.model(torch.tensor([self.prompt])).last_hidden_state[0, :, 0]
        for token, logit in logits.items():
            head[token, 0] = logit / hidden.mean()

    @property
    def end(self) -> int:
        """The end of the sequence."""
        return self.model.config.eos_token_id

    def restore(self) -> None:
        self.model.load_state_dict(self._original)

    def publish(self) -> tuple[WeightVersion, tuple[TensorEntry, ...], str]:
        """Writes the present weights as the next version: the arguments of `Engine.load`."""
        entries, data = [], bytearray()
        for name, tensor in self.model.state_dict().items():
            if name in self._drop:
                continue
            raw = tensor.contiguous().numpy().tobytes()
            entries.append(
                TensorEntry(name=name, dtype="float32", shape=tuple(tensor.shape), offset=len(data), nbytes=len(raw))
            )
            data += raw
        self._memory.write_bytes(data)
        self._version += 1
        return WeightVersion(epoch=1, n=self._version), tuple(entries), str(self._memory)

    @torch.no_grad()
    def logprobs(self, prompt: list[int], tokens: list[int], temperature: float) -> torch.Tensor:
        """[len(tokens), vocabulary] log-probabilities of each token's distribution."""
        logits = self.model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
        return torch.log_softmax(logits / temperature, dim=-1)

    def greedy(self, prompt: list[int], count: int) -> list[int]:
        """The most likely tokens, one after another, until the end of the sequence."""
        tokens: list[int] = []
        while len(tokens) < count and self.end not in tokens:
            tokens.append(int(self.logprobs(prompt, [*tokens, 0], 1.0)[-1].argmax()))
        return tokens


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZEROTIR_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield model_folder("random-tiny")


@pytest.fixture(scope="module")
async def tiny_engine(folder: Path) -> AsyncIterator[Engine]:
    """One engine for all tests of this file; it starts without weights."""
    engine = await Engine.start(folder, MODEL, CONFIG, MAX_LENGTH, seed=1)
    yield engine
    await engine.stop()


@pytest.fixture(scope="module")
def shared_reference(folder: Path) -> Iterator[Reference]:
    memory = Path(f"/dev/shm/zerotir-test-{os.getpid()}")
    yield Reference(folder, memory)
    memory.unlink(missing_ok=True)


@pytest.fixture
async def reference(tiny_engine: Engine, shared_reference: Reference) -> Reference:
    """The reference, with its first weights in it and in the engine."""
    shared_reference.restore()
    await tiny_engine.load(*shared_reference.publish())
    return shared_reference


async def sample(engine: Engine, prompt: list[int], **changes: Any) -> Completion:
    arguments: dict[str, Any] = {"max_tokens": 40, "stop": (), "temperature": 1.0, "top_p": 1.0, "top_k": 0, "seed": 7}
    return await engine.generate(prompt, **(arguments | changes))


def assert_covered(completion: Completion) -> None:
    assert completion.versions[0].start == 0
    assert completion.versions[-1].end == len(completion.tokens) == len(completion.logprobs)
    for before, after in zip(completion.versions, completion.versions[1:], strict=False):
        assert before.end == after.start
        assert before.version != after.version


def our_children(before: set[psutil.Process]) -> set[psutil.Process]:
    """Live children that are new since `before`; Python's own resource tracker stays until the end of the tests."""
    new = set(psutil.Process().children(recursive=True)) - before
    return {process for process in new if process.is_running() and "resource_tracker" not in str(process.cmdline())}


def assert_agree(completion: Completion, reference: Reference, prompt: list[int], temperature: float = 1.0) -> None:
    """Each token's log-probability is the reference's."""
    rows = reference.logprobs(prompt, completion.tokens, temperature)
    expected = rows[range(len(completion.tokens)), completion.tokens]
    torch.testing.assert_close(torch.tensor(completion.logprobs), expected, atol=1e-4, rtol=0)


# First in the file: no other test has loaded weights yet.
async def test_nothing_is_generated_before_weights_are_known(tiny_engine: Engine):
    assert tiny_engine.version is None
    with pytest.raises(EngineError, match="no weights"):
        await sample(tiny_engine, [5, 6, 7])


async def test_greedy_tokens_are_those_of_transformers(tiny_engine: Engine, reference: Reference):
    completion = await sample(tiny_engine, reference.prompt, temperature=0.0)
    assert completion.tokens == reference.greedy(reference.prompt, 40)
    assert completion.finish_reason == "length"
    assert completion.stop is None


@pytest.mark.parametrize("temperature", [1.0, 0.7])
async def test_logprobs_are_of_the_sampling_distribution(tiny_engine: Engine, reference: Reference, temperature: float):
    completions = await asyncio.gather(
        *(sample(tiny_engine, reference.prompt, temperature=temperature, seed=seed) for seed in range(6))
    )
    assert len({tuple(c.tokens) for c in completions}) == 6
    for c in completions:
        assert_agree(c, reference, reference.prompt, temperature)


async def test_loaded_weights_are_generated_with(tiny_engine: Engine, reference: Reference):
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


async def test_a_long_prompt_is_not_continued_from_another_versions_cache(tiny_engine: Engine, reference: Reference):
    prompt = reference.prompt * 20  # several blocks of the prefix cache
    await sample(tiny_engine, prompt, temperature=0.0)
    reference.perturb(seed=4)
    await tiny_engine.load(*reference.publish())
    assert_agree(await sample(tiny_engine, prompt, seed=5), reference, prompt)


async def test_requests_in_flight_go_on_with_new_weights(tiny_engine: Engine, reference: Reference):
    old = tiny_engine.version
    reference.bias({reference.end: -20.0})  # so that they run long enough
    await tiny_engine.load(*reference.publish())
    first = tiny_engine.version
    assert first != old
    tasks = [asyncio.create_task(sample(tiny_engine, reference.prompt, max_tokens=450, seed=seed)) for seed in range(8)]
    await asyncio.sleep(0.2)
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


async def test_a_stop_string_is_included_and_reported(tiny_engine: Engine, reference: Reference):
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


async def test_a_stop_string_of_several_tokens_is_kept_whole(tiny_engine: Engine, reference: Reference):
    letters = [reference.tokenizer.convert_tokens_to_ids(letter) for letter in "ab"]
    reference.bias({letters[0]: 4.0, letters[1]: 4.0, reference.end: -20.0})
    await tiny_engine.load(*reference.publish())
    completion = await sample(tiny_engine, reference.prompt, stop=("abba",), max_tokens=400)
    assert completion.stop == "abba"
    assert completion.tokens[-4:] == [letters[0], letters[1], letters[1], letters[0]]
    assert_covered(completion)


async def test_the_end_of_the_sequence_is_no_stop_string(tiny_engine: Engine, reference: Reference):
    end = reference.end
    reference.bias({end: 2.5})
    await tiny_engine.load(*reference.publish())
    completion = await sample(tiny_engine, reference.prompt, stop=("```python",), max_tokens=200)
    assert completion.stop is None
    assert completion.finish_reason == "stop"
    assert completion.tokens[-1] == end
    assert end not in completion.tokens[:-1]
    assert_covered(completion)


async def test_sampling_follows_the_seed(tiny_engine: Engine, reference: Reference):
    first, same, other = [await sample(tiny_engine, reference.prompt, seed=seed) for seed in (21, 21, 22)]
    assert first.tokens == same.tokens
    assert first.tokens != other.tokens


async def test_cancelling_frees_the_request(tiny_engine: Engine, reference: Reference):
    reference.bias({reference.end: -20.0})
    await tiny_engine.load(*reference.publish())
    task = asyncio.create_task(sample(tiny_engine, reference.prompt, max_tokens=450))
    await asyncio.sleep(0.2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert tiny_engine._llm.get_num_unfinished_requests() == 0
    # Every place is free again: as many requests as the engine runs at once finish together.
    async with asyncio.timeout(60):
        await asyncio.gather(*(sample(tiny_engine, reference.prompt, seed=n) for n in range(CONFIG.max_running)))


async def test_a_request_that_cannot_be_served_is_an_error(tiny_engine: Engine, reference: Reference):
    with pytest.raises(EngineError):
        await sample(tiny_engine, reference.prompt * 100)
    assert not tiny_engine.failed
    assert (await sample(tiny_engine, reference.prompt)).tokens


async def test_a_killed_engine_is_an_error_and_stop_leaves_no_process(folder: Path, shared_reference: Reference):
    before = set(psutil.Process().children(recursive=True))
    engine = await Engine.start(folder, MODEL, CONFIG, MAX_LENGTH, seed=2)
    shared_reference.restore()
    shared_reference.bias({shared_reference.end: -20.0})
    await engine.load(*shared_reference.publish())
    started = our_children(before)
    assert started
    task = asyncio.create_task(sample(engine, shared_reference.prompt, max_tokens=450))
    await asyncio.sleep(0.2)
    for process in started:
        process.kill()
    async with asyncio.timeout(60):
        with pytest.raises(EngineError):
            await task
    assert engine.failed
    await engine.stop()
    assert not our_children(before)


async def test_a_tied_head_follows_and_stop_ends_every_process(
    folder: Path, shared_reference: Reference, tmp_path: Path
):
    tied_folder = tmp_path / "tied"
    shutil.copytree(folder, tied_folder)
    config = json.loads((tied_folder / "config.json").read_text())
    (tied_folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    tied = Reference(tied_folder, tmp_path / "weights", drop=("lm_head.weight",))
    before = set(psutil.Process().children(recursive=True))
    engine = await Engine.start(tied_folder, MODEL, CONFIG, MAX_LENGTH, seed=3)
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
    assert not any(process.is_running() for process in started)

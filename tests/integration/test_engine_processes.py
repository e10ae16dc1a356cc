"""Engines of their own: what one leaves when it ends, is killed, or runs out of cache."""

import asyncio
import contextlib
import ctypes
import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Iterator
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from pathlib import Path
from unittest.mock import patch

import psutil
import pytest
import torch

from actors.engine import EngineError
from actors.vllm_engine import VllmEngine, _prepare_environment
from tests.integration.conftest import CONFIG, MAX_LENGTH, MODEL
from tests.integration.engine_requests import assert_agree, sample, sampling
from tests.integration.reference import Reference

PR_GET_PDEATHSIG = 2


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
    assert 0.2 < engine.cache_use < 1.0
    assert engine.preemptions == 0
    completions = await asyncio.gather(*running)
    assert engine.preemptions > 0
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"tie_word_embeddings": True}, "the engine's model has no place for lm_head.weight of the learner's"),
        ({"attention_bias": True}, "the learner sent no weights for model.layers.0.self_attn.k"),
        ({"num_hidden_layers": 1}, "the engine's model has no place for model.layers.1.input"),
    ],
    ids=["an untied head", "no biases", "a layer more"],
)
async def test_weights_of_another_model_are_refused_by_name(
    folder: Path, shared_reference: Reference, tmp_path: Path, change: dict[str, object], error: str
):
    shutil.copytree(folder, tmp_path / "other")
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "other" / "config.json").write_text(json.dumps(config | change))
    engine = await VllmEngine.start(tmp_path / "other", MODEL, CONFIG, MAX_LENGTH, seed=3)
    shared_reference.restore()
    with pytest.raises(EngineError, match=re.escape(error)):
        await engine.load(*shared_reference.publish())
    with pytest.raises(EngineError, match="no weights loaded yet"):
        await sample(engine, shared_reference.prompt)
    assert engine.failed
    await engine.stop()


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


def say_signal(pipe: Connection) -> None:
    """Sends the signal that this process gets when its parent ends, once it has loaded vLLM's plugins as an engine does."""
    from vllm.plugins import load_general_plugins

    load_general_plugins()
    value = ctypes.c_int()
    ctypes.CDLL(None).prctl(PR_GET_PDEATHSIG, ctypes.byref(value))
    pipe.send_bytes(bytes([value.value]))


@pytest.fixture(params=[None, "fork", "spawn"])
def as_on_a_gpu(request: pytest.FixtureRequest) -> Iterator[BaseContext]:
    """Yields what vLLM starts processes with where a user set the variable so. On CPUs an engine's start overrides it."""
    from vllm.utils.system_utils import get_mp_context

    with patch.dict(os.environ):
        os.environ.pop("VLLM_WORKER_MULTIPROC_METHOD", None)
        if request.param:
            os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = request.param
        _prepare_environment(CONFIG)
        yield get_mp_context()


def test_engine_processes_are_spawned_whatever_the_environment_says(as_on_a_gpu):
    assert as_on_a_gpu.get_start_method() == "spawn"


@pytest.mark.slow
def test_an_engine_process_is_killed_when_its_actor_ends(as_on_a_gpu):
    from vllm.plugins import load_general_plugins

    load_general_plugins()  # As an actor has, and what a forked process would take for its own.
    ours, theirs = as_on_a_gpu.Pipe()
    process = as_on_a_gpu.Process(target=say_signal, args=(theirs,))
    process.start()
    try:
        assert ours.poll(60)
        assert ours.recv_bytes() == bytes([signal.SIGKILL])
    finally:
        process.kill()
        process.join(10)


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

"""A tiny vLLM engine that the tests of several files share: it takes half a minute to start."""

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from actors.vllm_engine import VllmEngine
from configs.schema import EngineConfig, ModelConfig
from runtime.models import model_folder
from tests.integration.reference import Reference

MAX_LENGTH = 512
MODEL = ModelConfig(path="random-tiny", dtype="float32")
CONFIG = EngineConfig(max_running=16, kv_cache_gb=1, enforce_eager=True, start_timeout_s=300)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model's, of this test run alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZEROTIR_CACHE", str(tmp_path_factory.mktemp("cache")))
        return model_folder("random-tiny")


@pytest.fixture(scope="session")
async def tiny_engine(folder: Path) -> AsyncIterator[VllmEngine]:
    """It starts without weights; each test loads those that it needs."""
    engine = await VllmEngine.start(folder, MODEL, CONFIG, MAX_LENGTH, seed=1)
    yield engine
    await engine.stop()


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

"""Each family of models that is supported, with a head of its own and tied: the engine follows the learner's weights."""

import json
import shutil
from pathlib import Path

import pytest
import transformers

from actors.vllm_engine import VllmEngine
from runtime.model_files import model_tensors
from tests.factories import tiny_shape
from tests.integration.conftest import CONFIG, MAX_LENGTH, MODEL
from tests.integration.engine_requests import assert_agree, sample
from tests.integration.reference import Reference

FAMILIES = {
    "Llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    "Qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
    "Qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
    "Phi3": (transformers.Phi3Config, transformers.Phi3ForCausalLM),
    "Gemma": (transformers.GemmaConfig, transformers.GemmaForCausalLM),
}


@pytest.mark.slow
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("family", FAMILIES)
async def test_an_engine_follows_the_weights_of_each_family(folder: Path, tmp_path: Path, family: str, tied: bool):
    config, model = FAMILIES[family]
    vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
    shape = tiny_shape() | {"vocab_size": vocabulary, "max_position_embeddings": MAX_LENGTH}
    own = tmp_path / "model"
    model(config(**shape, tie_word_embeddings=tied, pad_token_id=0, bos_token_id=1, eos_token_id=2)).save_pretrained(
        own
    )
    for path in folder.glob("*token*"):
        shutil.copy(path, own)
    assert ("lm_head.weight" in {tensor.name for tensor in model_tensors(own)}) is not tied
    reference = Reference(own, tmp_path / "weights", drop=("lm_head.weight",) if tied else ())
    engine = await VllmEngine.start(own, MODEL, CONFIG, MAX_LENGTH, seed=3)
    for seed in (1, 2):
        reference.perturb(seed)
        reference.model.tie_weights()
        await engine.load(*reference.publish())
        assert_agree(await sample(engine, reference.prompt), reference, reference.prompt)
    await engine.stop()

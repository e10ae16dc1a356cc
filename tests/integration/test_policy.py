"""The policy alone on a tiny random model: its weights' names and places, and what it refuses."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from configs.loading import load_config
from configs.schema import ModelConfig
from configs.training import DeepSpeedConfig, OptimizerConfig
from learner.training import deepspeed_engine
from learner.training.batches import micro_batches
from learner.training.memory import checkpoint_bytes
from learner.training.plan import read_shape
from learner.training.policy import Policy, TokenLogprobs
from runtime.models import ModelError
from tests.factories import random_batch

pytestmark = pytest.mark.usefixtures("process_group")

TRAIN = OptimizerConfig(lr=1e-3)


def test_tied_weights_are_named_once(tmp_path, folder):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig.from_pretrained(folder, tie_word_embeddings=True)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "tied")
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "tied")
    policy = Policy(tmp_path / "tied", ModelConfig(path="tied"), TRAIN, DeepSpeedConfig(), 0, 1, torch.float32)
    names = [name for name, _ in policy.named_weights()]
    assert "model.embed_tokens.weight" in names
    assert "lm_head.weight" not in names
    assert len(names) == len(set(names)) == 20
    policy.export(tmp_path / "export")
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    assert reloaded.lm_head.weight is reloaded.model.embed_tokens.weight
    assert torch.equal(reloaded.lm_head.weight, dict(policy.named_weights())["model.embed_tokens.weight"])
    policy.close()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("stage", [1, 3])
def test_an_image_holds_every_weight_where_the_layout_says(folder, dtype: str, stage: int):
    deepspeed = DeepSpeedConfig(zero_stage=stage)
    policy = Policy(folder, ModelConfig(path="tiny", dtype=dtype), TRAIN, deepspeed, 0, 1, torch.float32)
    layout = policy.weight_layout()
    image = torch.full((layout.nbytes,), 255, dtype=torch.uint8)
    policy.copy_weights(image)
    weights = dict(policy.named_weights())
    assert [(entry.name, entry.dtype, entry.shape) for entry in layout.tensors] == [
        (name, dtype, tuple(weight.shape)) for name, weight in weights.items()
    ]
    for entry, weight in zip(layout.tensors, weights.values(), strict=True):
        stored = image[entry.offset : entry.offset + entry.nbytes]
        assert torch.equal(stored, weight.reshape(-1).view(torch.uint8))
    policy.close()


def test_a_model_that_caps_its_logits_is_refused(tmp_path, folder):
    from transformers import Gemma2Config, Gemma2ForCausalLM

    config = Gemma2Config(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=32,
        final_logit_softcapping=0.01,
    )
    Gemma2ForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="logits"):
        Policy(tmp_path, ModelConfig(path="capped"), TRAIN, DeepSpeedConfig(), 0, 1, torch.float32)


def test_a_warm_up_longer_than_the_run_is_refused(folder):
    with pytest.raises(ValueError, match="warmup_steps"):
        Policy(
            folder,
            ModelConfig(path="random-tiny"),
            OptimizerConfig(warmup_steps=11),
            DeepSpeedConfig(),
            seed=0,
            total_steps=10,
            compute=torch.float32,
        )


def test_under_zero_3_the_whole_model_is_never_moved_to_a_device(folder, monkeypatch):
    monkeypatch.setattr(deepspeed_engine, "PERSISTENT", 0)
    monkeypatch.setattr(TokenLogprobs, "to", lambda *_: pytest.fail("it was moved at once"))
    policy = Policy(folder, ModelConfig(path="tiny"), TRAIN, DeepSpeedConfig(zero_stage=3), 0, 1, torch.float32)
    assert all(parameter.numel() == 0 for parameter in policy._module.parameters())
    stored = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    for name, weight in policy.named_weights():
        assert torch.equal(weight, stored.get_parameter(name)), name
    policy.close()


@pytest.mark.parametrize(("stage", "compute"), [(1, "bfloat16"), (1, "float32"), (2, "bfloat16"), (3, "bfloat16")])
def test_a_checkpoint_is_as_large_as_the_plan_says(tmp_path, folder, stage, compute):
    overrides = [f"model.path={folder}", f"model.compute_dtype={compute}", f"learner.deepspeed.zero_stage={stage}"]
    config = load_config("tiny", ["model.dtype=bfloat16", *overrides])
    deepspeed, dtype = config.learner.deepspeed, getattr(torch, compute)
    policy = Policy(folder, config.model, TRAIN, deepspeed, 0, 1, dtype)
    micro = micro_batches([random_batch()[0][0]], torch.ones(1), 100)[0]
    policy.backward(policy.token_logprobs(micro).sum())
    policy.optimizer_step()
    policy.save(tmp_path)
    size = sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file())
    # The rest is names, shapes and the script that DeepSpeed adds.
    assert 0 < size - checkpoint_bytes(config, read_shape(str(folder)), cuda=False) < 150_000
    policy.close()

"""What a configuration asks of model and machine, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PretrainedConfig, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from configs.loading import load_config
from configs.schema import RunConfig
from launch.cores import DevicesError, shares
from learner.training import plan
from learner.training.plan import (
    GIB,
    Machine,
    PlanError,
    Shape,
    layer_bytes,
    learner_activations,
    learner_state,
    make_plan,
    read_shape,
    show_plan,
)
from runtime.models import ModelError, model_folder

QWEN_7B = {
    "model_type": "qwen2",
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
}
H100 = Machine(cuda=True, memory=80 * GIB)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 7B model's configuration; it has no weights."""
    folder = tmp_path_factory.mktemp("qwen")
    (folder / "config.json").write_text(json.dumps(QWEN_7B))
    return folder


def seven_b(qwen: Path, *overrides: str) -> RunConfig:
    return load_config("zerotir-7b", [f"model.path={qwen}", *overrides])


def test_the_shape_is_that_of_the_models_own_configuration(qwen: Path):
    # The published figure: 7.62 billion parameters; 28 layers of 4 heads of 128 numbers, keys and values.
    assert read_shape(str(qwen)) == Shape(
        parameters=7_615_616_512,
        positions=131_072,
        vocabulary=152_064,
        layers=28,
        hidden=3584,
        intermediate=18_944,
        heads=28,
        key_value_heads=4,
        head=128,
    )
    assert read_shape(str(qwen)).cache_numbers == 28_672
    with pytest.raises(ModelError, match=r"model\.path"):
        read_shape(str(qwen / "nothing"))


@pytest.mark.parametrize(
    ("ranks", "overrides", "each", "host"),
    [
        # 2 for the weights, 4 for the gradients' sum, 2 for those of a micro-batch under ZeRO-1, 12 for the optimiser.
        (1, [], 18.0, 0.0),
        (8, [], 18.0 / 8, 0.0),
        (8, ["learner.deepspeed.zero_stage=2"], 2 + 16 / 8, 0.0),
        (8, ["learner.deepspeed.zero_stage=1"], 8 + 12 / 8, 0.0),
        (8, ["learner.deepspeed.zero_stage=0"], 8 + 12 / 8, 0.0),
        (8, ["learner.deepspeed.offload_optimizer=true"], 6 / 8, 12 / 8),
        (8, ["learner.deepspeed.offload_optimizer=true", "learner.deepspeed.zero_stage=1"], 6, 12 / 8),
        (8, ["learner.algorithm.kl_coefficient=0.1"], 18.0 / 8 + 2, 0.0),
        (8, ["learner.algorithm.advantage=gae"], 36.0 / 8, 0.0),
        (2, ["model.dtype=float32"], 20 / 2, 0.0),
        (2, ["model.dtype=float32", "learner.deepspeed.zero_stage=1"], 8 + 12 / 2, 0.0),
        (2, ["model.compute_dtype=float32"], 20 / 2, 0.0),
    ],
)
def test_what_lies_on_a_rank_follows_from_stage_and_ranks(
    qwen: Path, ranks: int, overrides: list[str], each: float, host: float
):
    shape = read_shape(str(qwen))
    state = learner_state(seven_b(qwen, *overrides), shape, ranks, cuda=True)
    assert state == pytest.approx((each * shape.parameters, host * shape.parameters), rel=1e-6)


@pytest.mark.parametrize(("chosen", "each"), [("auto", 20.0), ("float32", 20.0), ("bfloat16", 18.0)])
def test_a_cpu_is_planned_with_float32_unless_it_is_told(qwen: Path, chosen: str, each: float):
    shape = read_shape(str(qwen))
    state, _ = learner_state(seven_b(qwen, f"model.compute_dtype={chosen}"), shape, 1, cuda=False)
    assert state == pytest.approx(each * shape.parameters, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("family", "kind"), [(LlamaConfig, LlamaForCausalLM), (Qwen2Config, Qwen2ForCausalLM)])
def test_a_layers_activations_are_counted_as_its_forward_pass_keeps_them(
    tmp_path: Path, family: type[PretrainedConfig], kind: type[PreTrainedModel], dtype: torch.dtype
):
    tokens = 2 * 64
    kept = []
    for layers in (1, 2):
        config = family(
            vocab_size=64,
            hidden_size=192,
            intermediate_size=512,
            num_hidden_layers=layers,
            num_attention_heads=6,
            num_key_value_heads=2,
        )
        model = kind._from_config(config, attn_implementation="sdpa", dtype=dtype).train()
        kept.append(_kept_for_backward(model.base_model, torch.zeros(2, tokens // 2, dtype=torch.int64)))
    config.save_pretrained(tmp_path)
    shape = read_shape(str(tmp_path))
    assert kept[1] - kept[0] == tokens * layer_bytes(shape, dtype.itemsize)


def _kept_for_backward(model: torch.nn.Module, tokens: torch.Tensor) -> int:
    """Bytes of the tensors, weights apart, that a forward pass saves for the backward pass."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(input_ids=tokens, use_cache=False)
    return sum(storage.nbytes() for storage in kept.values())


def test_logits_are_counted_up_to_one_chunk(qwen: Path):
    shape = replace(read_shape(str(qwen)), layers=0)
    overrides = ["rollout.max_prompt_tokens=1", "rollout.max_response_tokens=100"]
    few = seven_b(qwen, *overrides, "learner.deepspeed.micro_batch_tokens=100")
    many = seven_b(qwen, *overrides, "learner.deepspeed.micro_batch_tokens=32768")
    width = shape.hidden * 2
    assert learner_activations(few, shape, cuda=True) == 101 * (layer_bytes(shape, 2) + 16 * shape.vocabulary)
    assert learner_activations(many, shape, cuda=True) == 32768 * layer_bytes(shape, 2) + 2 * GIB
    deep = replace(shape, layers=10)
    assert learner_activations(many, deep, cuda=True) == 32768 * (layer_bytes(shape, 2) + 10 * width) + 2 * GIB
    everything = [
        *overrides,
        "learner.deepspeed.gradient_checkpointing=false",
        "learner.deepspeed.micro_batch_tokens=32768",
    ]
    assert learner_activations(seven_b(qwen, *everything), deep, cuda=True) == 327680 * layer_bytes(shape, 2) + 2 * GIB


def test_the_shipped_7b_setting_runs_on_eight_gpus_and_not_on_one(qwen: Path):
    config, shape = seven_b(qwen), read_shape(str(qwen))
    good = make_plan(config, shape, 8, H100)
    assert good.faults == good.doubts == []
    assert "8 ranks, ZeRO 3: 16.0 GiB of state a rank" in str(good)
    assert "128 problems x 16 samples = 2,048 trajectories" in str(good)
    assert "; 1 update of the policy" in str(good)
    [fault] = make_plan(config, shape, 1, H100).faults
    assert "127.7 GiB on each of 1 rank, a rank has 80.0 GiB: start more ranks" in fault
    [doubt] = make_plan(seven_b(qwen, "learner.deepspeed.gradient_checkpointing=false"), shape, 8, H100).doubts
    assert "learner.deepspeed.gradient_checkpointing" in doubt


def test_a_plan_in_doubt_names_what_would_help(qwen: Path):
    shape, small = read_shape(str(qwen)), Machine(cuda=True, memory=20 * GIB)
    [doubt] = make_plan(seven_b(qwen), shape, 8, small).doubts
    assert doubt.endswith("lower learner.deepspeed.micro_batch_tokens, or start more ranks (`--ranks N`)")
    # A micro-batch holds the longest trajectory, however few tokens are asked for.
    [doubt] = make_plan(seven_b(qwen, "learner.deepspeed.micro_batch_tokens=1024"), shape, 8, small).doubts
    assert doubt.endswith("of a rank: start more ranks (`--ranks N`)")


def test_a_model_with_too_few_positions_is_refused_by_name(qwen: Path):
    config = seven_b(qwen)
    shape = replace(read_shape(str(qwen)), positions=4096)
    [fault] = make_plan(config, shape, 8, H100).faults
    assert "rollout.max_prompt_tokens + rollout.max_response_tokens is 17,024" in fault
    assert "4,096 positions" in fault
    short = load_config("tiny", ["rollout.max_response_tokens=1100"])
    with pytest.raises(PlanError, match="1,024 positions"):
        plan.require_model(short, model_folder("random-tiny"))
    plan.require_model(load_config("tiny"), model_folder("random-tiny"))


def test_a_learner_without_the_memory_is_refused_before_it_loads(qwen: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(plan, "this_machine", lambda: Machine(cuda=False, memory=24 * GIB))
    with pytest.raises(PlanError, match=r"141\.9 GiB on each of 1 rank, a rank has 24\.0 GiB"):
        plan.require_memory(seven_b(qwen), qwen, 1)
    plan.require_memory(load_config("tiny"), model_folder("random-tiny"), 1)


def test_the_command_prints_the_plan_and_its_status_says_whether_it_holds(
    qwen: Path, capsys: pytest.CaptureFixture[str]
):
    assert show_plan(seven_b(qwen), 8, 80.0) == 0
    assert "plan of zerotir-7b" in capsys.readouterr().out
    assert show_plan(seven_b(qwen), 1, 80.0) == 2
    assert "CANNOT RUN the learner's state" in capsys.readouterr().out
    assert show_plan(load_config("tiny"), 1, None) == 0
    with pytest.raises(ModelError, match=r"model\.path"):
        show_plan(load_config("tiny", [f"model.path={qwen / 'nothing'}"]), 1, None)


def test_engines_and_learner_get_gpus_of_their_own():
    config = load_config("tiny", ["launch.actors=2", "launch.evaluator=true", "actor.engine.tensor_parallel=2"])
    given = {name: share.environment for name, share in shares(config, list("abcdefgh")).items()}
    assert {name: environment["CUDA_VISIBLE_DEVICES"] for name, environment in given.items()} == {
        "actor-0": "a,b",
        "actor-1": "c,d",
        "evaluator": "e,f",
        "learner": "h",
    }
    with pytest.raises(DevicesError, match="3 engines of 2 and a learner need 7 GPUs, here are 6"):
        shares(config, list("abcdef"))
    assert all("CUDA_VISIBLE_DEVICES" not in share.environment for share in shares(config, []).values())

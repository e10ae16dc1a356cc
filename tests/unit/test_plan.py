"""What a configuration asks of model and machine, and what is refused."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PretrainedConfig, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from configs.loading import load_config
from configs.schema import RunConfig
from launch.cores import DevicesError, shares
from learner.training import plan
from learner.training.memory import (
    GIB,
    Machine,
    Shape,
    layer_bytes,
    learner_activations,
    learner_need,
    learner_state,
    what_fits,
)
from learner.training.plan import PlanError, make_plan, read_shape, show_plan
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
QWEN_32B = Shape(
    parameters=32_763_876_352,
    positions=131_072,
    vocabulary=152_064,
    layers=64,
    hidden=5120,
    intermediate=27_648,
    heads=40,
    key_value_heads=8,
    head=128,
)
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
    assert "127.7 GiB of state and about 15.0 GiB of activations on each of 1 rank, a rank has 80.0 GiB: " in fault
    [fault] = make_plan(seven_b(qwen, "learner.deepspeed.gradient_checkpointing=false"), shape, 8, H100).faults
    assert fault.endswith(": set learner.deepspeed.gradient_checkpointing")
    lines = dict(good.lines)
    assert lines["weights"].startswith("14.2 GiB a version; up to 56.7 GiB on each NATS server")
    assert "takes 12 s to one actor" in lines["weights"]
    assert lines["host"].startswith("28.4 GiB for two versions")
    assert lines["disk"].startswith("85.1 GiB a checkpoint, 255.3 GiB for 3 at once; 14.2 GiB for the exported model")
    elsewhere = dict(make_plan(seven_b(qwen, "weights.snapshot_location=/shared"), shape, 8, H100).lines)
    assert "snapshots in /shared, up to 28.4 GiB of deltas on each NATS server" in elsewhere["weights"]
    best = dict(make_plan(seven_b(qwen, "learner.checkpoint.best=accuracy"), shape, 8, H100).lines)
    assert "340.4 GiB for 4 at once" in best["disk"]


def test_the_shipped_32b_setting_needs_what_its_file_says():
    config = load_config("zerotir-32b")
    assert make_plan(config, QWEN_32B, 16, H100).faults == make_plan(config, QWEN_32B, 16, H100).doubts == []
    [fault] = make_plan(config, QWEN_32B, 8, H100).faults
    assert fault.endswith(
        "68.7 GiB of state and about 35.3 GiB of activations on each of 8 ranks, a rank has 80.0 GiB: lower "
        "learner.deepspeed.micro_batch_tokens to 17024, and start 11 ranks or more (`--ranks 11`) or set "
        "learner.deepspeed.offload_optimizer (46 GiB of the host's memory for each rank)"
    )
    eight = ["learner.deepspeed.micro_batch_tokens=17024", "learner.deepspeed.offload_optimizer=true"]
    plan = make_plan(load_config("zerotir-32b", eight), QWEN_32B, 8, H100)
    assert plan.faults == plan.doubts == []
    assert "45.8 GiB on the host" in dict(plan.lines)["learner"]


@pytest.mark.parametrize("gpu", [24, 40, 80, 192])
@pytest.mark.parametrize("ranks", [1, 2, 8])
@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["learner.deepspeed.zero_stage=1"],
        ["learner.deepspeed.gradient_checkpointing=false"],
        ["model.dtype=float32", "learner.deepspeed.zero_stage=2"],
        ["learner.algorithm.advantage=gae", "learner.deepspeed.zero_stage=0"],
    ],
)
def test_what_is_advised_fits(qwen: Path, overrides: list[str], ranks: int, gpu: int):
    shape, machine = read_shape(str(qwen)), Machine(cuda=True, memory=gpu * GIB)
    config = seven_b(qwen, *overrides)
    if learner_need(config, shape, ranks, cuda=True).fits(machine):
        return
    advice = what_fits(config, shape, ranks, machine)
    changes = []
    if "gradient_checkpointing" in advice:
        changes.append("learner.deepspeed.gradient_checkpointing=true")
    if tokens := re.search("micro_batch_tokens to ([0-9]+)", advice):
        changes.append(f"learner.deepspeed.micro_batch_tokens={tokens[1]}")
    if "zero_stage to 3" in advice:
        changes.append("learner.deepspeed.zero_stage=3")
    better = seven_b(qwen, *overrides, *changes)
    enough = re.search("start ([0-9]+) ranks or more", advice)
    if enough:
        assert learner_need(better, shape, int(enough[1]), cuda=True).fits(machine), advice
        assert not learner_need(better, shape, int(enough[1]) - 1, cuda=True).fits(machine), advice
    if "offload_optimizer" in advice:
        offloaded = seven_b(qwen, *overrides, *changes, "learner.deepspeed.offload_optimizer=true")
        assert learner_need(offloaded, shape, ranks, cuda=True).fits(machine), advice
    if not enough and "offload_optimizer" not in advice and "no number of ranks" not in advice:
        assert learner_need(better, shape, ranks, cuda=True).fits(machine), advice


def test_a_plan_in_doubt_names_what_would_help(qwen: Path):
    shape, small = read_shape(str(qwen)), Machine(cuda=True, memory=33 * GIB)
    [doubt] = make_plan(seven_b(qwen), shape, 8, small).doubts
    assert doubt.endswith("a rank has 33.0 GiB: lower learner.deepspeed.micro_batch_tokens to 17024")
    # A micro-batch holds the longest trajectory, however few tokens are asked for.
    small = Machine(cuda=True, memory=27 * GIB)
    [doubt] = make_plan(seven_b(qwen, "learner.deepspeed.micro_batch_tokens=1024"), shape, 8, small).doubts
    assert "a rank has 27.0 GiB: start 10 ranks or more (`--ranks 10`) or set" in doubt
    tiny = Machine(cuda=True, memory=4 * GIB)
    [fault] = make_plan(seven_b(qwen), shape, 8, tiny).faults
    assert fault.endswith("no number of ranks is enough: shorten rollout.max_response_tokens, or take a smaller model")


def test_what_other_ranks_hold_is_counted_as_long_as_it_is_gathered(qwen: Path):
    shape = read_shape(str(qwen))
    alone, three = (learner_need(seven_b(qwen), shape, ranks, cuda=True).activations for ranks in (1, 3))
    # A billion parameters and the gradient of the output embeddings, two bytes each.
    assert three - alone == 2 * (10**9 + 152_064 * 3584)
    two = learner_need(seven_b(qwen, "learner.deepspeed.zero_stage=2"), shape, 3, cuda=True).activations
    assert two == alone


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
    with pytest.raises(PlanError, match=r"141\.9 GiB of state .* on each of 1 rank, a rank has 24\.0 GiB"):
        plan.require_memory(seven_b(qwen), qwen, 1)
    plan.require_memory(load_config("tiny"), model_folder("random-tiny"), 1)


def test_the_command_prints_the_plan_and_its_status_says_whether_it_holds(
    qwen: Path, capsys: pytest.CaptureFixture[str]
):
    assert show_plan(seven_b(qwen), 8, 80.0) == 0
    assert "plan of zerotir-7b" in capsys.readouterr().out
    assert show_plan(seven_b(qwen), 1, 80.0) == 2
    assert "CANNOT RUN the learner needs" in capsys.readouterr().out
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
    with pytest.raises(DevicesError, match="3 engines of 2 GPUs and a learner of 1 rank need 7 GPUs, here are 6"):
        shares(config, list("abcdef"))
    ranks = load_config("tiny", ["launch.learner_ranks=4", "actor.engine.tensor_parallel=4"])
    given = {name: share.environment for name, share in shares(ranks, list("abcdefgh")).items()}
    assert given["learner"]["CUDA_VISIBLE_DEVICES"] == "e,f,g,h"
    assert given["actor-0"]["CUDA_VISIBLE_DEVICES"] == "a,b,c,d"
    with pytest.raises(DevicesError, match="1 engine of 4 GPUs and a learner of 4 ranks need 8 GPUs, here are 7"):
        shares(ranks, list("abcdefg"))
    assert all("CUDA_VISIBLE_DEVICES" not in share.environment for share in shares(config, []).values())

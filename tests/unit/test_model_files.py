"""A folder that does not hold the model of its configuration is refused, and so are kinds of models that cannot work."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from runtime.model_files import DTYPES, INDEX, SINGLE, model_tensors, require_supported, skeleton
from runtime.models import ModelError
from tests.factories import tiny_shape
from tests.unit.stored_models import Tensors, llama, rewrite, shard


def same_bytes(folder: Path, tensors: Tensors) -> None:
    for stored in model_tensors(folder):
        raw = stored.path.read_bytes()[stored.offset : stored.offset + stored.nbytes]
        found = torch.frombuffer(bytearray(raw), dtype=getattr(torch, DTYPES[stored.dtype])).reshape(stored.shape)
        assert torch.equal(found, tensors[stored.name]), stored.name


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("sharded", [False, True], ids=["one file", "shards"])
def test_a_whole_model_is_found_where_it_lies(tmp_path: Path, tied: bool, sharded: bool):
    tensors = load_file(llama(tmp_path, tie_word_embeddings=tied) / SINGLE)
    if sharded:
        shard(tmp_path)
    names = {stored.name for stored in model_tensors(tmp_path)}
    assert names == tensors.keys()
    assert ("lm_head.weight" in names) is not tied
    same_bytes(tmp_path, tensors)


def test_a_missing_shard_is_named(tmp_path: Path):
    gone = shard(llama(tmp_path))[2]
    gone.unlink()
    with pytest.raises(ModelError, match=rf"not whole: 1 of the 4 files of its index are missing: {gone.name}"):
        model_tensors(tmp_path)


def test_shards_without_their_index_are_no_model(tmp_path: Path):
    shard(llama(tmp_path))
    (tmp_path / INDEX).unlink()
    with pytest.raises(ModelError, match=r"neither model\.safetensors nor model\.safetensors\.index\.json"):
        model_tensors(tmp_path)


def test_an_index_that_points_elsewhere_is_refused(tmp_path: Path):
    first, second, *_ = shard(llama(tmp_path))
    index = json.loads((tmp_path / INDEX).read_text())
    name = next(name for name, file in index["weight_map"].items() if file == first.name)
    index["weight_map"][name] = second.name
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(ModelError, match=rf"{name} is not in {second.name}"):
        model_tensors(tmp_path)
    for content in (
        "[]",
        "{",
        '{"weight_map": []}',
        '{"weight_map": {"a": 1}, "metadata": {}}',
        '{"weight_map": {}}',
        "[" * 10**5,
    ):
        (tmp_path / INDEX).write_text(content)
        with pytest.raises(ModelError, match="is no index of a checkpoint"):
            model_tensors(tmp_path)


def test_files_are_looked_for_in_the_folder_alone(tmp_path: Path):
    (tmp_path / "model").mkdir()
    first, *_ = shard(llama(tmp_path / "model"))
    first.rename(tmp_path / first.name)
    index = json.loads((tmp_path / "model" / INDEX).read_text())
    moved = {name: f"../{file}" if file == first.name else file for name, file in index["weight_map"].items()}
    (tmp_path / "model" / INDEX).write_text(json.dumps(index | {"weight_map": moved}))
    with pytest.raises(ModelError, match=rf"files of its index are missing: {first.name}"):
        model_tensors(tmp_path / "model")


def test_tensors_are_those_of_the_model(tmp_path: Path):
    llama(tmp_path)
    whole = (tmp_path / SINGLE).read_bytes()
    rewrite(tmp_path, lambda tensors: [tensors.pop(name) for name in sorted(tensors) if "layers.1" in name])
    with pytest.raises(ModelError, match=r"it lacks model\.layers\.1\.\S+, \S+, \S+ and 6 more"):
        model_tensors(tmp_path)
    (tmp_path / SINGLE).write_bytes(whole)
    rewrite(tmp_path, lambda tensors: tensors.update({"model.layers.0.mlp.up_proj.lora_A.weight": torch.zeros(2, 2)}))
    with pytest.raises(
        ModelError, match=r"that model has no model\.layers\.0\.mlp\.up_proj\.lora_A\.weight; an adapter must be merged"
    ):
        model_tensors(tmp_path)
    (tmp_path / SINGLE).write_bytes(whole)
    rewrite(tmp_path, lambda tensors: tensors.update({"model.norm.weight": torch.zeros(3)}))
    with pytest.raises(ModelError, match=r"model\.norm\.weight is \(3,\) in the file, \(64,\) in the model"):
        model_tensors(tmp_path)


def test_a_tied_head_that_was_stored_as_well_must_be_the_embedding(tmp_path: Path):
    tensors = load_file(llama(tmp_path, tie_word_embeddings=True) / SINGLE)
    embedding = tensors["model.embed_tokens.weight"]
    rewrite(tmp_path, lambda tensors: tensors.update({"lm_head.weight": embedding.clone()}))
    assert {stored.name for stored in model_tensors(tmp_path)} == tensors.keys()
    rewrite(tmp_path, lambda tensors: tensors.update({"lm_head.weight": embedding + 1}))
    with pytest.raises(
        ModelError, match=r"lm_head\.weight differs from model\.embed_tokens\.weight.*tie_word_embeddings"
    ):
        model_tensors(tmp_path)


def test_damaged_files_are_named(tmp_path: Path):
    path = llama(tmp_path) / SINGLE
    whole = path.read_bytes()
    path.write_bytes(whole[:-4])
    with pytest.raises(ModelError, match=r"ends before \S+ does: it was not copied whole"):
        model_tensors(tmp_path)
    for nothing in (b"version https://git-lfs.github.com/spec/v1", b"", (2).to_bytes(8, "little") + b"[]"):
        path.write_bytes(nothing)
        with pytest.raises(ModelError, match=r"no (whole )?safetensors file"):
            model_tensors(tmp_path)
    path.write_bytes(whole)
    rewrite(tmp_path, lambda tensors: tensors.update({"model.norm.weight": torch.zeros(64, dtype=torch.int8)}))
    with pytest.raises(ModelError, match=r"model\.norm\.weight is I8; expected one of BF16"):
        model_tensors(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"model\.path: no model can be made of the configuration of "):
        model_tensors(tmp_path)


def test_headers_that_contradict_themselves_are_refused(tmp_path: Path):
    path = llama(tmp_path) / SINGLE
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    sound = header["model.norm.weight"]
    for wrong in (
        {"data_offsets": [sound["data_offsets"][0], sound["data_offsets"][0] + 4]},
        {"data_offsets": [-256, 0]},
        {"data_offsets": [0.0, 256.0]},
        {"shape": [8, 9]},
        {"shape": [64.0]},
        {"shape": 64},
        {"data_offsets": [0]},
    ):
        text = json.dumps(header | {"model.norm.weight": sound | wrong}).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + whole[8 + length :])
        with pytest.raises(ModelError, match="is no safetensors file"):
            model_tensors(tmp_path)


def test_what_older_versions_stored_besides_is_left_alone(tmp_path: Path):
    llama(tmp_path)
    left_over = "model.layers.0.self_attn.rotary_emb.inv_freq"
    rewrite(tmp_path, lambda tensors: tensors.update({left_over: torch.ones(16)}))
    assert left_over not in {stored.name for stored in model_tensors(tmp_path)}


@pytest.mark.parametrize(
    "change", [{"rope_parameters": {"rope_type": "nope"}}, {"hidden_act": "nope"}, {"num_attention_heads": 0}]
)
def test_a_configuration_that_makes_no_model_is_one_line(tmp_path: Path, change: dict[str, Any]):
    path = llama(tmp_path) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ModelError, match=r"model\.path: no model can be made of the configuration of [^\n]*$"):
        model_tensors(tmp_path)


def test_a_model_with_code_of_its_own_is_refused_and_nobody_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """transformers would ask at the terminal whether to run it, and run it in the learner."""
    monkeypatch.setattr("builtins.input", lambda _: pytest.fail("it waits for an answer"))
    path = llama(tmp_path) / "config.json"
    own = {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}}
    path.write_text(json.dumps(json.loads(path.read_text()) | own))
    (tmp_path / "own.py").write_text("raise SystemExit('it ran')")
    with pytest.raises(ModelError, match="contains custom code"):
        model_tensors(tmp_path)


EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
STATES = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1, "num_heads": 4, "head_dim": 16, "n_groups": 1}


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (transformers.Qwen3MoeConfig(**tiny_shape(), **EXPERTS), "Qwen3MoeForCausalLM is a mixture of experts"),
        (transformers.MixtralConfig(**tiny_shape(), num_local_experts=4), "MixtralForCausalLM is a mixture of experts"),
        (transformers.Mamba2Config(**STATES), "Mamba2ForCausalLM has layers with a recurrent state"),
        (transformers.Lfm2Config(**tiny_shape(), layer_types=["conv", "full_attention"]), "Lfm2ForCausalLM has layers"),
        (transformers.GPTNeoXConfig(**tiny_shape()), "GPTNeoXForCausalLM is trained under other names"),
    ],
    ids=lambda value: value.model_type if hasattr(value, "model_type") else "",
)
def test_models_that_engine_and_learner_would_not_hold_alike_are_refused_by_name(
    tmp_path: Path, config: Any, reason: str
):
    config.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=reason):
        require_supported(skeleton(tmp_path))
    # Before its files are looked at: there are none.
    with pytest.raises(ModelError, match=reason):
        model_tensors(tmp_path)

"""What cannot be right is refused by the command that a user types, before anything runs."""

import json
import shutil
from pathlib import Path

import pytest
import transformers

from runtime.models import model_folder
from tests.factories import tiny_shape
from tests.processes import zerotir
from tests.unit.stored_models import shard


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small mixture of experts over the tiny model's vocabulary."""
    folder = tmp_path_factory.mktemp("experts")
    tiny = model_folder("random-tiny")
    shape = tiny_shape() | {"vocab_size": json.loads((tiny / "config.json").read_text())["vocab_size"]}
    config = transformers.Qwen3MoeConfig(**shape, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32)
    transformers.Qwen3MoeForCausalLM(config).save_pretrained(folder)
    for path in tiny.glob("*token*"):
        shutil.copy(path, folder)
    return folder


def test_a_mixture_of_experts_is_refused_by_its_plan(experts: Path):
    done = zerotir("config", "tiny", "--check", "--set", f"model.path={experts}")
    assert done.returncode == 2
    assert done.stderr == (
        "zerotir: Qwen3MoeForCausalLM is a mixture of experts, which is not supported: use a dense model with attention in "
        "every layer, such as Llama, Qwen2 or Qwen3\n"
    )


@pytest.mark.slow
def test_a_mixture_of_experts_is_refused_by_a_run(experts: Path, tmp_path: Path):
    done = zerotir("up", "tiny", "--set", f"model.path={experts}", "--set", f"launch.runs_dir={tmp_path}")
    assert done.returncode != 0
    assert "Qwen3MoeForCausalLM is a mixture of experts" in done.stdout
    [run] = tmp_path.glob("tiny-*")
    assert not (run / "metrics.jsonl").exists()
    assert not (run / "model").exists()


@pytest.mark.slow
def test_a_checkpoint_that_lacks_a_file_is_not_evaluated(tmp_path: Path):
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(model_folder("random-tiny"), checkpoint)
    gone = shard(checkpoint)[1]
    gone.unlink()
    out = tmp_path / "out"
    done = zerotir("eval", "tiny", "--checkpoint", str(checkpoint), "--out", str(out), "--limit", "1")
    assert done.returncode == 2
    assert f"is not whole: 1 of the 4 files of its index are missing: {gone.name}" in done.stderr
    assert not (out / "results.json").exists()

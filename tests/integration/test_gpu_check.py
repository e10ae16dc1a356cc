"""`scripts/gpu-check`, with the CPU in the GPU's place: every part runs and is held to its numbers."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from runtime.models import model_folder

ROOT = Path(__file__).parents[2]


def gpu_check(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "gpu-check"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)


@pytest.mark.slow
def test_every_part_passes_on_a_tiny_model():
    result = gpu_check("--cpu", "--model", str(model_folder("random-tiny")))
    assert result.returncode == 0, result.stdout + result.stderr
    device, *rows, last = result.stdout.splitlines()
    assert "says nothing about a GPU" in device
    assert last.startswith("0 failed")
    assert [row[40:].split()[0] for row in rows] == ["ok"] * 9 + ["skipped"] * 2


@pytest.mark.slow
def test_parts_that_fail_are_told_and_the_others_go_on(tmp_path: Path):
    """The learner refuses a model that caps its logits."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    shape = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "head_dim": 32}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    Gemma2ForCausalLM(Gemma2Config(**shape, **heads, final_logit_softcapping=0.01)).save_pretrained(tmp_path)
    result = gpu_check("--cpu", "--model", str(tmp_path))
    assert result.returncode == 1, result.stdout + result.stderr
    rows = result.stdout.splitlines()[1:-1]
    assert [row[40:].split()[0] for row in rows] == ["FAILED"] * 9 + ["skipped"] * 2
    assert all("does more to its logits" in row for row in rows[:9])


def test_a_folder_without_a_model_is_refused(tmp_path: Path):
    result = gpu_check("--cpu", "--model", str(tmp_path))
    assert result.returncode == 2
    assert "no Hugging Face checkpoint" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_so():
    result = gpu_check()
    assert result.returncode == 2
    assert "finds no GPU" in result.stderr

"""Preparation of the models that need no hub."""

import asyncio
import os
import socket
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from runtime import models
from runtime.hub import look_for_hub
from runtime.models import ModelError, model_folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("ZEROTIR_CACHE", str(tmp_path))
    return tmp_path / "models"


def test_tiny_tokenizer_round_trips_code_and_knows_its_words():
    from transformers import AutoConfig, AutoTokenizer

    folder = model_folder("random-tiny")
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    text = "Q: 12 + 3?\n```python\nprint(12 + 3)\n```\n```output\n15\n```\n\\boxed{15} ~{x}"
    tokens = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(tokens) == text
    assert tokenizer.decode(tokens, skip_special_tokens=True) == text
    assert tokenizer.unk_token_id not in tokens
    for word in ("```python", "```", "\\boxed{", "print(", "7", "\n", "}"):
        assert len(tokenizer.encode(word, add_special_tokens=False)) == 1, word
    config = AutoConfig.from_pretrained(folder)
    assert config.vocab_size == len(tokenizer)
    assert config.eos_token_id == tokenizer.eos_token_id


def test_tiny_weights_are_the_same_every_time(cache: Path, monkeypatch: pytest.MonkeyPatch):
    first = (model_folder("random-tiny") / "model.safetensors").read_bytes()
    monkeypatch.setenv("ZEROTIR_CACHE", str(cache / "second"))
    assert (model_folder("random-tiny") / "model.safetensors").read_bytes() == first


@pytest.mark.slow
async def test_two_processes_prepare_at_once(cache: Path):
    processes = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-m", "runtime.models", "random-tiny", stdout=asyncio.subprocess.PIPE
        )
        for _ in range(2)
    ]
    outputs = await asyncio.gather(*(process.communicate() for process in processes))
    assert [process.returncode for process in processes] == [0, 0]
    folders = {output.decode().splitlines()[-1] for output, _ in outputs}
    assert folders == {str(cache / "random-tiny")}
    assert os.listdir(cache) == ["random-tiny"]
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(os.listdir(cache / "random-tiny"))


def test_a_failed_preparation_leaves_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch):
    import transformers

    def full_disk(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(transformers.LlamaForCausalLM, "save_pretrained", full_disk)
    with pytest.raises(OSError, match="no space left"):
        model_folder("random-tiny")
    assert list(cache.iterdir()) == []


def test_a_folder_is_taken_as_it_is(tmp_path: Path):
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    with pytest.raises(ModelError, match=r"no config\.json"):
        model_folder(str(folder))
    (folder / "config.json").write_text("{}")
    assert model_folder(str(folder)) == folder


def test_an_unknown_name_says_what_to_do():
    with pytest.raises(ModelError, match=r"Check the name and the network.*random-tiny"):
        model_folder("no such/model name")


@pytest.mark.parametrize(
    ("environment", "answer", "offline"),
    [
        ({}, socket.EAI_NONAME, "1"),
        ({}, socket.EAI_AGAIN, None),
        ({}, None, None),
        ({"HF_HUB_OFFLINE": "0"}, socket.EAI_NONAME, "0"),
        ({"https_proxy": "http://proxy:3128"}, socket.EAI_NONAME, None),
    ],
)
def test_a_hub_that_the_network_does_not_know_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], answer: int | None, offline: str | None
):
    def look_up(host: str, port: None) -> list[Any]:
        assert host == "hub.example"
        if answer is not None:
            raise socket.gaierror(answer, "no answer")
        return []

    monkeypatch.setattr(os, "environ", {"HF_ENDPOINT": "https://hub.example", **environment})
    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    look_for_hub()
    assert os.environ.get("HF_HUB_OFFLINE") == offline


@pytest.mark.parametrize("weights", [True, False])
def test_a_tokenizer_needs_no_weights_of_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, weights: bool):
    asked: list[str] = []

    def download(name: str, allow_patterns: list[str]) -> str:
        asked.extend(allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr(models, "look_for_hub", lambda: None)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert model_folder("someone/a-model", weights=weights) == tmp_path
    assert ("*.safetensors" in asked) == weights
    assert "*.json" in asked


@pytest.mark.slow
def test_smollm2_ends_a_turn_with_its_end_token():
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = model_folder("smollm2-135m")
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    model.float()  # bfloat16 products are slow on many CPUs
    assert model.generation_config.eos_token_id == tokenizer.convert_tokens_to_ids("<|im_end|>")
    chat = [{"role": "user", "content": "Say only the word: yes"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    written = model.generate(**prompt, max_new_tokens=60, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert written[-1] == model.generation_config.eos_token_id
    assert "yes" in tokenizer.decode(written).lower()

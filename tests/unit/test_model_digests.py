"""Digests of a model's files: alike for the same content, apart for anything that changes tokens or model."""

import json
import shutil
from pathlib import Path

import pytest

from runtime.model_digests import differences, model_digests
from runtime.models import ModelError, model_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the tiny model."""
    return Path(shutil.copytree(model_folder("random-tiny"), tmp_path / "model"))


def change(path: Path, **fields: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_a_copy_that_was_written_again_elsewhere_is_the_same(folder: Path):
    before = model_digests(folder)
    assert {"config.json", "tokenizer.json", "tokenizer_config.json"} <= set(before)
    for path in folder.glob("*.json"):
        content = json.loads(path.read_text())
        path.write_text(json.dumps(dict(reversed(content.items())), indent=7))
    change(folder / "config.json", transformers_version="9.0", _name_or_path="elsewhere")
    (folder / "generation_config.json").unlink()
    (folder / "README.txt").write_text("mine")
    assert differences(before, model_digests(folder)) == []


def test_every_file_that_decides_tokens_or_model_is_named(folder: Path):
    before = model_digests(folder)
    change(folder / "config.json", rope_theta=5.0)
    vocabulary = json.loads((folder / "tokenizer.json").read_text())
    vocabulary["model"]["vocab"] |= {"a": vocabulary["model"]["vocab"]["b"], "b": vocabulary["model"]["vocab"]["a"]}
    (folder / "tokenizer.json").write_text(json.dumps(vocabulary))
    (folder / "tokenizer_config.json").unlink()
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    assert differences(before, model_digests(folder)) == [
        "chat_template.jinja is there, which the run does without",
        "config.json is another one",
        "tokenizer.json is another one",
        "tokenizer_config.json is missing",
    ]


def test_a_file_that_is_no_json_is_named(folder: Path):
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match=r"tokenizer\.json cannot be read"):
        model_digests(folder)

"""Checkpoints in memory: every tensor where the entries say, whatever files they came in; damage is named."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from evaluation.checkpoint import CheckpointImage
from runtime.models import ModelError

TENSORS = {
    "a": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "b": torch.tensor([1.5, -2.0, 3.0], dtype=torch.bfloat16),
    "c": torch.tensor(7.0, dtype=torch.float16),
}


def read(image: CheckpointImage) -> dict[str, torch.Tensor]:
    found = {}
    for entry in image.tensors:
        raw = bytearray(os.pread(image.descriptor, entry.nbytes, entry.offset))
        found[entry.name] = torch.frombuffer(raw, dtype=getattr(torch, entry.dtype)).reshape(entry.shape)
    return found


@pytest.mark.parametrize("files", [[["a", "b", "c"]], [["a"], ["b", "c"]], [["c"], ["b"], ["a"]]])
def test_every_tensor_is_where_its_entry_says(tmp_path: Path, files: list[list[str]]):
    for number, names in enumerate(files):
        save_file({name: TENSORS[name] for name in names}, tmp_path / f"model-{number}.safetensors", {"format": "pt"})
    with CheckpointImage.read(tmp_path) as image:
        assert read(image).keys() == TENSORS.keys()
        for name, tensor in read(image).items():
            assert torch.equal(tensor, TENSORS[name])
            assert tensor.dtype == TENSORS[name].dtype
        assert Path(image.path).stat().st_size >= sum(entry.nbytes for entry in image.tensors)


def test_the_digest_is_of_the_weights_and_not_of_their_place(tmp_path: Path):
    digests = []
    for name, change in (("one", 0.0), ("two", 0.0), ("three", 1.0)):
        (tmp_path / name).mkdir()
        save_file({"a": TENSORS["a"] + change}, tmp_path / name / "model.safetensors")
        with CheckpointImage.read(tmp_path / name) as image:
            digests.append(image.digest)
    assert digests[0] == digests[1] != digests[2]


def test_what_cannot_be_used_is_named(tmp_path: Path):
    with pytest.raises(ModelError, match=r"holds no \*.safetensors"):
        CheckpointImage.read(tmp_path)
    path = tmp_path / "model.safetensors"
    save_file({"a": TENSORS["a"]}, path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-4])
    with pytest.raises(ModelError, match="ends before a does"):
        CheckpointImage.read(tmp_path)
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(ModelError, match="no whole safetensors file"):
        CheckpointImage.read(tmp_path)
    save_file({"a": torch.zeros(3, dtype=torch.int8)}, path)
    with pytest.raises(ModelError, match="a is I8; expected one of BF16"):
        CheckpointImage.read(tmp_path)

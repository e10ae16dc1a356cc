"""Checkpoints in memory: every tensor where the entries say, whatever files they came in; what is not whole is refused."""

import os
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from evaluation.checkpoint import CheckpointImage
from runtime.model_files import SINGLE
from runtime.models import ModelError
from tests.unit.stored_models import Tensors, llama, rewrite, shard

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def mix(tensors: Tensors) -> None:
    """Gives the tensors the dtypes that a checkpoint may have, in turn."""
    for number, name in enumerate(sorted(tensors)):
        tensors[name] = tensors[name].to(DTYPES[number % len(DTYPES)])


def add(change: float, tensors: Tensors) -> None:
    tensors["model.norm.weight"].add_(change)


def read(image: CheckpointImage) -> Tensors:
    found = {}
    for entry in image.tensors:
        raw = bytearray(os.pread(image.descriptor, entry.nbytes, entry.offset))
        found[entry.name] = torch.frombuffer(raw, dtype=getattr(torch, entry.dtype)).reshape(entry.shape)
    return found


@pytest.mark.parametrize("files", [1, 2, 3])
def test_every_tensor_is_where_its_entry_says(tmp_path: Path, files: int):
    rewrite(llama(tmp_path), mix)
    tensors = load_file(tmp_path / SINGLE)
    if files > 1:
        shard(tmp_path, files)
    with CheckpointImage.read(tmp_path) as image:
        found = read(image)
        assert found.keys() == tensors.keys()
        for name, tensor in found.items():
            assert torch.equal(tensor, tensors[name])
            assert tensor.dtype == tensors[name].dtype
        assert Path(image.path).stat().st_size >= sum(entry.nbytes for entry in image.tensors)


def test_the_digest_is_of_the_weights_and_not_of_their_place(tmp_path: Path):
    digests = []
    for name, change in (("one", 0.0), ("two", 0.0), ("three", 1.0)):
        (tmp_path / name).mkdir()
        torch.manual_seed(0)
        rewrite(llama(tmp_path / name), partial(add, change))
        with CheckpointImage.read(tmp_path / name) as image:
            digests.append(image.digest)
    assert digests[0] == digests[1] != digests[2]


def test_a_checkpoint_that_is_not_whole_is_refused(tmp_path: Path):
    shard(llama(tmp_path))[1].unlink()
    with pytest.raises(ModelError, match="not whole"):
        CheckpointImage.read(tmp_path)

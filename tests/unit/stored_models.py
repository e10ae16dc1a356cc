"""Small models in folders, as one file or as several with an index."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

from runtime.model_files import INDEX, SINGLE
from tests.factories import tiny_shape

Tensors = dict[str, torch.Tensor]


def llama(folder: Path, **changes: Any) -> Path:
    """Writes a small Llama into `folder`."""
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**(tiny_shape() | changes))).save_pretrained(folder)
    return folder


def rewrite(folder: Path, change: Callable[[Tensors], object]) -> None:
    """Changes the tensors of a folder's only file."""
    tensors = load_file(folder / SINGLE)
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / SINGLE, {"format": "pt"})


def shard(folder: Path, files: int = 4) -> list[Path]:
    """Spreads a folder's tensors over so many files with an index, as large checkpoints are."""
    tensors = load_file(folder / SINGLE)
    (folder / SINGLE).unlink()
    names = sorted(tensors)
    paths = [folder / f"model-{number + 1:05}-of-{files:05}.safetensors" for number in range(files)]
    for number, path in enumerate(paths):
        save_file({name: tensors[name] for name in names[number::files]}, path, {"format": "pt"})
    where = {name: path.name for number, path in enumerate(paths) for name in names[number::files]}
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": where}))
    return paths

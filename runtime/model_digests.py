"""Digests of a model's files that decide what a token is and what the weights mean.

All roles of a run must have the same ones: a learner takes an actor's token ids and log-probabilities for those of its own
tokenizer and model, and what came of another one looks just like them.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from runtime.models import ModelError

CONFIGURATION = "config.json"
TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
    "chat_template.jinja",
    "chat_template.json",
)
"""Names of the files from which tokenizers and chat templates are made, of all kinds of tokenizers that are supported."""
ABOUT_THE_FILE = ("transformers_version", "_name_or_path", "name_or_path")
"""Fields that say who wrote a file and where, not what the model is."""


def model_digests(folder: Path) -> dict[str, str]:
    """Returns the digest of each file in `folder` that decides tokens or model, by its name.

    JSON counts by its content, whatever its layout. The weights' names and shapes follow from `config.json`, to which
    `runtime.model_files` holds the learner's files, and vLLM what it loads. Costs one reading of the tokenizer's files, some
    MB. Raises ModelError for a file that cannot be read.
    """
    return {name: _digest(folder / name) for name in (CONFIGURATION, *TOKENIZER) if (folder / name).is_file()}


def differences(recorded: Mapping[str, str], here: Mapping[str, str]) -> list[str]:
    """Returns what is wrong with the files here, one phrase a file; empty where they are the recorded ones."""
    return [
        f"{name} is another one"
        if name in recorded and name in here
        else f"{name} is missing"
        if name in recorded
        else f"{name} is there, which the run does without"
        for name in sorted({*recorded, *here})
        if recorded.get(name) != here.get(name)
    ]


def _digest(path: Path) -> str:
    try:
        content = path.read_bytes()
        if path.suffix == ".json":
            fields = json.loads(content)
            if isinstance(fields, dict):
                fields = {name: value for name, value in fields.items() if name not in ABOUT_THE_FILE}
            content = json.dumps(fields, sort_keys=True).encode()
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    return hashlib.sha256(content).hexdigest()[:16]

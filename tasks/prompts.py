"""Prompts: a template filled with a problem, as token ids.

Templates are text files that contain `{problem}` exactly once and nothing else that is replaced; a last line break is
not part of them. The shipped ones lie in `tasks/templates/`: `zerotir` is the prompt of ZeroTIR for base models
(arXiv 2505.07773), `few-shot` shows a base model two answers, one of them with code, `plain` suits small instruction-tuned
models, `tiny` is the problem alone. Those named `-text` do not mention code.
"""

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from configs.errors import UserError, nearest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEMPLATES = Path(__file__).parent / "templates"
PLACEHOLDER = "{problem}"


class PromptError(UserError):
    """A template that is unknown or unusable; the text says why."""


def render_prompt(template: str, problem: str, tokenizer: "PreTrainedTokenizerBase", *, chat: bool) -> list[int]:
    """Returns the token ids of the prompt for `problem`.

    Plain prompts get the special tokens that the tokenizer itself adds, chat prompts those of the chat template, up to
    the beginning of the model's turn. Raises PromptError for a missing chat template.

    Args:
        template: its text, as of `load_template`.
        chat: wrap the filled template as a user turn in the model's own chat template.
    """
    text = template.replace(PLACEHOLDER, problem)
    if not chat:
        return list(tokenizer(text)["input_ids"])
    if tokenizer.chat_template is None:
        raise PromptError("the model's tokenizer has no chat template: set tasks.prompt.chat to false")
    # Without return_dict=False, transformers 5 returns a mapping, whose list() would be its keys.
    turns = [{"role": "user", "content": text}]
    return list(tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=False))


@lru_cache(maxsize=16)
def load_template(name: str) -> str:
    """Returns the text of a shipped template, or of the file at path `name`. Raises PromptError."""
    shipped = {path.stem: path for path in TEMPLATES.glob("*.txt")}
    path = shipped.get(name) or Path(name)
    try:
        text = path.read_text(encoding="utf-8").removesuffix("\n")
    except (OSError, UnicodeDecodeError) as error:
        hint = nearest(name, sorted(shipped))
        raise PromptError(f"no prompt template {name!r}, nor a readable text file of that path{hint}") from error
    if text.count(PLACEHOLDER) != 1:
        raise PromptError(f"template {name!r} contains {PLACEHOLDER} {text.count(PLACEHOLDER)} times, not once")
    return text

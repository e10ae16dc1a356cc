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
from runtime.files import write_whole

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEMPLATES = Path(__file__).parent / "templates"
KEPT = "template.txt"
"""File of a run's folder that holds the template's text."""
PLACEHOLDER = "{problem}"
STAND_IN = "\ue000problem\ue000"
"""Stands where the problem's text will be: no chat template writes these characters of private use."""


class PromptError(UserError):
    """A template that is unknown or unusable; the text says why."""


def render_prompt(template: str, problem: str, tokenizer: "PreTrainedTokenizerBase", *, chat: bool) -> list[int]:
    """Returns the token ids of the prompt for `problem`.

    Plain prompts begin with the special tokens that the tokenizer itself puts there, and end with the template's text: what
    the tokenizer would append (an end of the sequence) is left out. Chat prompts have the special tokens of the chat
    template, up to the beginning of the model's turn. A special token that the problem spells stays text; for such a problem
    alone, the text before, in and after it is tokenised apart, and a chat template sees a stand-in for it.

    Args:
        template: its text, as of `load_template`.
        chat: wrap the filled template as a user turn in the model's own chat template.

    Raises PromptError for a missing chat template, one that cannot be filled or that changes such a problem, and for a
    problem that is no Unicode text.
    """
    if any("\ud800" <= character <= "\udfff" for character in problem):
        raise PromptError("the problem holds half of a surrogate pair, which is no character")
    text = _filled(template, problem, tokenizer, chat)
    if any(token in problem for token in _special_tokens(tokenizer)):
        before, found, after = _filled(template, STAND_IN, tokenizer, chat).partition(STAND_IN)
        if not found:
            raise PromptError("the model's chat template changes a problem that spells a special token")
        tokens = [*_encode(before, tokenizer), *_encode(problem, tokenizer, split=True), *_encode(after, tokenizer)]
    else:
        tokens = _encode(text, tokenizer)
    return tokens if chat else _beginning(tokenizer) + tokens


def _filled(template: str, problem: str, tokenizer: "PreTrainedTokenizerBase", chat: bool) -> str:
    text = template.replace(PLACEHOLDER, problem)
    if not chat:
        return text
    if tokenizer.chat_template is None:
        raise PromptError("the model's tokenizer has no chat template: set tasks.prompt.chat to false")
    turns = [{"role": "user", "content": text}]
    try:
        return str(tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False))
    except Exception as error:
        raise PromptError(f"the model's chat template cannot be filled: {error}") from error


def _special_tokens(tokenizer: "PreTrainedTokenizerBase") -> set[str]:
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return added.union(tokenizer.all_special_tokens)


def _encode(text: str, tokenizer: "PreTrainedTokenizerBase", *, split: bool = False) -> list[int]:
    """Returns the tokens of `text` alone; with `split`, a special token that it spells stays text."""
    return list(tokenizer(text, add_special_tokens=False, split_special_tokens=split)["input_ids"]) if text else []


def _beginning(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Returns the special tokens that the tokenizer puts before a text."""
    bare, full = (list(tokenizer("1", add_special_tokens=special)["input_ids"]) for special in (False, True))
    added = len(full) - len(bare)
    return next((full[:count] for count in range(added + 1) if full[count : count + len(bare)] == bare), [])


def keep_template(run: Path, name: str) -> str:
    """Returns the template's text that the run in a folder began with; keeps that of template `name` for a new run.

    So a file that is edited or moved while the run is stopped changes nothing. Raises PromptError.
    """
    if not (run / KEPT).exists():
        write_whole(run / KEPT, load_template(name) + "\n")
    return load_template(str(run / KEPT))


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

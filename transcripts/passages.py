"""A response as text for people: who wrote each stretch of it, the model or the sandbox, and what is code in it."""

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple, Protocol

from pydantic import NonNegativeInt

from bus.codec import Message
from bus.messages import ToolCall

# A block that the model opened ends at its closing fence, or with the passage.
_BLOCK = re.compile(r"```(python|output).*?(?:```|\Z)", re.DOTALL | re.IGNORECASE)


class Decoder(Protocol):
    """The part of a Hugging Face tokenizer that makes text of tokens."""

    def decode(self, token_ids: list[int], *, clean_up_tokenization_spaces: bool) -> str: ...


class Passage(Message):
    """A stretch of a response that comes from one hand, as text."""

    sampled: bool
    """Whether the model sampled it; else it was inserted."""
    start: NonNegativeInt
    """Response position of its first token."""
    text: str


def passages(tokens: Sequence[int], loss_mask: Iterable[int], tokenizer: Decoder) -> Iterator[Passage]:
    """Yields a response as text, cut wherever the hand that wrote it changes.

    Args:
        tokens: [R] those of the response.
        loss_mask: [R] 1 on sampled tokens.
    """
    begin = 0
    for sampled, run in groupby(loss_mask):
        end = begin + len(list(run))
        # Some tokenizers would otherwise take out spaces before punctuation.
        text = tokenizer.decode(list(tokens[begin:end]), clean_up_tokenization_spaces=False)
        yield Passage(sampled=bool(sampled), start=begin, text=text)
        begin = end


class Piece(NamedTuple):
    """A stretch of a passage that is drawn in one way."""

    kind: str
    """`text` and `code`, which the model wrote; `hallucinated`, output that it made up; `output`, which was inserted."""
    text: str
    label: str
    """Says of an output how its program ended."""
    passage: int
    """Which passage it is of,"""
    begin: int
    """and where in its text it begins."""


def pieces(passages: Iterable[Passage], calls: Iterable[ToolCall]) -> Iterator[Piece]:
    """Yields a response piece by piece."""
    call_at = {call.start: call for call in calls}
    for index, passage in enumerate(passages):
        if not passage.sampled:
            call = call_at.get(passage.start)
            label = (
                "not run"
                if call is None
                else f"{call.outcome}{'' if call.success else ', failed'}, {call.seconds:.1f} s"
            )
            blank = len(passage.text) - len(passage.text.lstrip("\n"))
            yield Piece("output", passage.text.strip("\n"), label, index, blank)
            continue
        begin = 0
        for block in _BLOCK.finditer(passage.text):
            if text := passage.text[begin : block.start()]:
                yield Piece("text", text, "", index, begin)
            kind = "code" if block[1].lower() == "python" else "hallucinated"
            yield Piece(kind, block[0], "", index, block.start())
            begin = block.end()
        if text := passage.text[begin:]:
            yield Piece("text", text, "", index, begin)

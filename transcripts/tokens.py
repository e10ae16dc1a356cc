"""Which stretch of a text each token made, so that a view can colour tokens: [length, position] after [length, position].

Lengths are in the units in which JavaScript counts. Where several tokens make one character it belongs to the last of them.
"""

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

from tokenizers.decoders import DecodeStream

from bus.messages import Trajectory
from transcripts.passages import Piece, passages, pieces
from transcripts.typeset import Mark, marks, units

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Stretch = tuple[int, int]
"""A length, and the response position of the token that made it."""


DrawnPiece = tuple[str, str, str, list[Mark], list[Stretch]]
"""Kind, text and label, see `transcripts.passages.Piece`; how it is drawn, see `transcripts.typeset`; its tokens."""


def drawn(trajectory: Trajectory, tokenizer: "PreTrainedTokenizerFast") -> Iterator[DrawnPiece]:
    """Yields the pieces of a response.

    There are no stretches where the tokenizer does not give the same text token by token.
    """
    response = trajectory.tokens[trajectory.prompt_length :].tolist()
    written = list(passages(response, trajectory.loss_mask.tolist(), tokenizer))
    starts = [*(passage.start for passage in written), len(response)]
    ends = [
        token_ends(response[begin:end], passage.text, tokenizer)
        for passage, (begin, end) in zip(written, pairwise(starts), strict=True)
    ]
    for piece in pieces(written, trajectory.tool_calls):
        stretches = list(_stretches(piece, ends[piece.passage], starts[piece.passage]))
        yield piece.kind, piece.text, piece.label, marks(piece.kind, piece.text), stretches


def token_ends(tokens: Sequence[int], text: str, tokenizer: "PreTrainedTokenizerFast") -> list[int]:
    """Returns where in `text`, of which `tokens` are the tokens, each ends: [n] characters; [] where that cannot be said."""
    stream = DecodeStream(skip_special_tokens=False)
    parts = [stream.step(tokenizer.backend_tokenizer, token) or "" for token in tokens]
    if not text.startswith("".join(parts)):
        return []
    ends = list(accumulate(map(len, parts)))
    # The last character may lack a token.
    return [*ends[:-1], len(text)]


def _stretches(piece: Piece, ends: Sequence[int], position: int) -> Iterator[Stretch]:
    before, last = piece.begin, piece.begin + len(piece.text)
    for place, end in enumerate(ends, position):
        if end > before and before < last:
            part = piece.text[before - piece.begin : end - piece.begin]
            yield units(part), place
            before += len(part)

"""Tells whether the code of a response had to do with its answer, as far as the text shows it."""

import re
from collections.abc import Sequence

from grading.answers import plain
from grading.numerals import number
from grading.text import numbers_in, own_text


def code_unused(turns: Sequence[str], outputs: Sequence[str], answer: str) -> bool:
    """Returns whether the answer stood in the model's own text before its first call, or no output holds it.

    `turns` are the texts that the model sampled, `outputs` what its calls gave, at least one. An observation, no proof: a
    small number stands in many texts by chance, and an output may be used without being repeated.
    """
    before = own_text(turns[:1])
    return _stands_in(answer, before) or not any(_stands_in(answer, output) for output in outputs)


def _stands_in(answer: str, text: str) -> bool:
    answer = plain(answer)
    value = number(answer)
    if value is not None and value in numbers_in(text):
        return True
    if value is not None and value.denominator == 1:
        return False
    spelling = re.escape(str(value) if value is not None else _squeezed(answer))
    return re.search(rf"(?<!\d){spelling}(?!\d)", _squeezed(text)) is not None


def _squeezed(text: str) -> str:
    return re.sub(r"\s+|\*\*|\\[dt]?(?=frac)", lambda piece: {"**": "^"}.get(piece[0], ""), text).lower()

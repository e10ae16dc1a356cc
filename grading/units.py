r"""Takes units off numbers and expressions: what stands behind them and is no part of their value.

A unit is a word or a symbol, with an exponent 2 or 3, several of them joined by spaces, `/` or `·`, in `\text{...}` or bare.
Words that count, compute or hedge are none: in `42 \text{ million}`, `42 squared` and `42 \text{ or } 43` nothing is taken
off, so that they are not the number 42.
"""

import re

_SYLLABLE = r"[A-Za-z]+(?:\^?-?[23]|[²³])?"
_WORDS = re.compile(rf"\s*-?{_SYLLABLE}\.?(?:\s*[/·.\s-]\s*{_SYLLABLE}\.?)*\s*")
# Two letters may be variables: only units are taken for words.
_BARE = (
    r"(?:[A-Za-z]{3,}|[ckm]m|[km]g|ml|ft|in|lb|oz|mi|sq|hr"
    r"|(?:[kc]?m|mi|ft|[A-Za-z]{3,})/(?:s|h|hr|min|sec|[A-Za-z]{3,}))"
)
_EXPONENT = r"\s*(?:\^\s*\{?\s*-?[123]\s*\}?|[²³])?"
_DEGREES = (
    r"\s*(?:\^\s*\{?\s*(?:\\circ|o)\s*\}?|[°º]|\\degree(?![A-Za-z])|\\text\s*\{\s*[°º]\s*\})(?:\s*[CF](?![A-Za-z]))?"
)
_UNIT = re.compile(
    rf"(?P<rest>.*?\S)(?:{_DEGREES}|\s*\\(?:text|mbox|textrm|operatorname)\s*\{{(?P<text>[^{{}}]*)\}}{_EXPONENT}"
    rf"|(?P<bare>(?:\s+{_BARE}){{1,3}}){_EXPONENT})",
    re.DOTALL,
)
_SYMBOL = re.compile(
    r"(?P<rest>.*[\d}])(?:\s+[mgLlshNJWV]|(?<=\d)\s*(?:[ckm]m|[km]g|ml|ft|in|lb|oz|m|g|s|h|L))(?:\^\{?[23]\}?|[²³])?"
)
_COUNTS = (
    r"(?:zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|(?:thir|four|fif|six|seven|eigh|nine)teen"
    r"|(?:twen|thir|for|fif|six|seven|eigh|nine)ty|tens|twelves|dozens?|hundreds?|thousands?|[mbt]r?illions?|myriads?|lakhs?"
    r"|crores?|kilo|score|gross|halves|half|thirds|fourths|fifths|sixths|sevenths|eighths|ninths|tenths|hundredths"
    r"|thousandths|nths)"
)
_NO_UNIT = re.compile(
    rf"\b(?:{_COUNTS}(?!-)|or|nor|but|vs|versus|not|no|is|was|are|maybe|perhaps|possibly|guess|about|nearly|approximately"
    r"|unless|either|fewer|than|least|most|only|below|above|under|plus|minus|times|divided|multiplied|doubled?|twice|tripled?"
    r"|halved|factorial|base|modulo|modulus|mod|fold|infinity|percent|choose|equals?|wrong|false|reciprocal|inverse|root|power"
    r"|binary|octal|hex|sin|cos|tan|cot|sec|csc|log|ln|exp|sqrt|pi|theta|alpha|beta|gamma|phi)\b"
    r"|^\W*(?:squared|cubed|over|third$|[a-ln-z])(?:\b|(?=\^))|\b(?:more|less)\s*$",
)
_LETTERS = "mgLlshNJWVACFK"
"""Units of one letter; the others may be variables."""


def without_unit(text: str) -> str | None:
    """Returns what stands before the last unit of `text`; None where it ends in none."""
    unit = _UNIT.fullmatch(text)
    if unit is None:
        return None
    words = unit["text"] if unit["text"] is not None else unit["bare"]
    if words is None or _is_unit(words):
        return re.sub(r"\s*(?:/|\\cdot|·)$", "", unit["rest"].rstrip())
    return None


def without_symbol(text: str) -> str | None:
    """Returns what stands before a unit's symbol that could be a variable, as in `12 m` and `12cm`; None without one."""
    symbol = _SYMBOL.fullmatch(text)
    return symbol["rest"] if symbol else None


def _is_unit(words: str) -> bool:
    if not words.strip():
        return True
    letter = re.fullmatch(r"\s*([A-Za-z])(?:\^?-?[23]|[²³])?\s*", words)
    if letter:
        return letter[1] in _LETTERS
    return _WORDS.fullmatch(words) is not None and not _NO_UNIT.search(words.lower())

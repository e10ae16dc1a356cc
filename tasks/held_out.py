"""Says which problems are kept for evaluation: a tenth of them, by their text.

So recipes need no list of what a run has trained on, and runs of every seed and size, and checkpoints without their run, are
evaluated on problems that no training draws. Of a small recipe too: "1+2=" is either for training or for
evaluation, however often it is drawn.
"""

import re

import xxhash

_BETWEEN_WORDS = re.compile(r"(?<![0-9]) | (?![0-9])")
SHARE = 10
"""One problem in so many is held out."""


def problem_key(text: str) -> str:
    """Returns what makes two texts one problem: case, white space, dollar signs and a closing full stop do not matter.

    White space between two digits does: 1 1/2 is not 11/2. Takes time in proportion to the text.
    """
    bare = text.replace("$", "").rstrip().rstrip(".?: \n")
    return _BETWEEN_WORDS.sub("", " ".join(bare.split())).casefold()


def is_held_out(text: str) -> bool:
    """Returns whether a problem is for evaluation alone; else it is for training alone."""
    return xxhash.xxh3_64_intdigest(problem_key(text).encode()) % SHARE == 0

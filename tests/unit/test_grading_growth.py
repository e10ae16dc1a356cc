"""Reading a response takes time that grows with its length, not with the square of it, whatever it says.

An answer is at most a thousand characters long: what is done with its text may take the square of that, not more.
"""

import time

from hypothesis import example, given, settings
from hypothesis import strategies as st

from configs.tasks import GradingConfig
from grading.answers import MAX_ANSWER_LENGTH, equal_at_sight, plain, plain_number
from grading.blocks import find_blocks
from grading.intervals import as_range
from grading.reading import read
from grading.results import is_copy
from grading.sides import assigned

CONFIGS = [
    GradingConfig(),
    GradingConfig(answer_tag=True),
    GradingConfig(rule="last_number"),
]
SHORT, LONG = 5_000, 40_000
"""Characters."""
QUADRATIC = ((LONG / SHORT) * (LONG / SHORT) ** 2) ** 0.5
"""Between eight times as long, which is linear, and 64 times."""
NOTICEABLE_S = 0.2
"""Less is a matter of chance, and far from what any quadratic scan of the longer text takes."""
FRAGMENTS = (
    *(" ", "\n", "\t", "`", "```", "````", "~~~", "```python\n", "```output\n", "```py\n", "> ", "- ", "1. "),
    *(
        "\\boxed{",
        "\\fbox{",
        "\\boxed{1}",
        "\\boxed{2},",
        "\\text{",
        "and",
        "or ",
        ",",
        "$",
        "\\,",
        "\\quad",
        "{",
        "}",
        "\\",
    ),
    *(
        "1",
        "1,",
        "111,",
        ".",
        "-",
        "e",
        "x",
        "=",
        "'",
        '"',
        '"""',
        "'''",
        "#",
        "\\'",
        "</think>",
        "<answer>",
        "</answer>",
        "<|",
    ),
)
pieces = st.lists(st.sampled_from(FRAGMENTS), max_size=3).map("".join)


def grown(before: str, repeated: str, after: str, length: int) -> str:
    """Returns a text of about `length` characters."""
    return before + repeated * (length // len(repeated)) + after


def seconds(text: str) -> float:
    """Returns the least processor time of three readings, by every rule."""
    taken = []
    for _ in range(3):
        begin = time.process_time()
        for config in CONFIGS:
            read([text, text], [text], config)
        for block in find_blocks(text):
            _ = block.program
        taken.append(time.process_time() - begin)
    return min(taken)


@given(before=pieces, repeated=pieces.filter(bool), after=pieces)
@example(before="\\boxed{1},", repeated=" ", after="z\\boxed{2}")
@example(before="\\boxed{1}", repeated=" \\,", after="z\\boxed{2}")
@example(before="```python", repeated=" ", after="x\n```")
@example(before="</think><answer>", repeated="</answer> ", after="x")
@example(before="</think><answer>1</answer>", repeated=" ", after="x")
@example(before="", repeated="\n", after="x")
@example(before="", repeated="````\n```\n", after="\n")
@settings(max_examples=40, deadline=None, derandomize=True, database=None)
def test_reading_takes_time_in_proportion_to_the_text(before: str, repeated: str, after: str):
    long = seconds(grown(before, repeated, after, LONG))
    assert long < NOTICEABLE_S or long < QUADRATIC * seconds(grown(before, repeated, after, SHORT))


ANSWERS = (
    *(
        "~",
        "\\,",
        "\\ ",
        " ",
        "1",
        "1 ",
        "1,",
        "000",
        "x",
        "x ",
        "ab ",
        "cm ",
        "=",
        "x=",
        "/",
        ".",
        "-",
        "%",
        "\\%",
        "^",
        "_",
        "!",
    ),
    *(
        "(",
        ")",
        "[",
        "]",
        "{",
        "}",
        "\\{",
        "\\text{",
        "\\text{a}",
        "\\frac{",
        "\\frac{1}{2}",
        "\\sqrt{",
        "\\mathrm{",
        "\\left(",
    ),
    *(
        "<",
        "\\le",
        " or ",
        " and ",
        "**",
        "sqrt(",
        "Fraction(",
        "^{\\circ}",
        "\\cdot",
        "percent",
        "e5",
        "\\\\",
        "&",
        "|",
    ),
)
answers = st.lists(st.sampled_from(ANSWERS), max_size=3).map("".join)


def answer_seconds(text: str) -> float:
    """Returns the least processor time of two rounds of all that is done with the text of an answer."""
    taken = []
    for _ in range(2):
        begin = time.process_time()
        answer = plain(text)
        for gold in ("5", r"\sqrt{2}", r"\text{(C)}"):
            equal_at_sight(gold, plain_number(answer))
        assigned(answer)
        as_range(answer)
        is_copy(answer, "5", f"It is ${text}$.")
        taken.append(time.process_time() - begin)
    return min(taken)


@given(before=answers, repeated=answers.filter(bool), after=answers)
@example(before="1", repeated="~", after="!")
@example(before="5", repeated="\\,", after="!")
@example(before="5 ", repeated="cm ", after="!")
@settings(max_examples=150, deadline=None, derandomize=True, database=None)
def test_the_text_of_an_answer_takes_no_more_than_the_square_of_its_length(before: str, repeated: str, after: str):
    long = answer_seconds(grown(before, repeated, after, MAX_ANSWER_LENGTH))
    short = grown(before, repeated, after, MAX_ANSWER_LENGTH // 4)
    # Four times as long: 16 times the work, or 64 where it is cubic.
    assert long < NOTICEABLE_S or long < 32 * answer_seconds(short)

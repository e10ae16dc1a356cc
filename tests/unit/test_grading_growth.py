"""Reading a response takes time that grows with its length, not with the square of it, whatever it says."""

import time

from hypothesis import example, given, settings
from hypothesis import strategies as st

from configs.tasks import GradingConfig
from grading.blocks import find_blocks
from grading.reading import read

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
    def text(length: int) -> str:
        return before + repeated * (length // len(repeated)) + after

    long = seconds(text(LONG))
    assert long < NOTICEABLE_S or long < QUADRATIC * seconds(text(SHORT))

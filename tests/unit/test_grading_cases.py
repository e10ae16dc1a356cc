"""The table of answers beside this file: what is right, what is wrong, and what equals the gold answer and is no result."""

import csv
from collections import defaultdict
from pathlib import Path
from random import Random

import pytest
import pytest_asyncio

from configs.tasks import GradingConfig
from grading.grader import Grader
from grading.text import as_number

BOXED = GradingConfig(timeout_s=20.0)
HASTY = GradingConfig(timeout_s=1.0)
NUMBER = GradingConfig(timeout_s=1.0, rule="last_number")


def cases() -> dict[str, list[dict[str, str]]]:
    """The rows of the table by their form."""
    forms = defaultdict(list)
    with Path(__file__).with_name("grading_cases.tsv").open(newline="") as file:
        for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            forms[row["form"]].append(row)
    return dict(forms)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def grader():
    async with Grader() as grader:
        yield grader


@pytest.mark.parametrize("form", sorted(cases()))
async def test_answers_of_the_table(grader: Grader, form: str):
    got = {}
    for row in cases()[form]:
        parts = (await grader.grade([f"So \\boxed{{{row['answer']}}}."], row["gold"], BOXED)).parts
        found = {"correct": "right", "unevaluated": "unevaluated"}
        got[row["gold"], row["answer"]] = next((found[part] for part in found if parts[part]), "wrong")
    assert got == {(row["gold"], row["answer"]): row["verdict"] for row in cases()[form]}


PIECES = (
    *(
        r"\frac{",
        "}{",
        "}",
        r"\sqrt{",
        "0",
        "1/0",
        r"\infty",
        "i",
        "=",
        ",",
        "(",
        ")",
        "[",
        "]",
        r"\left",
        r"\text{",
        r"\%",
    ),
    *(
        "^",
        "_",
        "**",
        "e5",
        r"\circ",
        r"\{",
        r"\}",
        r"\mid",
        "<",
        r"\le",
        r"\cdot",
        "!",
        "|",
        "oo",
        "-",
        "...",
        ":",
        "0.0",
    ),
    *(r"\lim", r"\int", r"\begin{pmatrix}", r"\end{pmatrix}", "&", r"\\", r"\binom{"),
)


async def test_no_text_is_a_fault_of_the_grader(grader: Grader):
    """Answers of the table, cut and mixed: a fault would raise GradingError."""
    random = Random(5)
    rows = [row for rows in cases().values() for row in rows]
    for _ in range(300):
        answer, gold = random.choice(rows)["answer"], random.choice(rows)["gold"]
        for _ in range(random.randint(1, 4)):
            cut = random.randint(0, len(answer))
            piece = random.choice((*PIECES, random.choice(rows)["answer"][cut:]))
            answer = answer[:cut] + piece + answer[cut + random.randint(0, 2) :]
        for config in (HASTY, NUMBER):
            if config is HASTY or as_number(gold) is not None:
                grade = await grader.grade(
                    [f"{answer} \\boxed{{{answer}}}"], gold, config, problem=f"Is it ${answer}$?"
                )
                assert 0 <= grade.reward <= 1


def test_the_table_is_large_and_has_near_misses_for_each_form():
    assert sum(map(len, cases().values())) >= 1600
    for form, rows in cases().items():
        verdicts = [row["verdict"] for row in rows]
        assert set(verdicts) <= {"right", "wrong", "unevaluated"}, form
        assert "right" in verdicts, form
        assert "wrong" in verdicts, form

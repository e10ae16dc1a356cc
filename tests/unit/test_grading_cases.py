"""The table of answers beside this file: what is right, what is wrong, and what equals the gold answer and is no result."""

import csv
from collections import defaultdict
from pathlib import Path

import pytest
import pytest_asyncio

from configs.tasks import GradingConfig
from grading.grader import Grader

BOXED = GradingConfig(timeout_s=20.0)


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


def test_the_table_is_large_and_has_near_misses_for_each_form():
    assert sum(map(len, cases().values())) >= 1300
    for form, rows in cases().items():
        verdicts = [row["verdict"] for row in rows]
        assert set(verdicts) <= {"right", "wrong", "unevaluated"}, form
        assert "right" in verdicts, form
        assert "wrong" in verdicts, form

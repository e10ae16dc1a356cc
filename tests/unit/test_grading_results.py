"""Copying is no answer: what stands in the problem as it is, and what still has to be computed."""

import json
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
import pytest_asyncio

from configs.tasks import GradingConfig
from grading.answers import plain, plain_number
from grading.grader import Grader
from grading.numerals import numeral
from grading.results import is_copy
from tests.unit.answers import variants

DATA = Path(__file__).parents[3] / "shared" / "data"
BOXED = GradingConfig(timeout_s=20.0)
HASTY = GradingConfig(timeout_s=2.0)
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the measured problem sets are not on this machine")


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def grader():
    async with Grader() as grader:
        yield grader


@pytest.mark.parametrize(
    ("problem", "gold", "answer", "verdict"),
    [
        (r"Simplify $\sqrt{242}$.", r"11\sqrt2", r"\sqrt{242}", "unevaluated"),
        (r"Simplify $\sqrt{242}$.", r"11\sqrt2", r"\sqrt {242}", "unevaluated"),
        (r"Simplify $\sqrt{242}$.", r"11\sqrt2", r"11\sqrt{2}", "correct"),
        (r"Simplify $\sqrt{2420}$.", r"11\sqrt2", r"\sqrt{242}", "correct"),
        (r"Factor $ab+5b+2a+10$.", "(a+5)(b+2)", "ab + 5b + 2a + 10", "unevaluated"),
        (r"Factor $ab+5b+2a+10$.", "(a+5)(b+2)", "(b+2)(a+5)", "correct"),
        (r"Expand $(x+1)(x-1)$.", "x^2-1", r"\left(x+1\right)\left(x-1\right)", "unevaluated"),
        (r"Expand $(x+1)(x-1)$.", "x^2-1", "x^2 - 1", "correct"),
        ("Expand (x+1)*(x-1), please", "x^2-1", "(x+1)*(x-1)", "unevaluated"),
        (r"Write $\frac{3}{20}$ as a decimal.", "0.15", r"\dfrac{3}{20}", "unevaluated"),
        (r"Write $\frac{3}{20}$ as a decimal.", "0.15", ".150", "correct"),
        (r"Write $75\%$ as a fraction.", r"\frac{3}{4}", r"75\%", "unevaluated"),
        (r"Write $75\%$ as a fraction.", r"\frac{3}{4}", "3/4", "correct"),
        (r"Reduce $\frac{84}{126}$.", r"\frac{2}{3}", r"\frac{84}{126}", "unevaluated"),
        (r"Is it $\frac{3}{4}$ or 3/5?", r"\frac{3}{4}", "3/4", "correct"),
        (r"Solve $x^2 - 5x - 4 \le 10$.", r"[-2, 7]", r"x^2 - 5x - 4 \le 10", "neither"),
        # Notation makes no other formula of it.
        (r"Simplify $\sqrt{242}$.", r"11\sqrt2", r"+\sqrt{242}", "unevaluated"),
        (r"Simplify $\sqrt{242}$.", r"11\sqrt2", r"(\sqrt{242})", "unevaluated"),
        (r"Simplify $\sqrt{242}$.", r"11\sqrt2", r"x = \sqrt{242}", "unevaluated"),
        (r"Simplify $\sqrt{242}$.", r"11\sqrt2", r"\sqrt{242} \cdot 1", "unevaluated"),
        (r"Simplify $\sqrt{242}$.", r"11\sqrt2", r"\sqrt{242} + 0", "unevaluated"),
        (r"Write $\frac{3}{20}$ as a decimal.", "0.15", "3/20", "unevaluated"),
        (r"Write $\frac{3}{20}$ as a decimal.", "0.15", r"+\cfrac{6}{40}", "unevaluated"),
        (r"Write $\frac{3}{20}$ as a decimal.", "0.15", r"\frac{-3}{-20}", "unevaluated"),
        ("Write 3/20 as a decimal.", "0.15", r"\frac{3}{20}", "unevaluated"),
        (r"Rationalize $\frac{1}{\sqrt{3}}$.", r"\frac{\sqrt{3}}{3}", r"1/\sqrt{3}", "unevaluated"),
        (r"Expand $(x+1)(x-1)$.", "x^2-1", r"(x+1)\cdot(x-1)", "unevaluated"),
        (r"Expand $(x+1)(x-1)$.", "x^2-1", "((x+1)*(x-1))", "unevaluated"),
        ("What is $10^3$?", "1000", "10^3", "unevaluated"),
        ("What is $10^3$?", "1000", "10**3", "unevaluated"),
        ("What is $10^3$?", "1000", "1000", "correct"),
        # The gold answer's own text stands there.
        (r"Which is larger, $\sqrt{5}$ or $2$?", r"\sqrt{5}", r"\sqrt{5}", "correct"),
        (r"What is $\sqrt{53}$ in simplest radical form?", r"\sqrt{53}", r"\sqrt{53}", "correct"),
        (r"(A) Line (B) Circle $\textbf{(C)}\ $ Plane", r"\text{(C)}", "(C)", "correct"),
        ("Is 12 larger than 13?", "13", "13", "correct"),
        ("Tom pays 1,200 dollars.", "1200", "1,200", "correct"),
        # A figure is drawn, not told.
        ("How likely? [asy]draw((0.5,1)); [/asy]", r"\frac{1}{2}", "0.5", "correct"),
        ("How likely is it to be below 0.5?", r"\frac{1}{2}", "0.5", "unevaluated"),
        (r"Compute $\frac{-3+4i}{1+2i}$.", "1+2i", r"\frac{-3+4i}{1+2i}", "unevaluated"),
        (r"It falls by $20\%$. What is the change in percent?", "20", r"20\%", "correct"),
        # What the problem asks for may stand on the left; an equation of the problem is no answer.
        ("Find $m+n$.", "90", "m+n = 90", "correct"),
        ("Compute $AB^2$.", "90", "AB^2 = 90", "correct"),
        ("Compute $AB^2$.", "90", "AB^3 = 90", "unevaluated"),
        ("Solve $x^2 = 90$.", "90", "x^2 = 90", "unevaluated"),
        # Solutions that the problem wants separated by commas are no thousands.
        ("Enter all solutions, separated by commas.", "70,110", "110, 70", "correct"),
        ("Enter all solutions, separated by commas.", "70,110", "70110", "neither"),
        ("How many are there?", "70,110", "70110", "correct"),
        # Without a problem's text nothing is a copy.
        ("", r"11\sqrt2", r"\sqrt{242}", "correct"),
    ],
)
async def test_what_the_problem_says_already_is_no_answer(grader, problem: str, gold: str, answer: str, verdict: str):
    grade = await grader.grade([f"\\boxed{{{answer}}}"], gold, BOXED, problem=problem)
    parts = {part: grade.parts[part] for part in ("correct", "unevaluated")}
    assert parts == {part: float(part == verdict) for part in parts}
    assert grade.reward == float(verdict == "correct")


async def test_a_last_number_is_no_copy_either(grader: Grader):
    config = GradingConfig(rule="last_number")
    told = r"Write $\frac{3}{20}$ as a decimal."
    assert (await grader.grade([r"\boxed{\frac{3}{20}}"], "0.15", config, problem=told)).parts["unevaluated"] == 1
    assert (await grader.grade([r"\boxed{0.15}"], "0.15", config, problem=told)).reward == 1


FORMULA = re.compile(r"\$\$(.+?)\$\$|\$(.+?)\$|\\\[(.+?)\\\]|\\\((.+?)\\\)", re.DOTALL)


def formulas(problem: str) -> Iterator[str]:
    """The formulas of a problem, and the sides of those that are relations or lists; no bare numbers and letters."""
    for match in FORMULA.finditer(problem):
        formula = next(filter(None, match.groups())).strip()
        for part in (formula, *re.split(r"=|,|\\\\|&|\\le|\\ge|<|>", formula)):
            text = part.strip().rstrip(".,?")
            if text and len(text) < 400 and not re.fullmatch(r"[-\d.,]*|[A-Za-z]", text):
                yield text


@needs_data
@pytest.mark.slow
@pytest.mark.parametrize(("name", "refused"), [("math500", 30), ("math_train", 20)])
async def test_copying_earns_only_where_the_gold_answer_stands_in_the_problem(grader, name: str, refused: int):
    """Takes 500 problems, and every formula of their statements as an answer."""
    earned, unevaluated = [], set()
    with (DATA / f"{name}.jsonl").open() as lines:
        problems = [json.loads(line) for line in islice(lines, 500)]
    for problem in problems:
        text, gold = problem["problem"], problem["answer"]
        for formula in dict.fromkeys(formulas(text)):
            parts = (await grader.grade([f"\\boxed{{{formula}}}"], gold, HASTY, problem=text)).parts
            if parts["unevaluated"]:
                unevaluated.add(problem["id"])
            if parts["correct"] and plain_number(plain(gold)) not in plain(text):
                earned.append((gold, formula))
    assert earned == []
    assert len(unevaluated) >= refused


@needs_data
@pytest.mark.parametrize("name", ["aime24", "aime25", "gsm8k_test", "math500", "math_train"])
def test_no_right_answer_in_usual_form_is_taken_for_a_copy(name: str):
    lost = []
    with (DATA / f"{name}.jsonl").open() as lines:
        for problem in map(json.loads, islice(lines, 0, None, 4 if name == "math_train" else 1)):
            gold = plain(problem["answer"])
            for variant in variants(problem["answer"]):
                if "frac" in variant and "." in gold:
                    # "Write 3/20 as a decimal": 6/40 is none.
                    continue
                answer = plain(variant)
                answer = plain_number(answer) if numeral(gold) else answer
                if is_copy(answer, gold, problem["problem"]):
                    lost.append((problem["id"], variant))
    assert lost == []

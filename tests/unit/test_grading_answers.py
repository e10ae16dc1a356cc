"""The gold answers of MATH-500, AIME and GSM8K as models write them, with near misses beside them."""

import json
import re
from pathlib import Path

import pytest

from configs.tasks import GradingConfig
from grading.answers import equal_at_sight, plain
from grading.grader import Grader
from tests.unit.answers import near_misses, variants

PARTS = 9
DATA = Path(__file__).parents[3] / "shared" / "data"
BOXED = GradingConfig(timeout_s=20.0)


def gold_answers(part: int) -> list[str]:
    """A share of the answers of MATH-500 that are no whole numbers, and a sample of those that are, of all sets."""

    def read(name: str) -> list[str]:
        with (DATA / f"{name}.jsonl").open() as lines:
            return list(dict.fromkeys(json.loads(line)["answer"] for line in lines))

    math = read("math500")
    whole = [answer for answer in math if re.fullmatch(r"-?\d+", answer)]
    others = [answer for answer in math if answer not in whole]
    numbers = whole + read("aime24") + read("aime25") + read("gsm8k_test")
    return list(dict.fromkeys(others[part::PARTS] + numbers[part :: 7 * PARTS]))


@pytest.mark.skipif(not DATA.is_dir(), reason="the problem sets in ../shared/data are not on this machine")
@pytest.mark.parametrize("part", [0, *(pytest.param(part, marks=pytest.mark.slow) for part in range(1, PARTS))])
async def test_usual_variants_are_accepted_and_near_misses_are_not(part: int):
    rejected, accepted, right = [], [], 0
    async with Grader() as grader:
        for gold in gold_answers(part):
            for answer in dict.fromkeys(variants(gold)):
                right += 1
                if (await grader.grade([f"So \\boxed{{{answer}}}."], gold, BOXED)).reward != 1:
                    rejected.append((gold, answer))
            for answer in dict.fromkeys(near_misses(gold)):
                if (await grader.grade([f"So \\boxed{{{answer}}}."], gold, BOXED)).reward != 0:
                    accepted.append((gold, answer))
            # The right output of a tool, and no answer after it.
            turns = [f"```python\nprint({gold!r})\n```", " as the output says."]
            assert (await grader.grade(turns, gold, BOXED)).reward == 0
    assert right >= 150
    assert accepted == []
    assert len(rejected) <= 0.01 * right, rejected


@pytest.mark.parametrize(
    ("answer", "left"),
    [
        (r"\mathbf{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{5}", "5"),
        (r"$\$5$", "5"),
        ("9.", "9"),
        ("9. ", "9"),
        ("9 dollars", "9"),
        ("9 square feet", "9"),
        ("12 cm^2", "12"),
        ("5 or 6", "5 or 6"),
        ("3 million", "3 million"),
        ("50 percent", "50 percent"),
        ("2 pi", r"2 \pi"),
        ("6 xy", "6 xy"),
        ("2 sin theta", "2 sin theta"),
        ("12 sq ft", "12"),
        (r"10,\!080", "10080"),
        ("1{,}234", "1234"),
        (r"1\,234", "1234"),
        ("1,234.5", "1234.5"),
        ("1,234 feet", "1234"),
        ("1,234, 5", "1,234, 5"),
        ("(1,234)", "(1,234)"),
        ("1,23", "1,23"),
        (r"\text{42}", "42"),
        (r"\text{Evelyn}", r"\text{Evelyn}"),
        (r"\mathbf{a}_{1}", "a_{1}"),
        (r"1 \\ 2 \\! 3", r"1 \\ 2 \\! 3"),
        ("x = 5", "5"),
        ("x = y", "x = y"),
        ("{a}}", "{a}}"),
        ("\\", "\\"),
    ],
)
def test_what_is_taken_off(answer: str, left: str):
    assert plain(answer) == left


@pytest.mark.parametrize(
    ("gold", "answer", "verdict"),
    [
        ("1/2", "0.5", True),
        (r"\frac{35}{64}", "0.546875", True),
        (r"\frac{35}{64}", "0.5468751", False),
        (".0000672", ".00006721", False),
        (r"-\frac{1}{2}", "-.50", True),
        (r"\frac13", r"\frac{2}{6}", True),
        (r"\frac13", "0.333333", False),
        ("1", r"\frac{1}{0}", None),
        ("52_8", "52", True),
        ("52_8", "52_{8}", True),
        ("52_8", "52_{9}", False),
        ("52_8", "42", False),
        ("42", "+42", True),
        ("42", "x", None),
    ],
)
def test_numbers_are_compared_exactly(gold: str, answer: str, verdict: bool | None):
    assert equal_at_sight(gold, answer) is verdict


@pytest.mark.parametrize("unit", ["\\mathbf{", "{", "}", "\\", "1,", "1,111,", "9 ab ", "{,}111", " "])
def test_hostile_answers_are_made_plain_in_time(unit: str):
    """At the greatest length that an answer may have; each would take minutes if the work grew out of hand."""
    text = unit * (1000 // len(unit))
    for answer in (text, f"1{text}", f"9 {text}!"):
        equal_at_sight("1", plain(answer))


@pytest.mark.parametrize(
    ("gold", "right", "wrong"),
    [
        (r"\frac{1}{2004!}", r"\frac{1}{2004 \cdot 2003!}", r"\frac{1}{2006!}"),
        (r"\frac{1}{2^{99}}", "2^{-99}", r"\frac{1}{2^{98}}"),
        (r"\left(\frac{1}{2^{99}}, 1\right)", r"(2^{-99}, 1)", r"(2^{-98}, 1)"),
        (r"\left\{1, 2^{-99}\right\}", r"\{\frac{1}{2^{99}}, 1\}", r"\{1, 2^{-98}\}"),
        (r"\left[0, 2^{-99}\right]", r"[0, \frac{1}{2^{99}}]", r"[0, 2^{-98}]"),
        (r"x \ge 2^{-99}", r"x \ge \frac{1}{2^{99}}", r"x \ge 2^{-98}"),
        (r"\sqrt{2}", r"\frac{2}{\sqrt{2}}", "1.41421356"),
        (r"\frac{1}{3}", r"\frac{2}{6}", "0.333333"),
        (r"\left(\frac{1}{2}, 3\right)", "(0.5, 3)", "(0.5000001, 3)"),
        (r"\frac{1+\sqrt{5}}{2}", r"\frac{2}{\sqrt{5}-1}", "1.6180339"),
        ("9", r"9\%", r"9.000001"),
        ("0.0000012", r"1.2 \cdot 10^{-6}", r"1.3 \cdot 10^{-6}"),
        ("x^2+2x+1", "(x+1)^2", "(x+1)^2+2^{-99}"),
    ],
)
async def test_exact_gold_answers_need_exact_answers(gold: str, right: str, wrong: str):
    async with Grader() as grader:
        for answer, correct in ((right, 1.0), (wrong, 0.0)):
            assert (await grader.grade([f"\\boxed{{{answer}}}"], gold, BOXED)).parts["correct"] == correct, answer

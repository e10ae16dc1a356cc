"""Which answers are refused by their text alone, and that usual ones are not."""

import json
from pathlib import Path

import pytest

from grading.choking import MAX_DEPTH, may_choke

DATA = Path(__file__).parents[3] / "shared" / "data"


@pytest.mark.parametrize(
    "answer",
    [
        "9^{9^{9}}",
        "9^9^9",
        r"9^{9^9} + \sqrt{2}",
        "2^{10000000}",
        "2^{-10000000}",
        "x^{9^{9}}",
        "10000000!",
        "(100!)!",
        r"(9999!)^{9999} \cdot 7^{88888}",
        r"\binom{10000000}{5000000}",
        "(x+y+z+w)^{500}",
        r"\left(a-b\right)^{200}",
        "(" * 200 + "x" + ")" * 200,
        r"\sqrt{" * (MAX_DEPTH + 1) + "2" + "}" * (MAX_DEPTH + 1),
    ],
)
def test_what_chokes_is_recognised(answer: str):
    assert may_choke(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "2^{2^{3}}",
        "e^{x^2}",
        "2^{4181}",
        "x^{2018}",
        "10!",
        "(3!)!",
        "(5!)^2",
        r"\frac{1}{2004!}",
        r"\binom{100}{50}",
        r"\binom{100000}{2}",
        "(x+1)^{10}",
        r"\left(1+2\right)^{500}",
        r"1.2 \cdot 10^{-6}",
        "100000000",
        "^",
        "2^",
        "2^{",
        "}}}^2",
        "",
    ],
)
def test_usual_answers_are_not(answer: str):
    assert not may_choke(answer)


@pytest.mark.skipif(not DATA.is_dir(), reason="the problem sets in ../shared/data are not on this machine")
@pytest.mark.parametrize("name", ["aime24", "aime25", "gsm8k_test", "math500", "math_train"])
def test_no_gold_answer_is(name: str):
    with (DATA / f"{name}.jsonl").open() as lines:
        assert [answer for answer in (json.loads(line)["answer"] for line in lines) if may_choke(answer)] == []

"""Grading with real math-verify processes."""

import json
from itertools import islice
from pathlib import Path

import pytest
import pytest_asyncio

from configs.tasks import GradingConfig
from grading.grader import Grader
from grading.reward_function import Call

DATA = Path(__file__).parents[3] / "shared" / "data"
BOXED = GradingConfig(timeout_s=20.0)
NUMBER = GradingConfig(rule="last_number")
WRONG = {"correct": 0.0, "answered": 1.0, "ungradable": 0.0, "unevaluated": 0.0}
RIGHT = {"correct": 1.0, "answered": 1.0, "ungradable": 0.0, "unevaluated": 0.0}
SILENT = {"correct": 0.0, "answered": 0.0, "ungradable": 0.0, "unevaluated": 0.0}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def grader():
    async with Grader() as grader:
        yield grader


@pytest.mark.parametrize(
    ("gold", "answer", "correct"),
    [
        ("42", "42", True),
        ("42", "43", False),
        ("42", "42.0", True),
        ("1/2", "0.5", True),
        (r"\frac{1}{2}", "1/2", True),
        (r"\frac{1}{2}", r"\dfrac{2}{4}", True),
        (r"\frac12", "0.5", True),
        (r"\frac{1}{2}", "0.51", False),
        (r"\frac{3}{4}", r"\frac{4}{3}", False),
        (r"\sqrt{8}", r"2\sqrt{2}", True),
        ("-5", "5", False),
        (r"10,\!080", "10080", True),
        ("10080", "10,080", True),
        (r"\$18", "18", True),
        (r"50\%", "50%", True),
        (r"50\%", "0.5", True),
        (r"50\%", "60%", False),
        (r"\{1,2\}", r"\{2,1\}", True),
        (r"\{1,2\}", r"\{1,2,3\}", False),
        ("1,2", "2, 1", True),
        ("(1,2)", "(1, 2)", True),
        ("(1,2)", "(2,1)", False),
        ("[0,1]", "[0, 1]", True),
        ("[0,1]", "[0,1)", False),
        (r"(-\infty, 3]", r"(-\infty,3]", True),
        ("x^2-1", "(x-1)(x+1)", True),
        ("x^2-1", "x^2+1", False),
        ("5", "x = 5", True),
        ("5", "5, 6", False),
        ("5", "5 or 6", False),
        ("5", "the answer is 5 or 6 or 7", False),
        ("12", r"12\text{ cm}", True),
        (r"90^\circ", "90", True),
        (r"\text{Evelyn}", "Evelyn", True),
        (r"\text{Evelyn}", "Bob", False),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", True),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix} 1 \\ 3 \end{pmatrix}", False),
        ("3+4i", "4i + 3", True),
        (r"\frac{1}{2004!}", r"\frac{1}{2004!}", True),
        ("2^{4181}", "2^{4182}", False),
        ("1", "nan", False),
        ("5", r"\boxed{5}", True),
        ("5", "__import__('os').getpid()", False),
    ],
)
async def test_boxed_answers(grader, gold, answer, correct):
    grade = await grader.grade([f"So it is \\boxed{{{answer}}}."], gold, BOXED)
    assert grade.parts == (RIGHT if correct else WRONG)
    assert grade.reward == float(correct)


@pytest.mark.parametrize(
    ("turns", "parts"),
    [
        ([r"\boxed{41}, no: \boxed{42}"], RIGHT),
        ([r"\boxed{42}, no: \boxed{41}"], WRONG),
        ([r"\boxed{42} and unfinished \boxed{41"], SILENT),
        (["```python\nprint(42)\n```", r"It is \boxed{42}."], RIGHT),
        ([r"I guess \boxed{42} ```python" + "\nprint(41)\n```", " fine."], RIGHT),
        # A program that printed the right number, and no answer after it.
        (["```python\nprint(42)\n```", " as the output says."], SILENT),
        (["```python\nprint(r'\\boxed{42}')\n```", ""], SILENT),
        (["```python\n# \\boxed{42}"], SILENT),
        (["```output\n\\boxed{42}\n```"], SILENT),
        (["```python\nprint(42)\n```output\n\\boxed{42}\n``` done"], SILENT),
        # Two turns never join.
        (["\\boxed{4", "2}"], SILENT),
        (["\\boxed{", "42}"], SILENT),
        (["\\box", "ed{42}"], SILENT),
        (["\\boxed{```python\nprint(42)\n```", "42}"], SILENT),
        (["42"], SILENT),
        ([r"\boxed{}"], SILENT),
        ([], SILENT),
    ],
)
async def test_where_a_box_counts(grader, turns, parts):
    assert (await grader.grade(turns, "42", BOXED)).parts == parts


@pytest.mark.parametrize(
    ("turns", "parts"),
    [
        ([r"</think> <answer>\boxed{42}</answer>"], RIGHT),
        ([r"\boxed{42}</think> <answer>forty-two</answer>"], SILENT),
        ([r"\boxed{42}"], SILENT),
        ([r"<answer>\boxed{42}"], SILENT),
        ([r"<answer>\boxed{42}</answer> <answer>\boxed{41}</answer>"], WRONG),
        (["<answer> ```python\nprint(42)\n```", r"\boxed{42}</answer>"], RIGHT),
        (["<answer>\\boxed{4", "2}</answer>"], SILENT),
        (["```python\n'<answer>\\boxed{42}</answer>'\n```"], SILENT),
    ],
)
async def test_only_inside_the_answer_tag(grader, turns, parts):
    assert (await grader.grade(turns, "42", GradingConfig(answer_tag=True, timeout_s=20.0))).parts == parts


@pytest.mark.parametrize(
    ("turns", "gold", "parts"),
    [
        (["23 * 45 = 1035."], "1035", RIGHT),
        (["It is 1,035"], "1035", RIGHT),
        (["It is 1035.0"], "1,035", RIGHT),
        (["It is -1035"], "1035", WRONG),
        (["1035, not 1036"], "1035", WRONG),
        (["```python\nprint(23*45)\n```", "The answer is 1035"], "1035", RIGHT),
        (["First 12. ```python\nprint(1035)\n```", " That is it."], "1035", WRONG),
        (["```python\nprint(1035)\n```", ""], "1035", SILENT),
        (["```python\nprint(1035)\n```output\n1035\n```"], "1035", SILENT),
        (["10", "35"], "1035", WRONG),
        ([r"\boxed{12}. Checked in 2 ways."], "12", RIGHT),
        ([r"\boxed{12}. Checked in 2 ways."], "2", WRONG),
        ([r"\boxed{12}, no, \boxed{13} of 20"], "13", RIGHT),
        ([r"\boxed{3 * 4 = 12} (2 factors)"], "12", RIGHT),
        ([r"\boxed{1{,}035} and \boxed{1035 cm^2}, to 3 digits"], "1035", RIGHT),
        ([r"\boxed{12 and so on, the answer is 7"], "7", RIGHT),
        ([r"\boxed{no number}, 12"], "12", SILENT),
        ([r"\boxed{" + "1" * 1001 + "} 5"], "5", SILENT),
        ([r"\boxed{1", "2} 7"], "7", RIGHT),
        # What is no plain number in the box is evaluated or unanswered.
        ([r"\boxed{\frac{7}{2}}"], "2", WRONG),
        ([r"\boxed{\frac{7}{2}}"], "3.5", RIGHT),
        ([r"\boxed{2^{10}}"], "10", SILENT),
        ([r"\boxed{2^{10}}"], "1024", SILENT),
        ([r"\boxed{120 \text{ m}^2}"], "2", WRONG),
        ([r"\boxed{120 \text{ m}^2}"], "120", RIGHT),
        ([r"\boxed{12 \text{ or } 13}"], "13", SILENT),
        ([r"\boxed{\frac{84}{2}}"], "42", {**WRONG, "unevaluated": 1.0}),
        ([r"\boxed{3.2e-05}"], "0.000032", RIGHT),
        ([r"\boxed{50\%}"], "50", RIGHT),
        (["It is 1e-05"], "0.00001", RIGHT),
        (["It is 1e-05"], "5", WRONG),
        (["It is 1.5e6"], "6", WRONG),
        (["It is 7²"], "7", SILENT),
        ([], "1035", SILENT),
    ],
)
async def test_last_number_rule(grader, turns, gold, parts):
    assert (await grader.grade(turns, gold, NUMBER)).parts == parts


async def test_last_number_inside_the_answer_tag(grader):
    config = GradingConfig(rule="last_number", answer_tag=True)
    assert (await grader.grade(["41 <answer>42</answer> 43"], "42", config)).parts == RIGHT
    assert (await grader.grade(["42"], "42", config)).parts == SILENT


@pytest.mark.parametrize(
    ("turns", "config", "count"),
    [
        (["```python\nprint(42)\n```", r"So \boxed{42}."], BOXED, 0),
        (["```python\nprint(42)\n```", "So it is."], BOXED, 1),
        (["I think", "and think"], BOXED, 2),
        (["```python\nprint(42)"], BOXED, 1),
        (["```python\n'\\boxed{42}'"], BOXED, 1),
        (["```output\n\\boxed{42}\n```"], BOXED, 1),
        ([r"<answer>\boxed{", "42}</answer>"], BOXED, 2),
        ([r"\boxed{42}"], GradingConfig(answer_tag=True), 0),
        (["42"], BOXED, 1),
        (["42"], NUMBER, 0),
        (["forty-two"], NUMBER, 1),
        ([], BOXED, 0),
    ],
)
async def test_void_turns(grader, turns, config, count):
    assert (await grader.grade(turns, "42", config)).void_turns == count


async def test_whether_the_code_was_used_is_told_where_there_are_calls(grader):
    turns = ["```python\nprint(42)\n```", r"So \boxed{42}."]
    printed = {output: [Call("", output, "exited", success=True, error="", seconds=0.1)] for output in ("41", "42")}
    assert not (await grader.grade(turns, "42", BOXED, printed["42"])).code_unused
    assert (await grader.grade(turns, "42", BOXED, printed["41"])).code_unused
    assert not (await grader.grade(turns, "42", BOXED)).code_unused
    assert not (await grader.grade([turns[0], ""], "42", BOXED, printed["41"])).code_unused


TAGGED = r"</think> <answer>\boxed{42}</answer>"


@pytest.mark.parametrize(
    ("turns", "changes", "reward", "parts"),
    [
        ([TAGGED], {"format_penalty": 0.5, "answer_tag": True}, 1.0, {"format_penalty": 0.0}),
        ([TAGGED + "<|im_end|>"], {"format_penalty": 0.5, "answer_tag": True}, 1.0, {"format_penalty": 0.0}),
        ([r"<answer>\boxed{42}</answer>"], {"format_penalty": 0.5, "answer_tag": True}, 0.5, {"format_penalty": -0.5}),
        ([TAGGED + " and"], {"format_penalty": 0.5, "answer_tag": True}, 0.5, {"format_penalty": -0.5}),
        ([TAGGED * 2], {"format_penalty": 0.5, "answer_tag": True}, 0.5, {"format_penalty": -0.5}),
        ([r"\boxed{42}"], {"format_penalty": 0.5}, 1.0, {"format_penalty": 0.0}),
        (["42"], {"format_penalty": 0.5}, -0.5, {"format_penalty": -0.5}),
        (["42"], {"unparsable_penalty": 1.0}, -1.0, {"unparsable_penalty": -1.0}),
        ([r"\boxed{???}"], {"unparsable_penalty": 1.0}, -1.0, {"unparsable_penalty": -1.0}),
        ([r"\boxed{41}"], {"unparsable_penalty": 1.0}, 0.0, {"unparsable_penalty": 0.0}),
        ([r"\boxed{x+1}"], {"unparsable_penalty": 1.0}, 0.0, {"unparsable_penalty": 0.0}),
        # What chokes the grader earns 0, whatever else is taken off.
        ([r"\boxed{9^{9^{9^{9}}}}"], {"unparsable_penalty": 1.0}, 0.0, {"unparsable_penalty": 0.0, "ungradable": 1.0}),
        (["42"], {"rule": "last_number", "unparsable_penalty": 1.0}, 1.0, {"unparsable_penalty": 0.0}),
        (["none"], {"rule": "last_number", "unparsable_penalty": 1.0}, -1.0, {"unparsable_penalty": -1.0}),
    ],
)
async def test_penalties_are_parts_of_their_own(grader, turns, changes, reward, parts):
    grade = await grader.grade(turns, "42", GradingConfig(timeout_s=20.0, **changes))
    assert grade.reward == reward
    assert {part: grade.parts[part] for part in parts} == parts
    assert set(grade.parts) - set(RIGHT) == {part for part in parts if part.endswith("_penalty")}


@pytest.mark.parametrize(
    ("length", "truncated", "tokens", "penalty"),
    [
        (80, False, 20, 0.0),
        (90, False, 20, 0.25),
        (100, False, 20, 0.5),
        (90, True, 20, 0.5),  # its next piece of output did not fit
        (99, False, 0, 0.0),
        (100, True, 0, 0.5),
    ],
)
async def test_the_overlong_penalty_grows_to_the_limit(grader, length, truncated, tokens, penalty):
    config = GradingConfig(timeout_s=20.0, overlong_penalty=0.5, overlong_tokens=tokens)
    grade = (await grader.grade([r"\boxed{42}"], "42", config)).with_length(length, 100, truncated, config)
    assert grade.parts["overlong_penalty"] == -penalty
    assert grade.reward == 1 - penalty


@pytest.mark.parametrize(
    ("turns", "config", "answer"),
    [
        ([r"\boxed{41} \boxed{ 42 }"], BOXED, "42"),
        (["42"], BOXED, None),
        (["1,042"], NUMBER, "1042"),
        (["x"], NUMBER, None),
    ],
)
async def test_what_was_taken_for_the_answer_is_told(grader, turns, config, answer):
    assert (await grader.grade(turns, "42", config)).answer == answer


@pytest.mark.skipif(not DATA.is_dir(), reason="the measured problem sets are not on this machine")
@pytest.mark.parametrize("name", ["aime24", "aime25", "gsm8k_test", "math500", "math_train"])
async def test_gold_answers_equal_themselves(grader, name):
    with (DATA / f"{name}.jsonl").open() as lines:
        answers = [json.loads(line)["answer"] for line in islice(lines, 0, None, 1 if "aime" in name else 5)][:100]
    assert len(answers) >= 30
    grades = [await grader.grade([f"\\boxed{{{answer}}}"], answer, BOXED) for answer in answers]
    assert [answer for answer, grade in zip(answers, grades, strict=True) if grade.reward != 1] == []


@pytest.mark.parametrize(
    ("text", "gold", "correct"),
    [
        # The last box that was begun counts, whatever it is called, and only if it is whole.
        (r"\fbox{42}", "42", True),
        (r"\boxed{7}, no: \fbox{42}", "42", True),
        (r"\boxed{12} or rather \boxed{13", "12", False),
        (r"\boxed{12} or rather \boxed{}", "12", False),
        (r"\boxed{12} or rather \fbox{", "12", False),
        # Boxes that are listed are one answer.
        (r"\boxed{1}, \boxed{2}", "1,2", True),
        (r"$\boxed{1}$ and $\boxed{2}$", "1,2", True),
        (r"\boxed{1}, \boxed{2}, and \boxed{3}", "1,2,3", True),
        (r"\boxed{2}, \boxed{1}", "(1,2)", False),
        (r"\boxed{41} or \boxed{42}", "42", False),
        ("\\boxed{42}\n\n\\boxed{42}", "42", True),
        (r"(a) \boxed{41}, (b) \boxed{42}", "42", True),
    ],
)
async def test_which_box_is_the_answer(grader, text, gold, correct):
    assert (await grader.grade([text], gold, BOXED)).parts["correct"] == correct

"""What counts as the model's own text, and the answer in it."""

from decimal import Decimal

import pytest

from grading.text import BREAK, as_number, last_boxed, last_number, last_tagged, own_text, strip_code


@pytest.mark.parametrize(
    ("text", "stripped"),
    [
        ("no code", "no code"),
        ("a```python\nx = 1\n```b", "a\nb"),
        ("a```python\nx = 1", "a\n"),
        ("a```python3\nx = 1\n```b", "a\nb"),
        ("a```Python\nx = 1\n```b", "a\nb"),
        ("a```output\n42\n```b", "a\nb"),
        ("a```output\n42", "a\n"),
        ("```python\nx\n```b```python\ny\n```c", "\nb\nc"),
        # The closing fence of the code is at once the opening one of output that the model made up.
        ("a```python\nprint(42)\n```output\n42\n```b", "a\n\nb"),
        ("a```output\n42\n```python\nprint(43)\n```b", "a\n\nb"),
        ("a```output\n42\n```python", "a\n\n"),
        ("own ```text``` stays", "own ```text``` stays"),
        # What Markdown calls a fenced block, whether or not it is run.
        ("a\n``` python\n# x\n```\nb", "a\n\n\nb"),
        ("a\n```py x\n```\nb", "a\n\n\nb"),
        ("a\n```PYthon\nx\n```\nb", "a\n\n\nb"),
        ("a\n~~~python\nx\n~~~\nb", "a\n\n\nb"),
        ("a\n```\nx\n```\nb", "a\n\n\nb"),
        ("a\n````latex\n```\nx\n````\nb", "a\n\n\nb"),
        ("a\n~~~\n```\n~~~ x\n~~~~\nb", "a\n\n\nb"),
        ("- a\n  ```sh\n  x\n  ```\nb", "- a\n\n\nb"),
        ("> 1. ```sh\n> x\n> ```\nb", "\n\nb"),
        ("a\n```\nx", "a\n\n"),
        ("a\n~~~\n```python\nx\n```\nb", "a\n\n"),
        ("a\n```json\n1\n```\nb```python\nx\n```c\n```\nd\n```\ne", "a\n\n\nb\nc\n\n\ne"),
        # These are text.
        ("``\nx\n``", "``\nx\n``"),
        ("```a`b\nx", "```a`b\nx"),
        ("a ``` b\n", "a ``` b\n"),
        ("a ~~~\nb", "a ~~~\nb"),
    ],
)
def test_strip_code(text, stripped):
    assert strip_code(text) == stripped


def test_own_text_keeps_pieces_apart():
    assert own_text(["a```python\nx\n```", "b```output\ny"]) == f"a{BREAK}{BREAK}b{BREAK}"


@pytest.mark.parametrize(
    ("text", "box"),
    [
        (r"\boxed{5}", "5"),
        (r"so \boxed{5} and then \boxed{6}.", "6"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\boxed{5}}", "5"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\left\{ 1 \right.}", r"\left\{ 1 \right."),
        (r"\boxed {7}", "7"),
        (r"\\boxed{7}", "7"),
        (r"\boxed{5} but \boxed{6", None),
        (r"\boxed{5} but \boxed{6} and {", "6"),
        (r"\boxed{5} but \fbox{6}", "6"),
        (r"\boxed{5},\quad \boxed{6}", "5, 6"),
        (r"\boxed{4} \boxed{5}; or \boxed{6}", "5, 6"),
        (r"\boxed{x \boxed{5}}, \boxed{6}", "6"),
        (r"{ \boxed{5}", "5"),
        (r"} \boxed{5}", "5"),
        (r"\boxed{}", ""),
        (r"\boxed{5", None),
        (r"\boxed 5", None),
        ("5", None),
        ("\\boxed{4\0" + "2}", None),
        ("\\boxed{4\0" + r"2} \boxed{7}", "7"),
    ],
)
def test_last_boxed(text, box):
    assert last_boxed(text) == box


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        ("<answer>5</answer>", "5"),
        ("<answer>5</answer> <answer>6</answer>", "6"),
        ("<answer>5</answer> <answer>6", "5"),
        ("<answer>5", None),
        ("5</answer>", None),
        ("</answer>5<answer>", None),
        ("", None),
    ],
)
def test_last_tagged(text, inside):
    assert last_tagged(text) == inside


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("The answer is 42.", "42"),
        ("x = -5", "-5"),
        ("x=-5", "-5"),
        ("$-5$", "-5"),
        ("it is −5", "-5"),
        ("7-5", "5"),
        ("7 - 5", "5"),
        ("(3)-5", "5"),
        ("1,234", "1234"),
        ("1,234,567.", "1234567"),
        ("1, 234", "234"),
        ("1,2345", "2345"),
        ("1234,567", "567"),
        ("3.50", "3.5"),
        ("1,234.5", "1234.5"),
        (".5", "0.5"),
        ("... 5...", "5"),
        ("**1035**", "1035"),
        (r"\boxed{1035}", "1035"),
        ("23 * 45 = 1035, as asked", "1035"),
        ("007", "7"),
        # As Python prints them.
        ("1e-05", "0.00001"),
        ("it is 3.2e-05.", "0.000032"),
        ("1.5e6", "1500000"),
        ("1e+06", "1000000"),
        ("2E3", "2000"),
        ("5e", "5"),
        # A part of a formula is no number of its own.
        ("7²", None),
        ("2^{10}", None),
        ("2^10", None),
        (r"\frac{7}{2}", None),
        ("7/2", None),
        ("x_1", None),
        ("It is 5!", "5"),
        ("2*42", None),
        ("2 * 42", None),
        ("7**42", None),
        (r"2 \cdot 42", None),
        (r"\sqrt{42}", None),
        ("sqrt(42)", None),
        ("84 ÷ 2", None),
        ("42 million", None),
        ("42k", None),
        ("42i", None),
        ("* 42", "42"),
        ("**42**", "42"),
        ("42 km", "42"),
        ("2 * 21 = 42", "42"),
        ("1/2, so 3", "3"),
        ("3 or 2^5 = 32", "32"),
        ("٣", None),
        ("none", None),
        ("", None),
    ],
)
def test_last_number(text, number):
    assert last_number(text) == (None if number is None else Decimal(number))


def test_numbers_are_exact():
    assert last_number("0.1") == Decimal("0.10")
    assert last_number("0.1") != last_number("0.1000000000000000055511151231257827")
    assert last_number("9" * 5000 + "1") != last_number("9" * 5000 + "2")
    assert last_number("100000000000000000000000000000001") != last_number("100000000000000000000000000000002")


@pytest.mark.parametrize(("text", "number"), [(" 1,234 ", 1234), ("-2", -2), ("3 apples", None), ("1/2", None)])
def test_as_number(text, number):
    assert as_number(text) == number


@pytest.mark.parametrize(
    "unit", ["```", "```python", "<answer>", "\\boxed{", "\\boxed ", "\\", "{", "}", "1,", "1,111,", "-", "9", "."]
)
def test_hostile_repetition_is_read_to_its_end(unit):
    """Each would take minutes (the limit of a test) if a scan were quadratic: 2 million characters."""
    text = own_text([unit * (2_000_000 // len(unit))])
    last_tagged(text + "</answer>")
    last_boxed(text)
    last_number(text)

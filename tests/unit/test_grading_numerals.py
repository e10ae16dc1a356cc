"""Numbers that are written out, and answers as Python prints them."""

from fractions import Fraction

import pytest

from grading.intervals import as_range, without_variable
from grading.numerals import Numeral, number, numeral
from grading.printed import as_latex


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("42", 42),
        ("-42", -42),
        ("+.5", Fraction(1, 2)),
        ("5.", 5),
        ("1e3", 1000),
        ("1.5E-2", Fraction(3, 200)),
        (r"\frac{1}{3}", Fraction(1, 3)),
        (r"-\dfrac 13", Fraction(-1, 3)),
        (r"\frac{-1}{3}", Fraction(-1, 3)),
        ("7 / 2", Fraction(7, 2)),
        (r"3\frac{1}{2}", Fraction(7, 2)),
        ("-3 1/2", Fraction(-7, 2)),
        (r"2 \times 10^{-3}", Fraction(1, 500)),
        ("10^4", 10000),
        (r"0.1\overline{6}", Fraction(1, 6)),
        ("1.(3)", Fraction(4, 3)),
        # These are none.
        ("", None),
        (".", None),
        ("1,000", None),
        ("1 000", None),
        (r"\frac{1}{0}", None),
        ("1/0", None),
        (r"3\frac{-1}{2}", None),
        ("2 + 3", None),
        ("2^3", None),
        ("x", None),
        ("1e", None),
        ("1e1000000000", None),
        ("10^{99999}", None),
        ("٣", None),
        ("1/2/3", None),
        ("--1", None),
    ],
)
def test_numbers_that_are_written_out(text: str, value: Fraction | int | None):
    assert number(text) == value


def test_percentages_and_divisions_are_marked():
    assert numeral(r"12.5\%") == Numeral(Fraction(25, 2), percent=True, digits=3)
    assert numeral("50 percent") == Numeral(Fraction(50), percent=True)
    assert number(r"50\%") is None
    assert numeral("84/2") == Numeral(Fraction(42), divided=True)
    assert numeral("3.14159") == Numeral(Fraction(314159, 100000), digits=6)


@pytest.mark.parametrize(
    ("answer", "gold", "equal"),
    [
        ("50%", "0.5", True),
        ("0.5", "50%", True),
        ("50%", "50", True),
        ("5000%", "50%", False),
        ("0.30000000000000004", "0.3", True),
        ("0.3000000000001", "0.3", False),
        ("1e16", "10000000000000001", False),
        ("12345678901234567.0", "12345678901234568", False),
    ],
)
def test_which_numbers_are_equal(answer: str, gold: str, equal: bool):
    found, written = numeral(answer), numeral(gold)
    assert found is not None
    assert written is not None
    assert found.equals(written) is equal


@pytest.mark.parametrize(
    ("printed", "latex"),
    [
        ("Fraction(1, 3)", r"\frac{1}{3}"),
        ("-Rational(1, 3)", r"-\frac{1}{3}"),
        ("x**2 + 1", "x^{2} + 1"),
        ("x**(n + 1)", "x^{n + 1}"),
        ("sqrt(x**2 + (y + 1))/2", r"\sqrt{x^{2} + (y + 1)}/2"),
        ("exp(2*x)", "e^{2*x}"),
        ("Abs(x)", "|x|"),
        ("log(2)", r"\ln(2)"),
        ("pi/4", r"\pi /4"),
        ("(0, oo)", r"(0, \infty )"),
        ("3 + 4j", "3 + 4i"),
        ("2*I", "2*i"),
        ("1_000_000", "1000000"),
        ("[1e-05, 2.5]", r"[1 \cdot 10^{-05}, 2.5]"),
        ("np.float64(3.5)", "3.5"),
        ("Decimal('0.1')", "0.1"),
        ("[[1, 2], [3, 4]]", r"\begin{pmatrix}1 &  2 \\ 3 &  4\end{pmatrix}"),
        ("Matrix([[1], [2]])", r"\begin{pmatrix}1 \\ 2\end{pmatrix}"),
        ("array([1, 2])", "[1, 2]"),
        # LaTeX and words stay.
        (r"\sqrt{2} \pi", r"\sqrt{2} \pi"),
        (r"\sin(x)", r"\sin(x)"),
        ("topic", "topic"),
        ("x_100_000", "x_100_000"),
        ("sqrt(2", r"\sqrt{2"),
        ("3e-5", "3e-5"),
    ],
)
def test_what_python_prints_becomes_latex(printed: str, latex: str):
    assert as_latex(printed) == latex


@pytest.mark.parametrize(
    ("text", "interval"),
    [
        ("1 < x < 3", "(1, 3)"),
        (r"3 \ge x > 1", "(1, 3]"),
        (r"x \geq 2", r"[2, \infty)"),
        (r"2 \leqslant t", r"[2, \infty)"),
        (r"x \le \frac{1}{2}", r"(-\infty, \frac{1}{2}]"),
        (r"x < 1 \text{ or } x > 3", r"(-\infty, 1) \cup (3, \infty)"),
        # These say nothing of one variable, or more than an interval.
        ("1 < x > 3", None),
        ("x < y", r"(-\infty, y)"),
        ("x < x", None),
        ("1 < 2", None),
        ("x < 1 or y > 3", None),
        ("x = 2", None),
        ("1 < x < 2 < 3", None),
        ("1 <", None),
        ("2x > 4", None),
        ("x < 1, y", None),
    ],
)
def test_inequalities_become_intervals(text: str, interval: str | None):
    found = as_range(text)
    assert (found and found.interval) == interval


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (r"x \in [0, 1]", "[0, 1]"),
        (r"\{x \mid x > 2\}", "x > 2"),
        (r"\{x \in \mathbb{R} : x > 2\}", "x > 2"),
        (r"\{1, 2\}", r"\{1, 2\}"),
        ("[0, 1]", "[0, 1]"),
    ],
)
def test_variables_of_sets_are_left_out(text: str, left: str):
    assert without_variable(text) == left

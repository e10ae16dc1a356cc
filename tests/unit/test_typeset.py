r"""What the page of transcripts draws as formulas and in colours: the right stretches, and nothing that is not listed."""

import json
from typing import Any

import pytest

from transcripts.typeset import ATTRIBUTES, LONGEST_PROGRAM, TAGS, Mark, formulas, highlights


def cut(text: str, marks: list[Mark]) -> list[tuple[str, Any]]:
    """Returns the marked stretches of a text, as JavaScript would cut them out."""
    units = text.encode("utf-16-le", errors="surrogatepass")
    return [(units[2 * begin : 2 * end].decode("utf-16-le"), what) for begin, end, what in marks]


def leaves(tree: list[Any]) -> str:
    return "".join(child if isinstance(child, str) else leaves(child) for child in tree[2:])


@pytest.mark.parametrize(
    ("text", "drawn"),
    [
        (r"so $x^2$ is", [("$x^2$", "x2")]),
        (r"😀 \(a<b\) and \[\frac{1}{2}\] 😀", [(r"\(a<b\)", "a<b"), (r"\[\frac{1}{2}\]", "12")]),
        (r"$$\boxed{42}$$", [(r"$$\boxed{42}$$", "42")]),
        ("a pear is $3, a box $5 and $6.50", []),
        ("$ x $ and $x", []),
        (r"$5$ of $10$", [("$5$", "5"), ("$10$", "10")]),
        (r"$\frac{$ then $y$", [("$y$", "y")]),
        (r"$\nosuchcommand{3}$", []),
        (r"$\begin{aligned}a&=b\end{aligned}$", []),
        ("$" + "{" * 900 + "x" + "}" * 900 + "$", []),
        (r"\(broken off", []),
        (r"\$5 or $6$", [("$6$", "6")]),
        (r"$\begin{matrix}1 & 2 \\ 3 & 4\end{matrix}$", [(r"$\begin{matrix}1 & 2 \\ 3 & 4\end{matrix}$", "1234")]),
        (r"$10 \times 12 = 5\%$", [(r"$10 \times 12 = 5\%$", "10×12=5%")]),
    ],
)  # fmt: skip
def test_formulas_are_found_and_those_that_cannot_be_drawn_are_left(text: str, drawn: list[tuple[str, str]]):
    assert [(written, leaves(tree)) for written, tree in cut(text, formulas(text))] == drawn


@pytest.mark.parametrize(
    "formula",
    [
        r"\newcommand{\a}[1]{\a{#1#1}}\a{x}", r"\def\a{1}\a", r"12 \\ 34", r"\begin{gather}x\\y\end{gather}",
        r"\begin{align}x&=1\\y&=2\end{align}", r"a & b", r"\sqrt23", r"\frac{1}23", r"\frac12", r"\sqrt[3]27", r"\boxed42",
        r"\overline12", r"2^10", r"\binom 52 3", r"\text{5\%}", r"\text{&lt;}", r"\frac{1}", r"x % comment", r"\unicode{65}",
        r"\sideset{1}{2}x", r"\phantom{42}", r"\rlap{12}34", r"\hspace{-3em}7", r"\href{//evil}{x}",
        r"\begin{matrix}&lt;\end{matrix}", r"\frac\pi12", r"\frac a12", r"\frac-12", r"\binom n10", r"x^.5", r"\sqrt.5x",
        r"x^2.5", r"\sqrt2cm", r"\begin{matrix}a\\%b\end{matrix}", r"a{b", r"\frac{1}{2", r"\boxed{\frac{1}{2}", r"\text{ab",
        r"a}b{", r"\sum_1^2_3", r"\begin{matrix}a\\[2pt]b\end{matrix}", r"\begin{cases}a\\*2\end{cases}", r"\mathbb R",
        "a\u202eb", "a\u200bb", r"\begin{array}{c}1\end{array}",
    ],
)  # fmt: skip
def test_what_would_be_drawn_as_something_else_stays_as_it_was_written(formula: str):
    assert formulas(f"${formula}$") == []


@pytest.mark.parametrize(
    "text",
    [
        r"$\href{javascript:alert(1)}{x}$",
        r"$\style{position:fixed}{x}$",
        r"$\class{reading}{x}$",
        r"$\text{<script>alert(1)</script>}$",
        r"$\color{red;background:url(//evil)}x$",
        "$\x00\ud83d x$",
    ],
)
def test_a_tree_has_what_is_listed_and_nothing_else(text: str):
    def check(tree: list[Any]) -> None:
        tag, attributes, *children = tree
        assert tag in TAGS
        assert set(attributes) <= ATTRIBUTES
        for child in children:
            if not isinstance(child, str):
                check(child)

    for _, _, tree in formulas(text):
        check(tree)
        json.dumps(tree)
    assert not {"href", "style", "class", "src", "id", "mathcolor", "mathbackground"} & ATTRIBUTES
    assert not {"script", "a", "semantics", "annotation-xml", "maction"} & TAGS


def test_programs_are_coloured_where_their_words_stand():
    program = "\n# 😀\ndef f(n):\n    return 'a😀' if n else 3.5\n"
    assert [(text, name) for text, name in cut(program, highlights(program)) if name != "string"] == [
        ("# 😀", "comment"),
        ("def", "keyword"),
        ("f", "name"),
        ("return", "keyword"),
        ("if", "keyword"),
        ("else", "keyword"),
        ("3.5", "number"),
    ]
    assert "".join(text for text, name in cut(program, highlights(program)) if name == "string") == "'a😀'"


@pytest.mark.parametrize("before", ["\ufeff", "\r\n", "\n\n", "\f"])
def test_words_are_where_they_are_whatever_begins_a_line(before: str):
    program = f"{before}import os\r\nx = 1\r\n"
    assert cut(program, highlights(program)) == [("import", "keyword"), ("os", "name"), ("1", "number")]


def test_a_program_that_is_too_long_or_broken_off_is_text():
    assert highlights("1" * (LONGEST_PROGRAM + 1)) == []
    assert highlights(" \n" * 50 + "1") == []
    assert cut("'''x", highlights("'''x"))[0][1] in ("string", "comment")

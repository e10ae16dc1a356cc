"""Where blocks begin and end, fences inside Python's literals and comments included."""

import pytest

from grading.blocks import find_blocks

INERT = [
    's = "```"',
    "s = '```'",
    's = """\n```\n"""',
    "s = '''```'''",
    "s = '''it's ``` '''",
    "# it ends with ```",
    's = "a\\"```"',
    "s = 'a' + '```'  # 'x",
    's = f"{x}```"',
    "s = r'\\'  # ```'",
    's = "a\\\n```"',
]


def read(text: str) -> list[tuple[str, str, bool]]:
    return [(block.kind, block.content, block.closed) for block in find_blocks(text)]


@pytest.mark.parametrize("line", INERT)
def test_a_fence_in_a_literal_or_a_comment_is_code(line: str):
    code = f"\n{line}\nprint(s)\n"
    [block] = find_blocks(f"a```python{code}```b")
    assert (block.content, block.closed) == (code, True)
    assert block.program == code.strip("\n")


@pytest.mark.parametrize(
    ("text", "blocks"),
    [
        ("a ``` b", []),
        ("```python\nx\n```", [("python", "\nx\n", True)]),
        ("```python\nx", [("python", "\nx", False)]),
        ("```python", [("python", "", False)]),
        ("```pythonx```y", [("python", "x", True)]),
        ("```python\nx\n```output\ny\n```z", [("python", "\nx\n", True), ("output", "\ny\n", True)]),
        ("```python\nx```python\ny", [("python", "\nx", True), ("python", "\ny", False)]),
        (
            "```Python\nx```py\ny```PYTHON z",
            [("python", "\nx", True), ("python", "\ny", True), ("python", " z", False)],
        ),
        ("```pycon\nx\n```py z```Output\n1", [("output", "\n1", False)]),
        ("```output\n'```'", [("output", "\n'", True)]),
        ("```output\ny ```python\nx\n```", [("output", "\ny ", True), ("python", "\nx\n", True)]),
        # A quote that is never closed hides the rest of its line only, three of them all that follows.
        ("```python\nit's\n```z", [("python", "\nit's\n", True)]),
        ("```python\nit's ```\n```z", [("python", "\nit's ```\n", True)]),
        ('```python\n"""\n```z', [("python", '\n"""\n```z', False)]),
        ("```python\n''\n```z", [("python", "\n''\n", True)]),
    ],
)
def test_blocks(text: str, blocks: list[tuple[str, str, bool]]):
    assert read(text) == blocks


def test_places():
    text = "ab```python\n1\n```cd```output\n1```"
    first, second = find_blocks(text)
    assert (text[: first.start], text[first.end : second.start], text[second.end :]) == ("ab", "cd", "")


@pytest.mark.parametrize(
    ("content", "program"),
    [
        ("\nx = 1\nprint(x)\n", "x = 1\nprint(x)"),
        ("3\nprint(1)", "print(1)"),
        ("print(1)", "print(1)"),
        ("3.12 \n1", "1"),
        ("\n  if x:\n    y\n  z\n  ", "if x:\n  y\nz"),
        ('\n  x = """a\nb"""\n', '  x = """a\nb"""'),
        # Lines of blanks alone may be part of a literal.
        ('\nx = """\n  \n"""\n', 'x = """\n  \n"""'),
        (" print(1)", "print(1)"),
    ],
)
def test_the_program_of_a_block(content: str, program: str):
    [block] = find_blocks(f"```python{content}```")
    assert block.program == program


@pytest.mark.parametrize(
    "unit", ["'", '"', '"""', "'''", "#", "\\", "\\'", "'\\", '"" "', "`", "``", "```", "'```", "\n'"]
)
@pytest.mark.parametrize("opening", ["```python\n", "```output\n"])
def test_hostile_repetition_is_read_to_its_end(unit: str, opening: str):
    """Each would take minutes (the limit of a test) if the scan were quadratic: hundreds of thousands of characters."""
    list(find_blocks(opening + unit * (400_000 // len(unit))))
    list(find_blocks((opening + unit) * (100_000 // len(opening + unit))))

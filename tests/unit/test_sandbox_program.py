"""Programs that are refused before anything runs."""

import pytest

from bus.messages import Outcome
from configs.schema import SandboxConfig
from sandbox.program import refusal

CONFIG = SandboxConfig(max_code_bytes=20)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("x" * 21, "21 bytes"),
        ("é" * 11, "22 bytes"),
        ("'\udc80'", "not valid Unicode at position 1"),
        ("a\0b", "null bytes"),
        ("", "no code"),
        (" \n\t", "no code"),
    ],
    ids=["too long", "too long in bytes only", "lone surrogate", "NUL", "empty", "blank"],
)
def test_programs_that_cannot_run_are_the_models_error(code, words):
    result = refusal(code, CONFIG)
    assert result is not None
    assert (result.outcome, result.exit_code) == (Outcome.EXITED, 1)
    assert result.stderr.startswith("SyntaxError: ")
    assert words in result.stderr


@pytest.mark.parametrize("code", ["x", "x" * 20, "é" * 10, "#", "print("])
def test_every_other_program_is_left_to_the_interpreter(code):
    assert refusal(code, CONFIG) is None

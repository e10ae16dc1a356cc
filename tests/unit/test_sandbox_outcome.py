"""Endings and set-up failures that a test cannot bring about, such as a machine without memory."""

import pytest

from bus.messages import Outcome
from sandbox.outcomes import Ending, remedy


@pytest.mark.parametrize(
    ("words", "out_of_memory", "outcome"),
    [
        ("exited with status: 3", False, Outcome.EXITED),
        ("exited with status: 0", True, Outcome.EXITED),
        ("terminated with signal: SIGSEGV (11)", True, Outcome.CRASHED),
        ("terminated with signal: SIGKILL (9)", False, Outcome.CPU_LIMIT),
        ("terminated with signal: SIGKILL (9)", True, Outcome.OUT_OF_MEMORY),
    ],
)
def test_endings(words, out_of_memory, outcome):
    line = f"[I][2026-01-01T00:00:00+0000] pid=12 ([STANDALONE MODE]) {words}, (PIDs left: 0)\n"
    ending = Ending.read(b"[I] before\n" + line.encode())
    assert ending is not None
    assert ending.outcome(out_of_memory) is outcome


def test_a_log_without_the_programs_end_has_no_ending():
    assert Ending.read(b"program started\n") is None


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            "nsjail: error while loading shared libraries: libnl-route-3.so.200: cannot open shared object file",
            "`apt-get install libnl-route-3-200`",
        ),
        ("[E][...] cloneProc(): clone(flags=CLONE_NEWUSER) failed: Operation not permitted", "`sysctl -w "),
        (
            "[W][...] mount('/home/a' -> ...): try 'chmod o+x' on source path: Permission denied",
            "jails' users cannot reach",
        ),
        ("[F][...] something new", "something new"),
    ],
)
def test_remedies(words, expected):
    assert expected in remedy(words)

"""Endings and set-up failures that a test cannot bring about, such as a machine without memory."""

import pytest

from bus.messages import Outcome
from sandbox.jail import outcome_of, remedy


@pytest.mark.parametrize(
    ("signal", "cpu_s", "out_of_memory", "outcome"),
    [
        (None, 0.1, False, Outcome.EXITED),
        (None, 10.0, True, Outcome.EXITED),
        (11, 0.1, True, Outcome.CRASHED),
        (9, 10.0, False, Outcome.CPU_LIMIT),
        # Ticks ran ahead of the time that was measured.
        (9, 6.0, False, Outcome.CPU_LIMIT),
        (9, 6.0, True, Outcome.OUT_OF_MEMORY),
        # Some other process was the victim: this one was at its limit.
        (9, 10.0, True, Outcome.CPU_LIMIT),
    ],
)
def test_endings(signal, cpu_s, out_of_memory, outcome):
    assert outcome_of(signal, cpu_s, 10.0, out_of_memory) is outcome


@pytest.mark.parametrize(
    ("words", "is_root", "expected"),
    [
        (
            "nsjail: error while loading shared libraries: libnl-route-3.so.200: cannot open shared object file",
            True,
            "`apt-get install libnl-route-3-200`",
        ),
        ("[E][...] cloneProc(): clone(flags=CLONE_NEWUSER) failed: Operation not permitted", False, "`sysctl -w "),
        ("[W][...] mount('/home/a' -> ...): try 'chmod o+x' on source path: Permission denied", True, "uid 65534"),
        ("[F][...] something new", True, "something new"),
    ],
)
def test_remedies(words, is_root, expected):
    assert expected in remedy(words, is_root)

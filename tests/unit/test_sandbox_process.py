"""A jail's process that cannot be started leaves nothing open."""

import errno
import os
from collections.abc import Callable
from typing import Any

import pytest

from sandbox import process
from sandbox.process import JailProcess


def failing_at(call: int, works: Callable[..., Any]) -> Callable[..., Any]:
    """Returns `works`, but for its call number `call`, for which the process has no descriptor left."""
    count = 0

    def maybe(*arguments: Any, **named: Any) -> Any:
        nonlocal count
        count += 1
        if count == call:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return works(*arguments, **named)

    return maybe


@pytest.mark.parametrize(
    ("module", "name", "calls"),
    [(os, "pipe2", range(1, 6)), (process.fcntl, "fcntl", range(1, 6)), (os, "pidfd_open", [1])],
)
async def test_a_start_that_fails_leaves_no_descriptor_open(
    module: Any, name: str, calls: Any, monkeypatch: pytest.MonkeyPatch
):
    for call in calls:
        before = sorted(os.listdir("/proc/self/fd"))
        with monkeypatch.context() as patch:
            patch.setattr(module, name, failing_at(call, getattr(module, name)))
            with pytest.raises(OSError, match="Too many open files"):
                JailProcess(["/bin/cat"], [], 100)
        assert sorted(os.listdir("/proc/self/fd")) == before, (name, call)

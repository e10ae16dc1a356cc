"""The processes that grade: `python -m grading.worker [NAME DIGEST]`, started by `grading.processes`.

The first one imports math-verify, which takes seconds, and the user's reward function, if it is given one. It grades no
answer: for every socket that it is sent it forks a child that does, so that a child that had to be ended is replaced in
milliseconds. Parent and children speak JSON Lines:

    parent --> {"turns", "calls", "problem", "gold", "config", "patient"}
    child  --> a `Reading`, then a `Verdict`, or with a reward function a `Reward`

A child ends with its socket, and with the first one, which ends with its parent. Where the user's function gives no
reward it says {"no reward": ...}, and after an exception that no answer should cause, a fault of ours, {"fault": ...}; then
it ends.
"""

import gc
import json
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Iterator
from dataclasses import asdict
from io import TextIOWrapper
from typing import Any, cast

from configs.tasks import GradingConfig
from grading.comparison import Verdict, compare
from grading.errors import NoRewardError, RewardFunctionError
from grading.reading import Reading, read
from grading.reward_function import Reward, RewardFunction, reward
from grading.reward_source import load
from runtime.child import die_with_parent

MEMORY_BYTES = 2 * 1024**3
FORMS = (
    r"(x - 1)(x + 1) + \frac{1}{\sqrt{2}}",
    r"\frac{2\pi}{3} - e^{2x} + 3!",
    r"\int_0^1 \frac{x^2}{1 + x} dx",
    r"\sum_{k=1}^{9} \frac{1}{k} - \prod_{k=1}^{3} k",
    r"\lim_{n \to \infty} \frac{\sin n}{n} + \log_2 8",
    r"\left(3, \frac{\pi}{2}\right)",
    r"[0, 1) \cup (2, \infty)",
    r"\{1, 2\}",
    r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}",
    r"x^2 + y^2 = 25",
    r"1 < x \le 3",
    r"12\%",
)
"""Answers of usual forms: the first of a form takes parser and sympy up to a third of a second."""
READY = b"\0"
PATIENT_NICENESS = 10
"""Holds for patient turns: with one busy thread beside it on its core, such a process still has a tenth of the core."""


def main() -> None:
    """Forks a child for each socket that comes over stdin, itself a socket, and says its process id; ends with stdin."""
    die_with_parent()
    parent = socket.socket(fileno=os.dup(0))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # children must not hold the socket open
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends these processes
    os.dup2(2, 1)  # what libraries and the user's function print goes to the log
    cast(TextIOWrapper, sys.stdout).reconfigure(line_buffering=True)
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    try:
        function = load(*sys.argv[1:]) if sys.argv[1:] else None
    except RewardFunctionError as error:
        parent.send(str(error).encode())
        return
    for form in FORMS:
        compare(form, f"{form} + 1", "boxed")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel takes ended children away
    gc.freeze()
    first = os.getpid()
    parent.send(READY)
    while True:
        message, descriptors, *_ = socket.recv_fds(parent, 1, 1)
        if not message:
            return
        if (child := os.fork()) == 0:
            parent.close()
            die_with_parent()
            if os.getppid() != first:
                os._exit(1)  # It had died before.
            os.setpgid(0, 0)
            # A function of the user's may start processes and ask how they ended.
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _serve(socket.socket(fileno=descriptors[0]), function)
            os._exit(0)
        os.close(descriptors[0])
        parent.send(child.to_bytes(4))


def _serve(connection: socket.socket, function: RewardFunction | None) -> None:
    """Grades what comes until the connection ends."""
    with connection.makefile("rw", encoding="utf-8") as stream:
        for line in stream:
            request = json.loads(line)
            config = GradingConfig.model_validate(request["config"])
            if request["patient"]:
                os.setpriority(os.PRIO_PROCESS, 0, PATIENT_NICENESS)
            # The parent's limit comes first. This one, of processor time too, works without a parent.
            signal.setitimer(signal.ITIMER_PROF, 2 * config.timeout_s + 5)
            try:
                for reply in _judge(request, config, function):
                    stream.write(json.dumps(asdict(reply)) + "\n")
                    stream.flush()
            except NoRewardError as error:
                stream.write(json.dumps({"no reward": error.reason}) + "\n")
                stream.flush()
                return
            except Exception as error:
                stream.write(json.dumps({"fault": repr(error)}) + "\n")
                stream.flush()
                raise
            signal.setitimer(signal.ITIMER_PROF, 0)


def _judge(
    request: dict[str, Any], config: GradingConfig, function: RewardFunction | None
) -> Iterator[Reading | Verdict | Reward]:
    reading = read(request["turns"], [call["output"] for call in request["calls"]], config)
    yield reading
    if config.reward_function is not None:
        assert function is not None, "the grader knows whether this process has one"
        yield reward(function, request["problem"], request["gold"], request["turns"], request["calls"])
        return
    try:
        yield compare(reading.answer, request["gold"], config.rule, request["problem"])
    except (MemoryError, RecursionError):
        yield Verdict(equal=False, parsed=True, refused=True)


if __name__ == "__main__":
    main()

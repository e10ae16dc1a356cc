"""The processes that grade: `python -m grading.worker`, started by `grading.processes`.

The first one imports math-verify, which takes seconds, and grades no answer: for every socket that it is sent it forks a
child that does, so that a child that had to be ended is replaced in milliseconds. Parent and children speak JSON Lines:

    parent --> {"turns", "outputs", "problem", "gold", "config", "patient"}     child --> a `Reading`, a `Verdict`

A child ends with its socket, and by itself where it computes far past its time: it does not outlive a parent that died.
An exception that no answer should cause is a fault of ours: the child says {"fault": ...} and ends.
"""

import gc
import json
import logging
import os
import resource
import signal
import socket
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from configs.tasks import GradingConfig
from grading.comparison import Verdict, compare
from grading.reading import Reading, read

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
    parent = socket.socket(fileno=os.dup(0))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # children must not hold the socket open
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends these processes
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel takes ended children away
    os.dup2(2, 1)  # what libraries print goes to the log
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    for form in FORMS:
        compare(form, f"{form} + 1", "boxed")
    gc.freeze()
    parent.send(READY)
    while True:
        message, descriptors, *_ = socket.recv_fds(parent, 1, 1)
        if not message:
            return
        if (child := os.fork()) == 0:
            parent.close()
            _serve(socket.socket(fileno=descriptors[0]))
            os._exit(0)
        os.close(descriptors[0])
        parent.send(child.to_bytes(4))


def _serve(connection: socket.socket) -> None:
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
                for reply in _judge(request, config):
                    stream.write(json.dumps(asdict(reply)) + "\n")
                    stream.flush()
            except Exception as error:
                stream.write(json.dumps({"fault": repr(error)}) + "\n")
                stream.flush()
                raise
            signal.setitimer(signal.ITIMER_PROF, 0)


def _judge(request: dict[str, Any], config: GradingConfig) -> Iterator[Reading | Verdict]:
    reading = read(request["turns"], request["outputs"], config)
    yield reading
    try:
        yield compare(reading.answer, request["gold"], config.rule, request["problem"])
    except (MemoryError, RecursionError):
        yield Verdict(equal=False, parsed=True, refused=True)


if __name__ == "__main__":
    main()

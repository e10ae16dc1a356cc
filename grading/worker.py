"""The process that runs math-verify: `python -m grading.worker`, started by `grading.verifier`.

Reads requests `{"gold", "answer", "timeout_s"}` as JSON Lines on stdin and answers each with `{"equal": bool, "parsed":
bool}`; says `{"ready": true}` first. It ends at the end of its input. Its memory is limited, and a watchdog ends it when
a request runs far past its time, so that it does not outlive a parent that died.
"""

import faulthandler
import functools
import json
import logging
import os
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any

from grading.answers import equal_at_sight, plain

MEMORY_BYTES = 2 * 1024**3


def compare(gold: str, answer: str) -> dict[str, bool]:
    """Returns whether the contents of two boxes are equal, and whether the answer's could be read.

    Has no time limit.
    """
    gold, answer = plain(gold), plain(answer)
    sight = equal_at_sight(gold, answer)
    if sight is not None:
        return {"equal": sight, "parsed": True}
    parse, verify, target = _math_verify()
    gold_values, answer_values = (
        parse(f"\\boxed{{{text}}}", target, extraction_mode="first_match", parsing_timeout=None)
        for text in (gold, answer)
    )
    equal = bool(verify(gold_values, answer_values, timeout_seconds=None))
    # What can't be parsed stays text, which may still be the gold answer, such as a name.
    return {"equal": equal, "parsed": equal or any(not isinstance(value, str) for value in answer_values)}


@functools.cache
def _math_verify() -> tuple[Callable[..., Any], Callable[..., Any], tuple[Any, ...]]:
    """Imports math-verify, which takes seconds; returns its functions and extraction settings."""
    from math_verify import LatexExtractionConfig, grader, parse, verify

    from grading.equality import strictly

    grader.sympy_numeric_eq = strictly(grader.sympy_numeric_eq)
    # Only the box as a whole counts: with other targets, math-verify would fish for numbers inside what it can't parse.
    return parse, verify, (LatexExtractionConfig(boxed_match_priority=0),)


def main() -> None:
    """Serves requests until stdin ends."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends this process
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print must not mix with the replies
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    compare("x", "y")  # imports what it needs
    replies.write(json.dumps({"ready": True}) + "\n")
    with open(os.devnull, "w") as devnull:
        for line in sys.stdin:
            request = json.loads(line)
            # The parent's limit comes first; this one works without a parent, and while C code holds the interpreter.
            faulthandler.dump_traceback_later(2 * request["timeout_s"] + 5, exit=True, file=devnull)
            reply = compare(request["gold"], request["answer"])
            faulthandler.cancel_dump_traceback_later()
            replies.write(json.dumps(reply) + "\n")


if __name__ == "__main__":
    main()

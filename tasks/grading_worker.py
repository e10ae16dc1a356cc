"""The process that runs math-verify: `python -m tasks.grading_worker`, started by `tasks.verifier`.

Reads requests `{"gold", "answer", "timeout_s"}` as JSON Lines on stdin and answers each with `{"equal": bool}`; says
`{"ready": true}` first. It ends at the end of its input. Its memory is limited, and a watchdog ends it when a request
runs far past its time, so that it does not outlive a parent that died.
"""

import faulthandler
import json
import logging
import os
import resource
import signal
import sys

MEMORY_BYTES = 2 * 1024**3


def equal(gold: str, answer: str) -> bool:
    """Whether the contents of two boxes are equal for math-verify. Has no time limit."""
    from math_verify import LatexExtractionConfig, parse, verify

    # Only the box as a whole counts: with other targets, math-verify would fish for numbers inside what it can't parse.
    target = (LatexExtractionConfig(boxed_match_priority=0),)
    gold_values, answer_values = (
        parse(f"\\boxed{{{text}}}", target, extraction_mode="first_match", parsing_timeout=None)
        for text in (gold, answer)
    )
    return bool(verify(gold_values, answer_values, timeout_seconds=None))


def main() -> None:
    """Serves requests until stdin ends."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends this process
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print must not mix with the replies
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    equal("1", "1")
    replies.write(json.dumps({"ready": True}) + "\n")
    with open(os.devnull, "w") as devnull:
        for line in sys.stdin:
            request = json.loads(line)
            # The parent's limit comes first; this one works without a parent, and while C code holds the interpreter.
            faulthandler.dump_traceback_later(2 * request["timeout_s"] + 5, exit=True, file=devnull)
            reply = {"equal": equal(request["gold"], request["answer"])}
            faulthandler.cancel_dump_traceback_later()
            replies.write(json.dumps(reply) + "\n")


if __name__ == "__main__":
    main()

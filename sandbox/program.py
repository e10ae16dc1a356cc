"""Bounds that both sides of the service share, and programs that are refused before anything runs."""

from bus.messages import ExecutionResult, Outcome
from configs.schema import SandboxConfig

START_S = 15.0
"""Seconds from nsjail's start to the program's first line; more is the machine's fault, not the program's."""
QUEUE_S = 30.0
"""Seconds that an execution may wait for a jail that is ready."""
STOP_S = 5.0
"""Seconds that nsjail may take to end after a signal, and its pipes after it."""

SERVICE_NAME = "zerotir-sandbox"
"""The services' name in NATS' service protocol."""


def cancel_subject(subject: str) -> str:
    """Returns the subject on which cancellations travel to all services of `subject`."""
    return f"{subject}.cancel"


def refusal(code: str, config: SandboxConfig) -> ExecutionResult | None:
    """Returns the answer to a program that cannot be run as it is, the model's mistake; None for any other.

    Refused are programs longer than `max_code_bytes` in UTF-8, those that have no UTF-8 form (lone surrogates) or hold a
    NUL, and those without anything in them. Every other fault of a program is left to the interpreter.
    """
    if not code.strip():
        return _failed("SyntaxError: there is no code")
    if "\0" in code:
        return _failed("SyntaxError: source code string cannot contain null bytes")
    try:
        size = len(code.encode())
    except UnicodeEncodeError as error:
        return _failed(f"SyntaxError: source code is not valid Unicode at position {error.start}")
    if size > config.max_code_bytes:
        return _failed(f"SyntaxError: source code of {size} bytes is longer than the limit of {config.max_code_bytes}")
    return None


def _failed(message: str) -> ExecutionResult:
    return ExecutionResult(
        outcome=Outcome.EXITED, exit_code=1, signal=None, stdout="", stderr=message + "\n", truncated=False, seconds=0.0
    )

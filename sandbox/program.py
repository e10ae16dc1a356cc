"""Programs that are refused before anything runs: the model's mistake, answered as the interpreter would."""

from bus.messages import ExecutionResult, Outcome
from configs.schema import SandboxConfig


def refusal(code: str, config: SandboxConfig) -> ExecutionResult | None:
    """The answer to a program that cannot be run as it is, or None.

    Programs longer than `max_code_bytes` in UTF-8 and those that have no UTF-8 form (lone surrogates) are refused; every
    other fault of a program is left to the interpreter.
    """
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

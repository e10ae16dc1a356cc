"""What the model is shown of an execution, and how its error is called in metrics."""

import builtins
import re
from typing import Literal

from bus.messages import ExecutionResult, Outcome

_EXCEPTION = re.compile(r"^(\w+)(?::|$)")
_NAMES = {
    name for name, value in vars(builtins).items() if isinstance(value, type) and issubclass(value, BaseException)
}


def output_text(result: ExecutionResult, timeout_s: float, traceback: Literal["last_line", "whole"]) -> str:
    """Standard output, then what `traceback` leaves of an error, or one line that names a limit."""
    lines = [result.stdout.rstrip()] if result.stdout.strip() else []
    match result.outcome:
        case Outcome.EXITED:
            if result.exit_code != 0:
                shown = result.stderr.strip("\n") if traceback == "whole" else _last_line(result.stderr)
                lines.append(shown or f"exit status {result.exit_code}")
        case Outcome.TIMEOUT:
            lines.append(f"TimeoutError: the program ran longer than {timeout_s:g} seconds")
        case Outcome.CPU_LIMIT:
            lines.append("TimeoutError: the program used up its CPU time")
        case Outcome.OUT_OF_MEMORY:
            lines.append("MemoryError: the program used up its memory")
        case Outcome.OUTPUT_LIMIT:
            lines.append("OutputLimitError: the program printed too much")
        case Outcome.CRASHED:
            lines.append(f"the program was killed by signal {result.signal}")
        case Outcome.SANDBOX_FAILURE:
            raise ValueError("a failure of the sandbox is never shown to the model")
    return "\n".join(lines)


def error_kind(result: ExecutionResult) -> str:
    """Empty for a success; Python's own name of an exception, else `other`; or the limit that ended the program."""
    if result.outcome is not Outcome.EXITED:
        return result.outcome.value
    if result.exit_code == 0:
        return ""
    name = _EXCEPTION.match(_last_line(result.stderr))
    # A program can name its exceptions as it likes: only known names become names of metrics.
    return name[1] if name and name[1] in _NAMES else "other"


def _last_line(text: str) -> str:
    return text.rstrip().rpartition("\n")[2]

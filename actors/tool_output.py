"""Turns an execution into what the model is shown of it, and its error into a name for metrics."""

import builtins
import re
from dataclasses import dataclass
from typing import Literal

from bus.messages import ExecutionResult, Outcome

_EXCEPTION = re.compile(r"^(\w+)(?::|$)")
_NAMES = {
    name for name, value in vars(builtins).items() if isinstance(value, type) and issubclass(value, BaseException)
}


@dataclass(frozen=True)
class Shown:
    """Says what the model is shown of an execution."""

    printed: str
    """Standard output, and of a whole traceback what stands before its last line."""
    ending: str
    """The line that names the error or limit; empty for a program that ended well. The last thing to be cut."""

    def __str__(self) -> str:
        return "\n".join(filter(None, (self.printed, self.ending)))


def shown(result: ExecutionResult, timeout_s: float, traceback: Literal["last_line", "whole"]) -> Shown:
    """Returns the standard output, then what `traceback` leaves of an error, or one line that names a limit."""
    printed = result.stdout.rstrip() if result.stdout.strip() else ""
    match result.outcome:
        case Outcome.EXITED if result.exit_code == 0:
            ending = ""
        case Outcome.EXITED:
            ending = _last_line(result.stderr) or f"exit status {result.exit_code}"
            if traceback == "whole":
                printed = "\n".join(filter(None, (printed, result.stderr.strip("\n").rpartition("\n")[0])))
        case Outcome.TIMEOUT:
            ending = f"TimeoutError: the program ran longer than {timeout_s:g} seconds"
        case Outcome.CPU_LIMIT:
            ending = "TimeoutError: the program used up its CPU time"
        case Outcome.OUT_OF_MEMORY:
            ending = "MemoryError: the program used up its memory"
        case Outcome.OUTPUT_LIMIT:
            ending = "OutputLimitError: the program printed too much"
        case Outcome.CRASHED:
            ending = f"the program was killed by signal {result.signal}"
        case Outcome.SANDBOX_FAILURE:
            raise ValueError("a failure of the sandbox is never shown to the model")
    return Shown(printed, ending)


def error_kind(result: ExecutionResult) -> str:
    """Returns the name of Python's exception, else `other`, or the limit that ended the program; nothing for a success."""
    if result.outcome is not Outcome.EXITED:
        return result.outcome.value
    if result.exit_code == 0:
        return ""
    name = _EXCEPTION.match(_last_line(result.stderr))
    # A program can name its exceptions as it likes: only known names become names of metrics.
    return name[1] if name and name[1] in _NAMES else "other"


def _last_line(text: str) -> str:
    return text.rstrip().rpartition("\n")[2]

"""Readings of results that tests share."""

from bus.messages import ExecutionResult, Outcome


def succeeded(result: ExecutionResult) -> str:
    """The output of a program that ended well and said nothing on its standard error."""
    assert (result.outcome, result.exit_code, result.stderr) == (Outcome.EXITED, 0, ""), result
    return result.stdout

"""What goes wrong in grading and is nobody's answer: none of these becomes a reward."""

from configs.errors import UserError


class GradingError(RuntimeError):
    """An answer could not be graded for a reason that is not the answer's; the text says what to do."""


class UngradableError(GradingError):
    """No answer is right by this gold answer and rule: the problem has to be fixed; the text says which."""


class RewardFunctionError(GradingError, UserError):
    """A reward function that cannot be loaded or gave no reward; the text says why."""

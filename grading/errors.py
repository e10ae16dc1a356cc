"""What goes wrong in grading and is nobody's answer: none of these becomes a reward."""

from configs.errors import UserError

MAX_TEXT = 1000
"""Characters of what a user's function says."""


class GradingError(RuntimeError):
    """An answer could not be graded for a reason that is not the answer's; the text says what to do."""


class UngradableError(GradingError):
    """No answer is right by this gold answer and rule: the problem has to be fixed; the text says which."""


class NoRewardError(GradingError):
    """The user's reward function gave no reward for a response; the text says why, and can be sent as it is."""

    def __init__(self, reason: str) -> None:
        # An exception may quote anything: half of a surrogate pair is no text for the bus.
        self.reason = reason[:MAX_TEXT].encode(errors="replace").decode()
        super().__init__(f"the reward function {self.reason}")


class RewardFunctionError(UserError):
    """The user's reward function cannot be loaded, here or at all; the text says why."""

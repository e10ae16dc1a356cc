"""What a result must be, beyond a valid message, to be trained on in this run.

Whoever may answer tickets can write whatever decodes; what would train on something else than this run's policy sampled, or
would stop the learner, is refused here and goes to the dead letters like a message that does not decode.
"""

import numpy as np

from bus.codec import MessageError
from bus.messages import Failure, Trajectory
from configs.schema import RolloutConfig


def require_usable(result: Trajectory | Failure, run: str, rollout: RolloutConfig, vocabulary: int) -> None:
    """Raises MessageError where `result` is not of `run`, or breaks what its tickets ask for.

    Args:
        rollout: limits and sampling that every ticket of the run carries.
        vocabulary: token ids of the model are below it.
    """
    if result.run != run:
        raise MessageError(f"a result of run {result.run[:64]!r}, this is {run!r}")
    if isinstance(result, Failure):
        return
    largest = np.maximum.reduce(result.tokens)
    if largest >= vocabulary:
        raise MessageError(f"token id {largest}, the model's end at {vocabulary - 1}")
    if result.temperature != rollout.temperature:
        raise MessageError(f"sampled at temperature {result.temperature}, the tickets ask for {rollout.temperature}")
    if result.prompt_length > rollout.max_prompt_tokens or result.response_length > rollout.max_response_tokens:
        raise MessageError(
            f"{result.prompt_length} prompt and {result.response_length} response tokens, the limits are "
            f"{rollout.max_prompt_tokens} and {rollout.max_response_tokens}"
        )

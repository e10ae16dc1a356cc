"""Spontaneous code execution, as the paper plots it and beyond: who calls, when, with what errors, and to what end."""

from collections import Counter
from collections.abc import Sequence
from statistics import fmean

from bus.messages import Trajectory

MOST_KINDS = 40
"""Kinds of errors, the commonest, that a step shows: actors can make up any."""


def spontaneity_metrics(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Returns the metrics over at least one trajectory; means over none are left out."""
    values = {
        "hallucinated_output_ratio": fmean(trajectory.hallucinated_outputs > 0 for trajectory in trajectories),
        "void_turn_ratio": fmean(trajectory.void_turns > 0 for trajectory in trajectories),
    }
    right = [bool(t.tool_calls) for t in trajectories if t.reward_parts.get("correct", 0.0)]
    wrong = [bool(t.tool_calls) for t in trajectories if not t.reward_parts.get("correct", 0.0)]
    if right:
        values["code_ratio_right"] = fmean(right)
    if wrong:
        values["code_ratio_wrong"] = fmean(wrong)
    callers = [trajectory for trajectory in trajectories if trajectory.tool_calls]
    if callers:
        values["first_call_position"] = fmean(t.tool_calls[0].start for t in callers)
        values["first_call_share"] = fmean(t.tool_calls[0].start / t.response_length for t in callers)
        errors = Counter(call.error for t in callers for call in t.tool_calls)
        shown = sorted(errors.most_common(MOST_KINDS))
        values |= {f"call_error_{kind}": count / errors.total() for kind, count in shown if kind}
    answered = [trajectory.code_unused for trajectory in callers if trajectory.reward_parts.get("answered", 0.0)]
    if answered:
        values["code_unused_ratio"] = fmean(answered)
    return values

"""Measures the batch of one training step: the curves that the paper plots, from trajectories alone."""

from collections import Counter
from collections.abc import Sequence
from statistics import fmean

from bus.messages import MAX_PARTS, Failure, FinishReason, Trajectory
from bus.metrics import slug
from learner.code_metrics import MOST_KINDS, spontaneity_metrics
from learner.tickets.ledger import Batch


def batch_metrics(batch: Batch, taken_at: float | None) -> dict[str, float]:
    """Returns the metrics over every trajectory that the step took, filtered ones included; failures are counted apart.

    Means over no trajectory are left out. Staleness is counted in versions, lengths in tokens, ages in seconds at `taken_at`
    (in the run's time, `bus.clock`), when the batch was complete; None, in a replay, leaves ages out.
    """
    trajectories = [result for group in batch.taken for result in group if isinstance(result, Trajectory)]
    failures = [result for group in batch.taken for result in group if isinstance(result, Failure)]
    late = [failure.response_length for failure in failures if failure.response_length]
    values: dict[str, float] = {
        "trajectories": len(trajectories),
        "failures": len(failures),
        "filtered": sum(len(members) for members in batch.filtered.values()),
        "trained_trajectories": sum(len(group) for group in batch.trained),
        "incomplete_groups": sum(len(group) < len(batch.taken[0]) for group in batch.trained),
    }
    if late:
        values["late_length"] = fmean(late)
    values |= _ends(batch, taken_at)
    if not trajectories:
        return values
    calls = [call for trajectory in trajectories for call in trajectory.tool_calls]
    staleness = [max(0, batch.version - trajectory.lowest_version) for trajectory in trajectories]
    values |= {
        "reward": fmean(trajectory.reward for trajectory in trajectories),
        "accuracy": fmean(trajectory.reward_parts.get("correct", 0.0) for trajectory in trajectories),
        "code_ratio": fmean(bool(trajectory.tool_calls) for trajectory in trajectories),
        "calls_per_response": len(calls) / len(trajectories),
        "prompt_length": fmean(trajectory.prompt_length for trajectory in trajectories),
        "response_length": fmean(trajectory.response_length for trajectory in trajectories),
        "sampled_length": fmean(int(trajectory.loss_mask.sum()) for trajectory in trajectories),
        "truncated_ratio": fmean(trajectory.finish_reason is FinishReason.LENGTH for trajectory in trajectories),
        "staleness_mean": fmean(staleness),
        "staleness_max": max(staleness),
        "rollout_seconds": fmean(
            max(0.0, trajectory.published_at - trajectory.started_at) for trajectory in trajectories
        ),
        "versions_per_response": fmean(
            len({span.version for span in trajectory.versions}) for trajectory in trajectories
        ),
        "actors": len({trajectory.actor for trajectory in trajectories}),
    }
    values |= spontaneity_metrics(trajectories)
    if taken_at is not None:
        values["age_seconds"] = _age(trajectories, taken_at)
    parts = {part for trajectory in trajectories for part in trajectory.reward_parts} - {"correct"}
    for part in sorted(parts)[:MAX_PARTS]:
        values[f"reward_{part}"] = fmean(trajectory.reward_parts.get(part, 0.0) for trajectory in trajectories)
    if calls:
        values["successful_call_ratio"] = fmean(call.success for call in calls)
        values["call_seconds"] = fmean(call.seconds for call in calls)
    return values


def _ends(batch: Batch, taken_at: float | None) -> dict[str, float]:
    """Returns how the step's tickets ended and why, and how those that were left out differ from those trained on."""
    failed = [result for group in batch.taken for result in group if isinstance(result, Failure)]
    values: dict[str, float] = {}
    for end, parts in (("trained", batch.trained), ("filtered", tuple(batch.filtered.values()))):
        members = [member for part in parts for member in part]
        if members:
            values[f"{end}_length"] = fmean(member.response_length for member in members)
            values[f"{end}_reward"] = fmean(member.reward for member in members)
            if taken_at is not None:
                values[f"{end}_age_seconds"] = _age(members, taken_at)
    if failed:
        values["failed_attempts"] = fmean(failure.attempts for failure in failed)
        if taken_at is not None:
            values["failed_age_seconds"] = _age(failed, taken_at)
    for reason, left_out in batch.filtered.items():
        values[f"filtered_by_{slug(reason)}"] = len(left_out)
    for reason, count in Counter(failure.reason for failure in failed).most_common(MOST_KINDS):
        values[f"failed_by_{slug(reason)}"] = count
    return values


def _age(results: Sequence[Trajectory | Failure], taken_at: float) -> float:
    """Returns the mean seconds since they were published, none of which is negative."""
    return fmean(max(0.0, taken_at - result.published_at) for result in results)

"""What one training step reports of its batch: the curves that the paper plots, from trajectories alone."""

import time
from statistics import fmean

from bus.messages import FinishReason, Trajectory
from learner.ledger import Batch


def batch_metrics(batch: Batch) -> dict[str, float]:
    """Metrics over every trajectory that the step took, filtered ones included; failures are counted apart.

    Means over no trajectory are left out. Staleness is counted in versions, lengths in tokens, ages in seconds.
    """
    trajectories = [result for group in batch.taken for result in group if isinstance(result, Trajectory)]
    values: dict[str, float] = {
        "trajectories": len(trajectories),
        "failures": sum(len(group) for group in batch.taken) - len(trajectories),
        "filtered": batch.filtered.total(),
        "trained_trajectories": sum(len(group) for group in batch.trained),
    }
    if not trajectories:
        return values
    now = time.time()
    calls = [call for trajectory in trajectories for call in trajectory.tool_calls]
    staleness = [max(0, batch.step - trajectory.lowest_version) for trajectory in trajectories]
    values |= {
        "reward": fmean(trajectory.reward for trajectory in trajectories),
        "accuracy": fmean(trajectory.reward_parts.get("correct", 0.0) for trajectory in trajectories),
        "code_ratio": fmean(bool(trajectory.tool_calls) for trajectory in trajectories),
        "calls_per_response": len(calls) / len(trajectories),
        "response_length": fmean(trajectory.response_length for trajectory in trajectories),
        "sampled_length": fmean(int(trajectory.loss_mask.sum()) for trajectory in trajectories),
        "truncated_ratio": fmean(trajectory.finish_reason is FinishReason.LENGTH for trajectory in trajectories),
        "staleness_mean": fmean(staleness),
        "staleness_max": max(staleness),
        "age_seconds": fmean(now - trajectory.published_at for trajectory in trajectories),
        "rollout_seconds": fmean(trajectory.published_at - trajectory.started_at for trajectory in trajectories),
        "versions_per_response": fmean(len(trajectory.versions) for trajectory in trajectories),
        "actors": len({trajectory.actor for trajectory in trajectories}),
    }
    for part in sorted({part for trajectory in trajectories for part in trajectory.reward_parts} - {"correct"}):
        values[f"reward_{part}"] = fmean(trajectory.reward_parts.get(part, 0.0) for trajectory in trajectories)
    if calls:
        values["successful_call_ratio"] = fmean(call.success for call in calls)
        values["call_seconds"] = fmean(call.seconds for call in calls)
    return values

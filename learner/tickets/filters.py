"""Filters: which trajectories of a finished group are trained on.

They are pure functions of the group's trajectories, so the ledger stays deterministic. A trajectory that is left out takes
no part in its group's baseline either: the group goes on with fewer samples.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from bus.messages import FinishReason, Trajectory
from configs.schema import FiltersConfig

NOT_FINITE = "not finite"
OVERLONG = "overlong"
VOID_TURN = "void turn"
HALLUCINATED = "hallucinated output"
TOO_SMALL = "group too small"
NO_SIGNAL = "no signal"
ACCURACY = "accuracy band"
UNTRAINED_STEPS = 3
"""Steps in a row without anything to train on that are too many."""
REASONS = (NOT_FINITE, OVERLONG, VOID_TURN, HALLUCINATED, TOO_SMALL, NO_SIGNAL, ACCURACY)


def may_be_chance(counts: Mapping[str, float]) -> bool:
    """Returns whether most of the results that were not trained on, counted by reason, were left out for their rewards.

    Groups that were all right or all wrong are chance: the next problems may be easier or harder for the model.
    """
    return 2 * (counts.get(NO_SIGNAL, 0) + counts.get(ACCURACY, 0)) > sum(counts.values())


def why_untrained(counts: Mapping[str, float]) -> str:
    """Returns why results were not trained on, from their numbers by reason (of filters and failures), and what to do."""
    shares = ", ".join(
        f"{reason} {count / sum(counts.values()):.0%}" for reason, count in Counter(counts).most_common()
    )
    if may_be_chance(counts):
        return (
            f"{shares}: the responses to each problem are all right or all wrong, or outside learner.filters.accuracy_band. "
            "If it stays so, start a run with problems that the model solves now and then (tasks.problems), more samples of "
            "each (learner.group_size), or an example in the prompt (tasks.prompt.template)"
        )
    return f"{shares}. Filters (learner.filters) can be changed on resume; why tickets fail is in the actors' logs"


def is_finite(trajectory: Trajectory) -> bool:
    """Returns whether all its behaviour log-probabilities are numbers."""
    return bool(np.isfinite(trajectory.logprobs[trajectory.loss_mask == 1]).all())


@dataclass(frozen=True)
class Filters:
    """The filters of a run: `config`, and whether advantages are relative to the group (see `AlgorithmConfig`)."""

    config: FiltersConfig
    group_relative: bool

    def apply(self, members: Sequence[Trajectory]) -> tuple[tuple[Trajectory, ...], dict[str, tuple[Trajectory, ...]]]:
        """Returns which of a group's trajectories are trained on, in their order, and which are not, by reason.

        The accuracy of a group counts all its trajectories; its size and its signal those that are left.
        """
        reasons = [self._of_trajectory(member) for member in members]
        kept = tuple(member for member, reason in zip(members, reasons, strict=True) if reason is None)
        dropped: dict[str, tuple[Trajectory, ...]] = {}
        for member, reason in zip(members, reasons, strict=True):
            if reason is not None:
                dropped[reason] = (*dropped.get(reason, ()), member)
        reason = self._of_group(members, kept) if kept else None
        return (kept, dropped) if reason is None else ((), dropped | {reason: kept})

    def _of_trajectory(self, member: Trajectory) -> str | None:
        # Its ratio to any policy would not be a number; an engine that overflows is no reason to stop.
        if not is_finite(member):
            return NOT_FINITE
        if self.config.overlong and member.finish_reason is FinishReason.LENGTH:
            return OVERLONG
        if self.config.void_turns and member.void_turns:
            return VOID_TURN
        if self.config.hallucinated_output and member.hallucinated_outputs:
            return HALLUCINATED
        return None

    def _of_group(self, members: Sequence[Trajectory], kept: Sequence[Trajectory]) -> str | None:
        if self.group_relative and len(kept) < 2:
            return TOO_SMALL
        if self.group_relative and self.config.no_signal and len({member.reward for member in kept}) == 1:
            return NO_SIGNAL
        if self.config.accuracy_band is not None:
            low, high = self.config.accuracy_band
            if not low <= fmean(member.reward_parts.get("correct", 0.0) for member in members) <= high:
                return ACCURACY
        return None

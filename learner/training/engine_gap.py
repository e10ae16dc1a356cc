"""Holds the engines against the learner on tokens that both computed with the same weights.

Of a trajectory that was sampled with the weights that the learner trains from, the behaviour log-probabilities must be the
learner's own, up to rounding. Where they are not, engine and learner hold other weights or compute another function, and
every importance weight is wrong. Such trajectories are those of a run's first batch, and with `max_staleness: 0` all; in an
asynchronous run few of the later ones. Weights are the same where their checksums are: a resumed learner may have made
others under the same number.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import structlog
import torch

from bus.messages import Trajectory, WeightVersion
from configs.errors import UserError
from configs.schema import RunConfig

log = structlog.get_logger()

MIN_TOKENS = 256
"""Fewer tokens show nothing: single bfloat16 log-probabilities are up to 0.5 apart."""
BOUNDS = {"float32": 0.005, "bfloat16": 0.2}
"""What `learner.max_engine_gap: auto` means, by the coarsest type that a role may compute in. Means that were measured with
equal weights: below 0.00001 in float32, about 0.04 in bfloat16."""


class EngineGapError(UserError):
    """Engine and learner disagree on the same tokens under the same weights; the text says what is known of the cause."""


def gap_bound(config: RunConfig) -> float | None:
    """Returns the largest mean difference that training goes on with, in nats a token; None where nothing is checked."""
    bound = config.learner.max_engine_gap
    if config.emulated:
        return None
    if bound == "auto":
        # Weights in bfloat16 may be computed with in either type, by each role as it likes.
        return BOUNDS["float32" if "float32" in (config.model.dtype, config.model.compute_dtype) else "bfloat16"]
    return bound


class EngineCheck:
    """Compares batch after batch, and remembers when engine and learner last agreed."""

    def __init__(self, bound: float | None) -> None:
        """`bound`: as of `gap_bound`."""
        self._bound = bound
        self._agreed: str | None = None

    def measure(
        self,
        trajectories: Sequence[Trajectory],
        logprobs: Mapping[int, torch.Tensor],
        same: frozenset[WeightVersion],
    ) -> dict[str, float]:
        """Returns `engine_gap`, the mean |log pi - log mu| over the tokens of `same`; nothing where there are none.

        Args:
            trajectories: the batch.
            logprobs: log pi, [n_i] for the sampled tokens of some of the trajectories, under their indices.
            same: versions whose weights are those that `logprobs` were computed with.

        Raises EngineGapError where the mean over all of these tokens, or over one actor's, exceeds the bound.
        """
        gaps: dict[str, list[torch.Tensor]] = defaultdict(list)
        for index, own in logprobs.items():
            trajectory = trajectories[index]
            if all(span.version in same for span in trajectory.versions):
                sampled = torch.from_numpy(trajectory.logprobs[np.flatnonzero(trajectory.loss_mask)])
                gaps[trajectory.actor].append((own.cpu() - sampled).abs())
        if not gaps:
            return {}
        actors = {actor: torch.cat(parts) for actor, parts in gaps.items()}
        everything = torch.cat(list(actors.values()))
        self._require_small(str(max(same, key=lambda version: version.epoch)), actors, everything)
        return {"engine_gap": everything.mean().item()}

    def _require_small(self, version: str, actors: Mapping[str, torch.Tensor], everything: torch.Tensor) -> None:
        bound = self._bound
        if bound is None or len(everything) < MIN_TOKENS:
            return
        judged = {actor: gap for actor, gap in actors.items() if len(gap) >= MIN_TOKENS}
        # A difference that is not a number is no agreement.
        wrong = sorted(actor for actor, gap in judged.items() if not gap.mean().item() <= bound)
        if not wrong and everything.mean().item() <= bound:
            self._agreed = version
            log.info(
                "engines and learner agree",
                version=version,
                gap=round(everything.mean().item(), 6),
                bound=bound,
                tokens=len(everything),
                actors=len(actors),
            )
            return
        gap = torch.cat([actors[actor] for actor in wrong]) if wrong else everything
        if wrong and len(wrong) < len(judged):
            others = len(judged) - len(wrong)
            known = f"it is the engines of {', '.join(wrong)}: the learner agrees with {others} other actors"
        elif self._agreed is None:
            known = "they have not agreed in this process yet: they may compute another function of the same weights"
        else:
            known = f"they last agreed at version {self._agreed}"
        raise EngineGapError(
            f"engine and learner disagree on version {version}: their log-probabilities of the same tokens are "
            f"{gap.mean().item():.3g} apart at the mean of {len(gap)} tokens, at most {bound:g} is allowed "
            f"(learner.max_engine_gap); {known}. Restart the actors that differ; their results stay in "
            "the log, so begin a new run, or go on from the checkpoint with a larger bound"
        )

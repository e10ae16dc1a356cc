"""Holds the engines against the learner on tokens that both computed with the same weights.

A trajectory without staleness was sampled with the weights that the learner trains from, so its behaviour log-probabilities
must be the learner's own, up to rounding. Where they are not, engine and learner hold other weights or compute another
function, and every importance weight is wrong. In an asynchronous run such trajectories are those of the first version and
whatever actors sample faster than the learner trains; with `max_staleness: 0` they are all.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import structlog
import torch

from bus.messages import Trajectory
from configs.errors import UserError
from configs.schema import RunConfig

log = structlog.get_logger()

MIN_TOKENS = 256
"""Fewer tokens show nothing: single bfloat16 log-probabilities are up to 0.5 apart."""
BOUNDS = {"float32": 0.005, "bfloat16": 0.2}
"""What `learner.max_engine_gap: auto` means, by the coarsest type that a role may compute in. Means that were measured with
equal weights: below 0.00001 in float32, about 0.04 in bfloat16."""


class EngineGapError(UserError):
    """Engine and learner disagree on the same tokens under the same weights; the text says which of them is at fault."""


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
        self._agreed: int | None = None

    def measure(
        self, trajectories: Sequence[Trajectory], logprobs: Mapping[int, torch.Tensor], version: int
    ) -> dict[str, float]:
        """Returns `engine_gap`, the mean |log pi - log mu| over the tokens without staleness; nothing where there are none.

        Args:
            trajectories: the batch.
            logprobs: log pi, [n_i] for the sampled tokens of some of the trajectories, under their indices.
            version: of the weights that `logprobs` were computed with.

        Raises EngineGapError where the mean over all of these tokens, or over one actor's, exceeds the bound.
        """
        gaps: dict[str, list[torch.Tensor]] = defaultdict(list)
        for index, own in logprobs.items():
            trajectory = trajectories[index]
            if all(span.version.n == version for span in trajectory.versions):
                sampled = torch.from_numpy(trajectory.logprobs[np.flatnonzero(trajectory.loss_mask)])
                gaps[trajectory.actor].append((own.cpu() - sampled).abs())
        if not gaps:
            return {}
        actors = {actor: torch.cat(parts) for actor, parts in gaps.items()}
        everything = torch.cat(list(actors.values()))
        self._require_small(version, actors, everything)
        return {"engine_gap": everything.mean().item()}

    def _require_small(self, version: int, actors: Mapping[str, torch.Tensor], everything: torch.Tensor) -> None:
        if self._bound is None:
            return
        bound = self._bound

        # A difference that is not a number is no agreement.
        def large(gap: torch.Tensor) -> bool:
            return len(gap) >= MIN_TOKENS and not gap.mean().item() <= bound

        wrong = sorted(actor for actor, gap in actors.items() if large(gap))
        if not wrong and not large(everything):
            if len(everything) >= MIN_TOKENS:
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
        if wrong and len(wrong) < len(actors):
            culprit = f"the engines of {', '.join(wrong)} are at fault: the learner agrees with the other actors"
        elif self._agreed is None:
            culprit = "they have not agreed yet in this process: they may compute another function of the same weights"
        else:
            culprit = f"they last agreed at version {self._agreed}"
        raise EngineGapError(
            f"engine and learner disagree on version {version}: their log-probabilities of the same tokens are "
            f"{gap.mean().item():.3g} apart at the mean of {len(gap)} tokens, at most {bound:g} is allowed "
            f"(learner.max_engine_gap); {culprit}"
        )

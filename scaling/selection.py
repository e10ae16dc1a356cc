"""Chooses the form that describes a curve, by the likelihood of steps that the fit did not see.

The steps are cut into eight contiguous blocks; each block is predicted from the others, by density. Neighbouring steps
would be near copies of what a fit saw, so single steps are never held out. The last block is a short forecast.
"""

from dataclasses import dataclass

import numpy as np

from scaling.data import Points, TooLittleDataError
from scaling.fitting import Fit, fit
from scaling.forms import CONSTANT, FORMS, LINEAR, Form

FOLDS = 8
LEAST_STEPS = 16


@dataclass(frozen=True)
class Score:
    """Says how well a form foretells held-out steps."""

    form: Form
    mean: float
    """Mean log predictive density of a held-out point."""
    behind: float
    """Distance to the best form's mean; 0 for the best."""
    error: float
    """Standard error of that distance, over the blocks."""


@dataclass(frozen=True)
class Selection:
    """The chosen form, fitted to everything, and all scores."""

    chosen: Fit
    scores: list[Score]
    """Scores in the order of `FORMS`."""

    @property
    def flat(self) -> bool:
        """Returns whether no form predicts better than a constant does."""
        return self.chosen.form is CONSTANT


def select(points: Points) -> Selection:
    """Chooses the simplest form whose held-out likelihood is within one standard error of the best.

    A constant is chosen only where, besides, the slope of a straight line does not differ from 0 with 95 % confidence: one
    sudden rise makes the blocks so unlike each other that the standard error would let a constant through.

    Raises TooLittleDataError for fewer than 16 steps, and for a y that is constant or all but constant.
    """
    points.require(LEAST_STEPS, "a choice between forms")
    blocks = np.array_split(np.unique(points.step), FOLDS)
    density = np.array([[_held_out(form, points, block) for block in blocks] for form in FORMS])
    if not np.isfinite(density).all():
        raise TooLittleDataError("y changes within one eighth of the steps only: too little to choose a form by")
    counts = np.array([np.isin(points.step, block).sum() for block in blocks])
    means = density @ counts / counts.sum()
    best = int(np.argmax(means))
    behind = density[best] - density
    errors = np.std(behind, axis=1, ddof=1) / np.sqrt(FOLDS)
    scores = [
        Score(form, float(mean), float(means[best] - mean), float(error))
        for form, mean, error in zip(FORMS, means, errors, strict=True)
    ]
    _, _, low, high = fit(LINEAR, points).interval(0.95)[1]
    sloped = not low <= 0 <= high and FORMS[best] is not CONSTANT
    simplest = next(
        score for score in scores if score.behind <= score.error and not (sloped and score.form is CONSTANT)
    )
    return Selection(fit(simplest.form, points), scores)


def _held_out(form: Form, points: Points, block: np.ndarray) -> float:
    """Returns the mean log density of the block's points under a fit to the others."""
    held = np.isin(points.step, block)
    try:
        fitted = fit(form, points.where(~held))
    except TooLittleDataError:
        # Constant outside the block.
        return float("-inf")
    return float(fitted.log_density(points.x[held], points.y[held]).mean())

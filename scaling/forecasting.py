"""Is growth predictable? Each form is fitted to the first half of the steps and held against the second.

The forecast of somebody who does not know the form is that of all forms, weighted (`scaling.mixture`). The half is taken by
steps. Errors and coverage are those of single measurements: the batch's own noise is in both.
"""

from dataclasses import dataclass

import numpy as np

from scaling.data import Points, TooLittleDataError
from scaling.fitting import Fit, fit
from scaling.forms import FORMS
from scaling.mixture import Mixture, mix
from scaling.selection import select

LEVELS = (0.8, 0.95)


@dataclass(frozen=True)
class Forecast[F: (Fit, Mixture)]:
    """Says what a form, or all of them weighted, fitted to the first half, said of the second."""

    fit: F
    error: float
    """Root mean squared error over the second half."""
    bias: float
    """Mean of forecast minus measurement."""
    coverage: dict[float, float]
    """Share of the measurements inside the interval of each nominal level."""
    width: dict[float, float]
    """Mean width of those intervals."""
    log_density: float
    """Mean log predictive density of a measurement."""


@dataclass(frozen=True)
class Forecasts:
    """Holds all forms' forecasts from one half."""

    last_fitted_step: int
    forecasts: list[Forecast[Fit]]
    refused: dict[str, str]
    """Form to the word that says why it made no forecast."""
    chosen: str | None
    """Form that the first half alone would have had one choose, None where it is too short to choose."""
    weighted: Forecast[Mixture] | None
    """All forms with the weights of the first half, None where it is too short for weights."""


def forecast(points: Points) -> Forecasts:
    """Returns every form's forecast of the second half of the steps.

    Raises TooLittleDataError where not even a constant can be fitted to the first half, or that half is constant.
    """
    steps = np.unique(points.step)
    points.require(8, "a forecast")
    last = int(steps[len(steps) // 2 - 1])
    early, late = points.where(points.step <= last), points.where(points.step > last)
    if np.ptp(early.y) == 0:
        raise TooLittleDataError(f"constant over the first {last} steps: nothing to forecast from")
    forecasts, refused = [], {}
    for form in FORMS:
        try:
            forecasts.append(_held_against(fit(form, early), late))
        except TooLittleDataError as error:
            refused[form.name] = str(error)
    try:
        selection = select(early)
    except TooLittleDataError:
        return Forecasts(last, forecasts, refused, None, None)
    weighted = _held_against(mix(early, selection), late)
    return Forecasts(last, forecasts, refused, selection.chosen.form.name, weighted)


def _held_against[F: (Fit, Mixture)](fitted: F, late: Points) -> Forecast[F]:
    off = fitted.mean(late.x) - late.y
    coverage, width = {}, {}
    for level in LEVELS:
        low, high = fitted.prediction(late.x, level)
        coverage[level] = float(np.mean((low <= late.y) & (late.y <= high)))
        width[level] = float(np.mean(high - low))
    return Forecast(
        fit=fitted,
        error=float(np.sqrt(np.mean(off**2))),
        bias=float(off.mean()),
        coverage=coverage,
        width=width,
        log_density=float(fitted.log_density(late.x, late.y).mean()),
    )

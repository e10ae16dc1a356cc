"""All forms together: what a forecast says when the form is not known.

An interval of the form that was chosen takes the choice for granted, and covers too little: of two forms that describe the
first half equally well, one rises on and the other levels off. Here each form has a weight, the likelihood of steps that its
fits did not see (`scaling.selection`), and the interval is that of the weighted mixture of their predictive densities.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

from scaling.data import Floats, Points
from scaling.fitting import Fit, fit_or_word
from scaling.selection import Selection


@dataclass(frozen=True)
class Mixture:
    """Fits of K forms to the same points, each with its weight."""

    fits: Sequence[Fit]
    weights: Floats
    """[K], sum 1."""

    def mean(self, x: Floats) -> Floats:
        """Returns the expected measurement [m] at x [m]."""
        return self.weights @ np.array([fit.mean(x) for fit in self.fits])

    def prediction(self, x: Floats, level: float) -> tuple[Floats, Floats]:
        """Returns the interval (low [m], high [m]) for one new measurement at each x, each by itself."""
        tail = (1.0 - level) / 2
        bounds = [fit.prediction(x, 1.0 - tail / 50) for fit in self.fits]
        low, high = np.min([low for low, _ in bounds], axis=0) - 1.0, np.max([high for _, high in bounds], axis=0) + 1.0
        return self._quantiles(x, low, high, tail), self._quantiles(x, low, high, 1.0 - tail)

    def log_density(self, x: Floats, y: Floats) -> Floats:
        """Returns the log predictive density [m] of measurements y at x."""
        densities = np.exp([fit.log_density(x, y) for fit in self.fits])
        return np.log(np.maximum(self.weights @ densities, 1e-300))

    def _quantiles(self, x: Floats, low: Floats, high: Floats, probability: float) -> Floats:
        scales = [np.hypot(fit.curve_error(x), fit.noise(x)) for fit in self.fits]
        means = [fit.mean(x) for fit in self.fits]

        def beyond(value: float, at: int) -> float:
            below = [
                stats.t.cdf((value - mean[at]) / scale[at], fit.freedom)
                for fit, mean, scale in zip(self.fits, means, scales, strict=True)
            ]
            return float(self.weights @ np.array(below)) - probability

        return np.array([optimize.brentq(beyond, low[at], high[at], args=(at,)) for at in range(len(x))])


def mix(points: Points, selection: Selection) -> Mixture:
    """Returns the mixture of the forms that `selection` has scored on the same points.

    A weight is the likelihood of as many held-out measurements as there are independent ones: n (1 - rho) / (1 + rho) of n,
    with the autocorrelation of the noise around the chosen form. Pseudo-Bayesian model averaging, Yao et al. 2018,
    https://doi.org/10.1214/17-BA1091, without its bootstrap.
    """
    scored = [(score.mean, fit_or_word(score.form, points)) for score in selection.scores]
    fits = [(mean, fit) for mean, fit in scored if isinstance(fit, Fit)]
    rho = selection.chosen.rho
    likelihoods = np.array([mean for mean, _ in fits]) * len(points) * (1 - rho) / (1 + rho)
    weights = np.exp(likelihoods - likelihoods.max())
    return Mixture([fit for _, fit in fits], weights / weights.sum())

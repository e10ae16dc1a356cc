"""Least-squares fits of the forms, with AR(1) noise, and what follows from a fit: intervals and predictive densities.

Weighted by the noise's correlation (generalised least squares, with rho estimated from the residuals of a first fit), the
parameters' covariance and the intervals are the usual ones of non-linear regression: linear in the parameters around the
optimum, Student's t.
"""

from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

from scaling.data import Floats, Points, TooLittleDataError
from scaling.forms import Form
from scaling.noise import estimate_rho, whiten

SPARE_STEPS = 4
"""Steps that a fit needs beyond the number of its parameters."""

MOST_RISE = 10.0
"""Scale of a curve, in ranges of the y that it was fitted to. Without a bound a logistic curve of which only the foot was
seen is an exponential, and its forecast any number."""
MOST_EVALUATIONS = 30
"""Of the refinement: from the grid's best it needs a handful, and data without that shape would take hundreds."""


@dataclass(frozen=True)
class Fit:
    """A form fitted to n points."""

    form: Form
    unit: float
    """The largest x, which the form's x is counted in."""
    values: Floats
    """[p], in the order of `form.parameters`."""
    covariance: Floats
    """[p, p]."""
    sigma: float
    """Standard deviation of the noise around the curve."""
    rho: float
    """Its lag-1 autocorrelation."""
    freedom: int
    """Degrees of freedom."""
    at_bound: bool
    """A parameter lies at the edge of what was searched: the data do not say where it is."""

    def mean(self, x: Floats) -> Floats:
        """The curve [m] at x [m]."""
        return self.form.mean(x / self.unit, self.values)

    def curve_error(self, x: Floats) -> Floats:
        """Standard error [m] of the curve."""
        jacobian = _jacobian(self.form, x / self.unit, self.values)
        return np.sqrt(np.maximum(np.einsum("ip,pq,iq->i", jacobian, self.covariance, jacobian), 0.0))

    def prediction(self, x: Floats, level: float) -> tuple[Floats, Floats]:
        """Interval (low [m], high [m]) for one new measurement at each x, each by itself."""
        reach = stats.t.ppf(0.5 + level / 2, self.freedom) * np.hypot(self.curve_error(x), self.sigma)
        mean = self.mean(x)
        return mean - reach, mean + reach

    def log_density(self, x: Floats, y: Floats) -> Floats:
        """Log predictive density [m] of measurements y at x: Student's t around the curve."""
        scale = np.hypot(self.curve_error(x), self.sigma)
        return stats.t.logpdf(y, self.freedom, loc=self.mean(x), scale=scale)

    def interval(self, level: float) -> list[tuple[str, float, float, float]]:
        """(name, value, low, high) of each parameter, in the units of x."""
        reach = stats.t.ppf(0.5 + level / 2, self.freedom) * np.sqrt(np.maximum(np.diag(self.covariance), 0.0))
        result = []
        for parameter, value, distance in zip(self.form.parameters, self.values, reach, strict=True):
            factor = self.unit**parameter.unit
            low, high = (value - distance) * factor, (value + distance) * factor
            result.append((parameter.name, float(value * factor), float(low), float(high)))
        return result


def fit(form: Form, points: Points) -> Fit:
    """The least-squares fit of `form`.

    Raises TooLittleDataError where the steps are fewer than its parameters and 4 more, and where y is constant.
    """
    parameters = len(form.parameters)
    points.require(parameters + SPARE_STEPS, f"a {form.name} fit")
    unit = float(points.x.max())
    u = points.x / unit
    rho = estimate_rho(points.y - form.mean(u, _best_of_grid(form, u, points, 0.0)), points, parameters)
    values = _search(form, u, points, rho)
    residuals = whiten(points.y - form.mean(u, values), points, rho)
    freedom = max(1, len(points) - parameters - 1)
    variance = float(residuals @ residuals) / freedom
    jacobian = whiten(_jacobian(form, u, values).T, points, rho).T
    covariance = np.asarray(variance * np.linalg.pinv(jacobian.T @ jacobian, hermitian=True, rcond=1e-12), np.float64)
    low, high = _bounds(form, points)
    at_bound = bool(np.any((values - low < 1e-4 * (high - low)) | (high - values < 1e-4 * (high - low))))
    return Fit(form, unit, values, covariance, variance**0.5, rho, freedom, at_bound)


def _best_of_grid(form: Form, u: Floats, points: Points, rho: float) -> Floats:
    """The values [p] of the least whitened squares over the grid of shapes; exact for a form without shape parameters."""
    y = whiten(points.y, points, rho)
    ones = whiten(np.ones(len(u)), points, rho)
    if len(form.linear) == 1:
        return np.array([float(ones @ y) / float(ones @ ones)])
    grid = form.grid()
    offset, scale, loss = _straight(ones, whiten(form.shape(u, grid), points, rho), y)
    best = int(np.argmin(loss))
    return np.array([offset[best], scale[best], *grid[best]])


def _search(form: Form, u: Floats, points: Points, rho: float) -> Floats:
    """The values [p] of the least whitened squares: the best of the grid, refined."""
    start = _best_of_grid(form, u, points, rho)
    if not form.shape_parameters:
        return start
    low, high = _bounds(form, points)
    found = optimize.least_squares(
        lambda values: whiten(points.y - form.mean(u, values), points, rho),
        np.clip(start, low + 1e-9, high - 1e-9),
        jac=lambda values: -whiten(_jacobian(form, u, values).T, points, rho).T,
        bounds=(low, high),
        x_scale="jac",
        max_nfev=MOST_EVALUATIONS,
        ftol=1e-6,
        xtol=1e-6,
    )
    return found.x


def _bounds(form: Form, points: Points) -> tuple[Floats, Floats]:
    """Least and largest values [p] that are searched: a curve may rise to ten times what was seen of it, no further."""
    low, high = (np.array([getattr(parameter, side) for parameter in form.parameters]) for side in ("low", "high"))
    if form.shape_parameters:
        low[0], high[0] = points.y.min() - MOST_RISE * np.ptp(points.y), points.y.max() + MOST_RISE * np.ptp(points.y)
        low[1], high[1] = -MOST_RISE * np.ptp(points.y), MOST_RISE * np.ptp(points.y)
    return low, high


def _straight(ones: Floats, shapes: Floats, y: Floats) -> tuple[Floats, Floats, Floats]:
    """Offset [K], scale [K] and sum of squares [K] of y [n] regressed on `ones` [n] and each of `shapes` [K, n]."""
    a, b, c = ones @ ones, shapes @ ones, np.einsum("kn,kn->k", shapes, shapes)
    d, e = ones @ y, shapes @ y
    determinant = a * c - b**2
    safe = determinant > 1e-12 * a * np.maximum(c, 1e-300)
    scale = np.where(safe, (a * e - b * d) / np.where(safe, determinant, 1.0), 0.0)
    offset = (d - scale * b) / a
    loss = ((y - offset[:, None] * ones - scale[:, None] * shapes) ** 2).sum(axis=1)
    return offset, scale, loss


def _jacobian(form: Form, u: Floats, values: Floats) -> Floats:
    """Derivative [n, p] of the curve by its parameters; the shape's by central differences."""
    columns = [np.ones(len(u))]
    if len(form.linear) == 2:
        theta = values[2:]
        columns.append(form.shape(u, theta[None])[0])
        for number in range(len(theta)):
            step = np.zeros(len(theta))
            step[number] = 1e-5 * max(abs(theta[number]), 1e-2)
            up, down = form.shape(u, (theta + step)[None])[0], form.shape(u, (theta - step)[None])[0]
            columns.append(values[1] * (up - down) / (2 * step[number]))
    return np.column_stack(columns)


def fit_or_word(form: Form, points: Points) -> Fit | str:
    """The fit, or the word that says why there is none."""
    try:
        return fit(form, points)
    except TooLittleDataError as error:
        return str(error)

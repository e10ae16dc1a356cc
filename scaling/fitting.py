"""Least-squares fits of the forms, with their noise, and what follows from a fit: intervals and predictive densities.

    variance of a measurement = sigma^2 + p (1 - p) / n      the second part for a share of n responses, p on the curve

A share near 0 or 1 varies less than one in the middle, and never less than the draw of its responses makes it. What is more
than that is sigma^2, found so that the weighted residuals have the variance 1 (Paule and Mandel 1982); of quantities that
are no shares it is everything. Residuals over their standard deviation are AR(1), with rho from those of a first fit. Given
both (generalised least squares), the parameters' covariance and the intervals are the usual ones of non-linear regression:
linear in the parameters around the optimum, Student's t.
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
ROUNDS = 3
"""Rounds of weighing and fitting in turn: the weights of a share's noise come from the curve."""
MOST_EVALUATIONS = 30
"""Most evaluations of the refinement: from the grid's best it needs few, and data without that shape would take hundreds."""


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
    """Standard deviation of the noise around the curve; of a share, of what is more than the draw of its responses."""
    samples: float | None
    """Responses of which a measurement is a share, the median; None where it is no share."""
    rho: float
    """Lag-1 autocorrelation of the noise."""
    freedom: int
    """Degrees of freedom."""
    at_bound: bool
    """A parameter lies at the edge of what was searched: the data do not say where it is."""

    def mean(self, x: Floats) -> Floats:
        """Returns the curve [m] at x [m]."""
        return self.form.mean(x / self.unit, self.values)

    def curve_error(self, x: Floats) -> Floats:
        """Returns the standard error [m] of the curve."""
        jacobian = _jacobian(self.form, x / self.unit, self.values)
        return np.sqrt(np.maximum(np.einsum("ip,pq,iq->i", jacobian, self.covariance, jacobian), 0.0))

    def noise(self, x: Floats) -> Floats:
        """Returns the standard deviation [m] of a measurement at x around the curve."""
        if self.samples is None:
            return np.full(len(x), self.sigma)
        return np.sqrt(self.sigma**2 + _drawing(self.mean(x), np.full(len(x), self.samples)))

    def prediction(self, x: Floats, level: float) -> tuple[Floats, Floats]:
        """Returns the interval (low [m], high [m]) for one new measurement at each x, each by itself."""
        reach = stats.t.ppf(0.5 + level / 2, self.freedom) * np.hypot(self.curve_error(x), self.noise(x))
        mean = self.mean(x)
        return mean - reach, mean + reach

    def log_density(self, x: Floats, y: Floats) -> Floats:
        """Returns the log predictive density [m] of measurements y at x: Student's t around the curve."""
        scale = np.hypot(self.curve_error(x), self.noise(x))
        return stats.t.logpdf(y, self.freedom, loc=self.mean(x), scale=scale)

    def interval(self, level: float) -> list[tuple[str, float, float, float]]:
        """Returns (name, value, low, high) of each parameter, in the units of x."""
        reach = stats.t.ppf(0.5 + level / 2, self.freedom) * np.sqrt(np.maximum(np.diag(self.covariance), 0.0))
        result = []
        for parameter, value, distance in zip(self.form.parameters, self.values, reach, strict=True):
            factor = self.unit**parameter.unit
            low, high = (value - distance) * factor, (value + distance) * factor
            result.append((parameter.name, float(value * factor), float(low), float(high)))
        return result


def fit(form: Form, points: Points) -> Fit:
    """Returns the least-squares fit of `form`.

    Raises TooLittleDataError where the steps are fewer than its parameters and 4 more, and where y is constant.
    """
    parameters = len(form.parameters)
    points.require(parameters + SPARE_STEPS, f"a {form.name} fit")
    unit = float(points.x.max())
    u = points.x / unit
    noise = _Noise(points, np.ones(len(u)), 0.0)
    first = points.y - form.mean(u, _best_of_grid(form, u, points, noise))
    noise = _Noise(points, np.ones(len(u)), estimate_rho(first, points, parameters))
    values = _search(form, u, points, noise)
    freedom = max(1, len(points) - parameters - 1)
    for _ in range(1 if points.samples is None else ROUNDS):
        sigma, noise = _weighed(points, form.mean(u, values), noise.rho, freedom)
        # One deviation for all weighs nothing differently.
        values = values if points.samples is None else _search(form, u, points, noise)
    jacobian = noise.whitened(_jacobian(form, u, values).T).T
    covariance = np.asarray(np.linalg.pinv(jacobian.T @ jacobian, hermitian=True, rcond=1e-12), np.float64)
    low, high = _bounds(form, points)
    at_bound = bool(np.any((values - low < 1e-4 * (high - low)) | (high - values < 1e-4 * (high - low))))
    samples = None if points.samples is None else float(np.median(points.samples))
    return Fit(form, unit, values, covariance, sigma, samples, noise.rho, freedom, at_bound)


@dataclass(frozen=True)
class _Noise:
    """Says how measurements vary, as far as that is known."""

    points: Points
    deviation: Floats
    """[n], of each; ones while it is not known."""
    rho: float

    def whitened(self, values: Floats) -> Floats:
        """Returns the values [..., n] over their deviation, and without autocorrelation."""
        return whiten(values / self.deviation, self.points, self.rho)


def _weighed(points: Points, mean: Floats, rho: float, freedom: int) -> tuple[float, _Noise]:
    """Estimates sigma, and the noise with it, around a curve [n]: scaled residuals have variance 1 at most."""
    drawing = np.zeros(len(mean)) if points.samples is None else _drawing(mean, points.samples)

    def noise(variance: float) -> _Noise:
        return _Noise(points, np.sqrt(variance + drawing), rho)

    def excess(variance: float) -> float:
        white = noise(variance).whitened(points.y - mean)
        return float(white @ white) / freedom - 1.0

    white = whiten(points.y - mean, points, rho)
    most = max(float(white @ white) / freedom, 1e-24)
    if points.samples is None:
        return most**0.5, noise(most)
    if excess(0.0) <= 0.0:
        return 0.0, noise(0.0)
    # Noise that is larger somewhere than elsewhere, and correlated, may ask for a little more than its mean.
    while excess(most) > 0.0:
        most *= 2.0
    variance = float(optimize.brentq(excess, 0.0, most, rtol=1e-6))
    return variance**0.5, noise(variance)


def _drawing(mean: Floats, samples: Floats) -> Floats:
    """Returns the variance [n] of shares of so many independent draws.

    Where the curve leaves 0 to 1, it counts as half a response from there.
    """
    p = np.clip(mean, 0.5 / samples, 1.0 - 0.5 / samples)
    return p * (1.0 - p) / samples


def _best_of_grid(form: Form, u: Floats, points: Points, noise: _Noise) -> Floats:
    """Returns the values [p] of the least whitened squares over the grid of shapes.

    The result is exact for a form without shape parameters.
    """
    y = noise.whitened(points.y)
    ones = noise.whitened(np.ones(len(u)))
    if len(form.linear) == 1:
        return np.array([float(ones @ y) / float(ones @ ones)])
    grid = form.grid()
    offset, scale, loss = _straight(ones, noise.whitened(form.shape(u, grid)), y)
    best = int(np.argmin(loss))
    return np.array([offset[best], scale[best], *grid[best]])


def _search(form: Form, u: Floats, points: Points, noise: _Noise) -> Floats:
    """Returns the values [p] of the least whitened squares: the best of the grid, refined."""
    start = _best_of_grid(form, u, points, noise)
    if not form.shape_parameters:
        return start
    low, high = _bounds(form, points)
    found = optimize.least_squares(
        lambda values: noise.whitened(points.y - form.mean(u, values)),
        np.clip(start, low + 1e-9, high - 1e-9),
        jac=lambda values: -noise.whitened(_jacobian(form, u, values).T).T,
        bounds=(low, high),
        x_scale="jac",
        max_nfev=MOST_EVALUATIONS,
        ftol=1e-6,
        xtol=1e-6,
    )
    return found.x


def _bounds(form: Form, points: Points) -> tuple[Floats, Floats]:
    """Returns the bounds [p] of the search: a curve may rise to ten times what was seen of it, no further."""
    low, high = (np.array([getattr(parameter, side) for parameter in form.parameters]) for side in ("low", "high"))
    if form.shape_parameters:
        low[0], high[0] = points.y.min() - MOST_RISE * np.ptp(points.y), points.y.max() + MOST_RISE * np.ptp(points.y)
        low[1], high[1] = -MOST_RISE * np.ptp(points.y), MOST_RISE * np.ptp(points.y)
    return low, high


def _straight(ones: Floats, shapes: Floats, y: Floats) -> tuple[Floats, Floats, Floats]:
    """Regresses y [n] on `ones` [n] and each of `shapes` [K, n]; returns offset, scale and sum of squares, each [K]."""
    a, b, c = ones @ ones, shapes @ ones, np.einsum("kn,kn->k", shapes, shapes)
    d, e = ones @ y, shapes @ y
    determinant = a * c - b**2
    safe = determinant > 1e-12 * a * np.maximum(c, 1e-300)
    scale = np.where(safe, (a * e - b * d) / np.where(safe, determinant, 1.0), 0.0)
    offset = (d - scale * b) / a
    loss = ((y - offset[:, None] * ones - scale[:, None] * shapes) ** 2).sum(axis=1)
    return offset, scale, loss


def _jacobian(form: Form, u: Floats, values: Floats) -> Floats:
    """Returns the derivative [n, p] of the curve by its parameters; the shape's by central differences."""
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
    """Returns the fit, or the word that says why there is none."""
    try:
        return fit(form, points)
    except TooLittleDataError as error:
        return str(error)

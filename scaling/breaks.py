"""Change points: steps at which a curve changes its slope, found one by one, each with its evidence; and dip-then-rise.

The model is a continuous curve of straight pieces with AR(1) noise. A break is added where it lowers the squared error
most, and stays if the reduction is larger than chance makes it: the F statistic of the best knot is compared with those
of the best knots in simulated curves that have no further break. That pays for having searched. Curves without any
break are the smooth forms (`scaling.forms`), each as fitted to the data: growth that bends smoothly, as a power law does,
changes its slope all the time and has no change point. So the first break must be unlikely under every one of them.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import statsmodels.api as sm

from scaling.data import Floats, Points
from scaling.fitting import Fit, fit_or_word
from scaling.forms import CONSTANT, FORMS
from scaling.noise import estimate_rho

LEAST_STEPS = 12
EDGE = 3
"""Steps that each piece must have."""
MOST_BREAKS = 3
SIMULATIONS = 999
SIGNIFICANCE = 0.05


@dataclass(frozen=True)
class Break:
    """A change of slope."""

    step: int
    """Last step of the piece before it."""
    p_value: float
    """Probability of so large an F statistic where there is no such break."""
    low: int
    high: int
    """Steps that describe the data about as well: 95 % by the likelihood ratio of the knot."""


@dataclass(frozen=True)
class Piece:
    """One straight piece of the curve."""

    first: int
    last: int
    slope: float
    """Change of y in a step."""
    low: float
    high: float
    """95 % interval of the slope, given where the breaks are."""


@dataclass(frozen=True)
class Course:
    """The curve in straight pieces."""

    breaks: list[Break]
    pieces: list[Piece]
    rejected_p_value: float | None
    """Evidence for one break more, which was not enough; None where no more would fit."""
    dip_then_rise: bool
    """A piece that falls, directly followed by one that rises, both slopes' intervals excluding 0."""


def course(points: Points, seed: int = 0) -> Course:
    """Returns the breaks of y over training steps; the runs of a setting are averaged step by step.

    Raises TooLittleDataError for fewer than 12 steps and for a constant y.
    """
    points.require(LEAST_STEPS, "change points")
    steps = np.unique(points.step).astype(np.float64)
    y = np.array([points.y[points.step == step].mean() for step in steps])
    rng = np.random.default_rng(seed)
    knots: list[int] = []
    p_values: dict[int, float] = {}
    rejected = None
    while len(knots) < MOST_BREAKS and (candidates := _candidates(steps, knots)):
        knot, p_value = _best_break(steps, y, knots, candidates, rng)
        if p_value > SIGNIFICANCE:
            rejected = p_value
            break
        knots.append(knot)
        p_values[knot] = p_value
    knots.sort()
    breaks = [Break(knot, p_values[knot], *_knot_interval(steps, y, knots, knot)) for knot in knots]
    pieces = _pieces(steps, y, knots)
    dip = any(before.high < 0 < after.low for before, after in pairwise(pieces))
    return Course(breaks, pieces, rejected, dip)


def _design(steps: Floats, knots: list[int]) -> Floats:
    """Returns [n, 2 + K]: constant, step, and the distance beyond each knot."""
    return np.column_stack([np.ones(len(steps)), steps, *(np.maximum(steps - knot, 0) for knot in knots)])


def _candidates(steps: Floats, knots: list[int]) -> list[int]:
    """Returns the steps where a further break leaves every piece at least EDGE steps."""
    ends = [int(steps[0]) - 1, *knots, int(steps[-1])]
    return [int(step) for step in steps if all(abs(int(step) - end) >= EDGE for end in ends)]


def _squares(design: Floats, values: Floats) -> Floats:
    """Returns the residual sums of squares [B] of the columns of `values` [n, B]."""
    q, _ = np.linalg.qr(design)
    return (values**2).sum(axis=0) - ((q.T @ values) ** 2).sum(axis=0)


def _best_break(
    steps: Floats, y: Floats, knots: list[int], candidates: list[int], rng: np.random.Generator
) -> tuple[int, float]:
    """Returns the best further knot and its p-value."""
    null = _design(steps, knots)
    alternatives = [_design(steps, [*knots, knot]) for knot in candidates]
    best = int(np.argmin([_squares(design, y[:, None])[0] for design in alternatives]))

    def statistic(values: Floats) -> Floats:
        after = np.min([_squares(design, values) for design in alternatives], axis=0)
        return _squares(null, values) / np.maximum(after, 1e-300)

    # Around the curve with the break: around one without it, the break itself would pass for noise.
    design = alternatives[best]
    residuals = y - design @ np.linalg.lstsq(design, y, rcond=None)[0]
    freedom = len(y) - design.shape[1] - 1
    rho = estimate_rho(residuals, _as_points(steps, residuals), design.shape[1] + 1)
    deviation = np.sqrt(residuals @ residuals / freedom)

    def p_value(curve: Floats) -> float:
        simulated = curve[:, None] + deviation * _autoregressive(rng, len(steps), rho, SIMULATIONS)
        return float((1 + (statistic(simulated) >= statistic(y[:, None])[0]).sum()) / (1 + SIMULATIONS))

    if knots:
        nulls = [null @ np.linalg.lstsq(null, y, rcond=None)[0]]
    else:
        fits = [fit_or_word(form, _as_points(steps, y)) for form in FORMS if form is not CONSTANT]
        nulls = [found.mean(steps) for found in fits if isinstance(found, Fit)]
    return candidates[best], max(map(p_value, nulls))


def _knot_interval(steps: Floats, y: Floats, knots: list[int], knot: int) -> tuple[int, int]:
    others = [other for other in knots if other != knot]
    candidates = _candidates(steps, others)
    losses = np.array([_squares(_design(steps, [*others, knot]), y[:, None])[0] for knot in candidates])
    design = _design(steps, knots)
    residuals = y - design @ np.linalg.lstsq(design, y, rcond=None)[0]
    rho = estimate_rho(residuals, _as_points(steps, residuals), design.shape[1])
    # Twice the log likelihood falls by n log(loss / least), with the n of independent measurements that tell as much;
    # 3.84 is the 95 % point of chi-squared with one degree.
    count = len(y) * (1 - rho) / (1 + rho)
    near = [knot for knot, loss in zip(candidates, losses, strict=True) if count * np.log(loss / losses.min()) <= 3.84]
    return min(near), max(near)


def _pieces(steps: Floats, y: Floats, knots: list[int]) -> list[Piece]:
    design = _design(steps, knots)
    residuals = sm.OLS(y, design).fit().resid
    rho = estimate_rho(residuals, _as_points(steps, residuals), design.shape[1])
    sigma = rho ** np.abs(np.subtract.outer(steps, steps)) if rho > 0 else np.eye(len(steps))
    model = sm.GLS(y, design, sigma=sigma).fit()
    ends = [int(steps[0]), *knots, int(steps[-1])]
    pieces = []
    for number, (first, last) in enumerate(pairwise(ends)):
        # The slope of a piece is the first one's and what the breaks up to it added.
        contrast = np.concatenate([[0.0], np.ones(number + 1), np.zeros(len(knots) - number)])
        test = model.t_test(contrast)
        low, high = test.conf_int()[0]
        pieces.append(Piece(first, last, float(test.effect[0]), float(low), float(high)))
    return pieces


def _autoregressive(rng: np.random.Generator, length: int, rho: float, draws: int) -> Floats:
    """Draws unit-variance AR(1) noise [length, draws]."""
    noise = rng.standard_normal((length, draws))
    for number in range(1, length):
        noise[number] = rho * noise[number - 1] + (1 - rho**2) ** 0.5 * noise[number]
    return noise


def _as_points(steps: Floats, values: Floats) -> Points:
    return Points(steps, values, np.zeros(len(steps), dtype=np.int64), steps.astype(np.int64))

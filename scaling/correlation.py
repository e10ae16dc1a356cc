"""Correlations between two series, with intervals that respect autocorrelation.

Several runs of one setting are replicates: each run's correlation is taken within the run, and the runs are averaged on
Fisher's scale, z = artanh(r). The interval comes from a block bootstrap of steps within each run, with blocks as long as the
residuals of y over x are persistent: its standard error on Fisher's scale, and Student's t with as many degrees of freedom
as there are blocks that do not overlap, less one.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from scaling.data import Floats, Points, TooLittleDataError
from scaling.noise import block_draws, block_length

Kind = Literal["pearson", "spearman"]

LEAST_STEPS = 8
DRAWS = 1000
MAX_Z = float(np.arctanh(1 - 1e-9))


@dataclass(frozen=True)
class Correlation:
    """An estimate in [-1, 1] with its interval."""

    kind: Kind
    value: float
    low: float
    high: float
    level: float
    """Nominal coverage of the interval."""
    steps: int
    """Pairs of steps that one run contributes, at most."""
    block: int
    """Length of the bootstrap's blocks, in steps."""


@dataclass(frozen=True)
class LaggedCorrelation:
    """The correlation of x at step t with y at step t + lag."""

    lag: int
    correlation: Correlation


def correlate(points: Points, kind: Kind, level: float = 0.95, draws: int = DRAWS, seed: int = 0) -> Correlation:
    """Returns the correlation of x and y.

    Raises TooLittleDataError for fewer than 8 steps and where x or y is constant, in any run.
    """
    points.require(LEAST_STEPS, "a correlation")
    runs = points.by_run()
    for run in runs:
        run.require(LEAST_STEPS, "a correlation")
    rng = np.random.default_rng(seed)
    block = block_length([_residuals(run, kind) for run in runs])
    weights = np.array([len(run) - 3.0 for run in runs])
    estimates = np.array([_fisher(run.x[None], run.y[None], kind)[0] for run in runs])
    drawn = np.zeros((len(runs), draws))
    for number, run in enumerate(runs):
        index = block_draws(rng, len(run), block, draws)
        drawn[number] = _fisher(run.x[index], run.y[index], kind)
    usable = np.isfinite(drawn).all(axis=0)
    if usable.mean() < 0.9:
        raise TooLittleDataError("x or y hardly ever changes: resampled, it is mostly constant")
    z = float(np.average(estimates, weights=weights))
    pooled = np.average(drawn[:, usable], axis=0, weights=weights)
    # From quantiles: a draw that repeats one block may have any correlation, and a few such would rule the deviation.
    error = float(np.subtract(*np.quantile(pooled, [0.8413, 0.1587]))) / 2
    blocks = sum(len(run) // block for run in runs)
    # Drawing whole blocks from a finite series loses about one block's share of the variance.
    error *= (blocks / max(blocks - 1, 1)) ** 0.5
    reach = float(stats.t.ppf(0.5 + level / 2, max(blocks - 1, 2))) * error
    value, low, high = (float(np.tanh(bound)) for bound in (z, z - reach, z + reach))
    return Correlation(kind, value, low, high, level, max(len(run) for run in runs), block)


def lagged(points: Points, kind: Kind, most: int, level: float = 0.95, draws: int = DRAWS) -> list[LaggedCorrelation]:
    """Returns the correlations of x with y `lag` steps later, for lags of -most to most.

    Of several lags the largest correlation is larger than any would be alone: an interval is that of its own lag.
    """
    return [
        LaggedCorrelation(lag, correlate(_shifted(points, lag), kind, level, draws)) for lag in range(-most, most + 1)
    ]


def changes(points: Points) -> Points:
    """Returns the differences from each step to the next, within runs: without the trend that two growing series share."""
    parts = [(np.diff(run.x), np.diff(run.y), run.step[1:]) for run in points.by_run()]
    return Points.of_runs(parts)


def _shifted(points: Points, lag: int) -> Points:
    """Returns the pairs of x at step t and y at step t + lag, of the same run."""
    parts = []
    for run in points.by_run():
        _, here, there = np.intersect1d(run.step + lag, run.step, return_indices=True)
        parts.append((run.x[here], run.y[there], run.step[here]))
    return Points.of_runs(parts)


def _residuals(run: Points, kind: Kind) -> Floats:
    """Returns what the straight line through the pairs, or their ranks, leaves of y."""
    x, y = (stats.rankdata(run.x), stats.rankdata(run.y)) if kind == "spearman" else (run.x, run.y)
    x, y = x - x.mean(), y - y.mean()
    return y - x * float(x @ y) / float(x @ x)


def _fisher(x: Floats, y: Floats, kind: Kind) -> Floats:
    """Returns Fisher's z [draws] of rows x and y [draws, n]; not a number where a row is constant."""
    if kind == "spearman":
        x, y = stats.rankdata(x, axis=1), stats.rankdata(y, axis=1)
    x, y = x - x.mean(axis=1, keepdims=True), y - y.mean(axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        r = (x * y).sum(axis=1) / np.sqrt((x**2).sum(axis=1) * (y**2).sum(axis=1))
        return np.clip(np.arctanh(np.clip(r, -1.0, 1.0)), -MAX_Z, MAX_Z)

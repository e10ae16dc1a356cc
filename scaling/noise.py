"""Autocorrelated noise: consecutive steps of a run share a policy, so their residuals are no independent draws.

Two descriptions of it are used. Regressions take it as a first-order autoregression, AR(1), around the curve:
e_t = rho e_(t-1) + innovation, with one rho for all runs. Correlations, which have no curve, resample blocks of steps.
"""

import numpy as np

from scaling.data import Floats, Ints, Points

MAX_RHO = 0.95


def whiten(values: Floats, points: Points, rho: float) -> Floats:
    """Returns the values [..., n] of the points, transformed so that AR(1) noise becomes independent with the same variance.

    Gaps between steps are taken into account (the correlation over a gap of k steps is rho^k); runs are independent.
    """
    same = points.run[1:] == points.run[:-1]
    phi = np.where(same, rho ** np.maximum(points.step[1:] - points.step[:-1], 1), 0.0)
    out = np.array(values, dtype=np.float64)
    out[..., 1:] = (values[..., 1:] - phi * values[..., :-1]) / np.sqrt(1.0 - phi**2)
    return out


def estimate_rho(residuals: Floats, points: Points, parameters: int) -> float:
    """Estimates the lag-1 autocorrelation of residuals [n] around a curve with `parameters` fitted parameters, at least 0.

    Residuals of a fit are less correlated than the noise was; the first-order term of that bias, known for a mean and a
    straight line (Marriott and Pope 1954), is added back. Negative estimates count as 0, which errs to wide intervals.
    """
    next_to = (points.run[1:] == points.run[:-1]) & (points.step[1:] == points.step[:-1] + 1)
    variance = float(np.mean(residuals**2))
    if next_to.sum() < 3 or variance <= 0.0:
        return 0.0
    rho = float(np.mean((residuals[1:] * residuals[:-1])[next_to])) / variance
    rho += (parameters + (parameters + 2) * rho) / len(points)
    return float(np.clip(rho, 0.0, MAX_RHO))


def block_length(series: list[Floats]) -> int:
    """Returns the length of the blocks of a bootstrap, from the persistence of the noise that it resamples.

    The rule for AR(1) noise (Carlstein 1986), n^(1/3) (2 rho / (1 - rho^2))^(2/3), for the most persistent of the series
    given; at least 1 and at most a fifth of the shortest.
    """
    shortest = min(len(values) for values in series)
    longest = 1
    for values in series:
        centred = values - values.mean()
        variance = float(np.mean(centred**2))
        if variance <= 0.0:
            continue
        rho = float(np.clip(np.mean(centred[1:] * centred[:-1]) / variance + 1.0 / len(values), 0.0, MAX_RHO))
        longest = max(longest, round(len(values) ** (1 / 3) * (2 * rho / (1 - rho**2)) ** (2 / 3)))
    return max(1, min(longest, shortest // 5))


def block_draws(rng: np.random.Generator, length: int, block: int, draws: int) -> Ints:
    """Draws the indices [draws, length] of a circular block bootstrap of `length` steps (Politis and Romano 1992)."""
    blocks = -(-length // block)
    starts = rng.integers(0, length, size=(draws, blocks, 1))
    return ((starts + np.arange(block)) % length).reshape(draws, -1)[:, :length]

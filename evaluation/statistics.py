"""The two numbers of an evaluation and how certain they are: avg@k, pass@k, and intervals over problems.

The problems of a data set are a random draw from all that could have been asked; the samples of one problem belong together.
So every estimate is a mean over problems, and its interval comes from drawing problems again, with all their samples.
"""

import math
import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]

LEVEL = 0.95
DRAWS = 5000


@dataclass(frozen=True)
class Estimate:
    """A mean over problems with the interval that holds the true one in `LEVEL` of all evaluations."""

    value: float
    low: float
    high: float
    problems: int
    """Over how many problems it was taken."""


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Returns the probability that at least one of k samples is right, from n `samples` of which c are `correct`.

    The unbiased estimator 1 - C(n - c, k) / C(n, k) (Chen et al. 2021, arXiv 2107.03374, equation 1), exact. With k = 1 it
    is c / n. Raises ValueError unless 1 <= k <= n and 0 <= c <= n.
    """
    if not (1 <= k <= samples and 0 <= correct <= samples):
        raise ValueError(f"pass@{k} of {samples} samples, {correct} of them right, is not defined")
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


def estimate(values: Floats, least: float = 0.0, most: float = 1.0, draws: int = DRAWS) -> Estimate:
    """Returns the mean of one value a problem, [P] between `least` and `most`, with its interval.

    A BCa bootstrap over problems (Efron 1987), with draws that depend on nothing but the values. Where all values are equal
    there is nothing to resample, and an interval of width 0 would claim too much: then at most a share
    1 - ((1 - LEVEL) / 2)^(1 / P) of all problems differs (Clopper and Pearson 1934), by no more than up to a bound. Raises
    ValueError without values.
    """
    count = len(values)
    if count == 0:
        raise ValueError("an estimate needs at least one problem")
    mean = float(np.mean(values))
    if np.ptp(values) == 0.0:
        differing = 1.0 - ((1.0 - LEVEL) / 2) ** (1.0 / count)
        return Estimate(mean, mean - differing * (mean - least), mean + differing * (most - mean), count)
    with warnings.catch_warnings():
        # Of a resample whose values are all equal; the whole sample was looked at above.
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        interval = stats.bootstrap(
            (values,), np.mean, n_resamples=draws, confidence_level=LEVEL, method="BCa", rng=np.random.default_rng(0)
        ).confidence_interval
    return Estimate(mean, max(least, float(interval.low)), min(most, float(interval.high)), count)

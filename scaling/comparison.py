"""Two settings held against each other at the same step, the same number of trained tokens or the same compute.

Each setting is averaged over its runs, and the difference over the second half of the range that both cover. The interval
is a block bootstrap's, over steps: it holds the noise of the steps, not how much another seed could differ.
"""

from dataclasses import dataclass

import numpy as np
from scipy import stats

from scaling.data import Floats, TooLittleDataError
from scaling.noise import block_draws, block_length
from scaling.runs import Setting

LEAST_POINTS = 5
DRAWS = 2000
LEVEL = 0.95


@dataclass(frozen=True)
class Comparison:
    """A quantity's mean difference, `other` minus `baseline`, between two points of an axis."""

    baseline: str
    other: str
    axis: str
    quantity: str
    first: float
    last: float
    """The range of the axis over which the difference is taken, in the axis's unit."""
    baseline_mean: float
    other_mean: float
    difference: float
    low: float
    high: float
    seeds: tuple[int, int]
    """Runs of the baseline and of the other setting."""


def compare(baseline: Setting, other: Setting, axis: str, quantity: str) -> Comparison:
    """Compares at the baseline's own points on the axis, between which the other setting is interpolated.

    Raises TooLittleDataError where fewer than 5 of them lie in the second half of the common range, and where an axis is
    missing.
    """
    for setting in (baseline, other):
        if word := setting.missing(axis):
            raise TooLittleDataError(word)
    curves = [[_curve(run.series[axis], run.series[quantity]) for run in s.runs] for s in (baseline, other)]
    every = [curve for part in curves for curve in part]
    if any(len(x) < 2 for x, _ in every):
        raise TooLittleDataError(f"a run measured {quantity} at fewer than two steps")
    low, high = max(x[0] for x, _ in every), min(x[-1] for x, _ in every)
    middle = (low + high) / 2
    grid = curves[0][0][0]
    grid = grid[(grid >= middle) & (grid <= high)]
    if len(grid) < LEAST_POINTS:
        raise TooLittleDataError(f"{len(grid)} common measurements are too few for a comparison")
    means = [np.mean([np.interp(grid, x, y) for x, y in part], axis=0) for part in curves]
    difference = means[1] - means[0]
    reach = _reach(difference)
    return Comparison(
        baseline=baseline.label,
        other=other.label,
        axis=axis,
        quantity=quantity,
        first=float(grid[0]),
        last=float(grid[-1]),
        baseline_mean=float(means[0].mean()),
        other_mean=float(means[1].mean()),
        difference=float(difference.mean()),
        low=float(difference.mean() - reach),
        high=float(difference.mean() + reach),
        seeds=(len(baseline.runs), len(other.runs)),
    )


def pairs(settings: list[Setting]) -> list[tuple[Setting, Setting]]:
    """Pairs the settings of one model and the same problems: the one with the fewest calls against each other one."""
    groups: dict[str, list[Setting]] = {}
    for setting in settings:
        groups.setdefault(repr(setting.problems), []).append(setting)
    found = []
    for group in groups.values():
        baseline = min(group, key=lambda setting: setting.max_tool_calls)
        found += [(baseline, other) for other in group if other.max_tool_calls > baseline.max_tool_calls]
    return found


def _curve(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    keep = np.isfinite(x) & np.isfinite(y)
    return x[keep], y[keep]


def _reach(difference: Floats) -> float:
    """Returns half the width of the mean's interval, from the residuals of a line: a difference that grows is no noise."""
    grid = np.arange(len(difference))
    residuals = difference - np.polyval(np.polyfit(grid, difference, 1), grid)
    block = block_length([residuals])
    blocks = len(residuals) // block
    drawn = residuals[block_draws(np.random.default_rng(0), len(residuals), block, DRAWS)].mean(axis=1)
    # The line took two degrees of freedom, and whole blocks of a finite series lose about one block's share.
    error = np.std(drawn, ddof=1) * (len(residuals) / (len(residuals) - 2) * blocks / max(blocks - 1, 1)) ** 0.5
    return float(stats.t.ppf(0.5 + LEVEL / 2, max(blocks - 2, 2)) * error)

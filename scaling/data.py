"""The points that the analysis computes on: one relation, over one or several runs of a setting.

`Points` holds the pairs (x, y) of all runs, run after run and in the order of steps, with what tells them apart: noise is
correlated within a run and independent between runs.
"""

import dataclasses
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class TooLittleDataError(ValueError):
    """The data cannot carry what was asked of them; the text is a clear word about why."""


@dataclass(frozen=True)
class Points:
    """n pairs of R runs."""

    x: Floats
    """[n], finite."""
    y: Floats
    """[n], finite."""
    run: Ints
    """[n], which run: 0 to R - 1, ascending."""
    step: Ints
    """[n], training step, ascending within a run."""
    samples: Floats | None = None
    """[n], responses of which y is a share; None where y is no share."""

    @classmethod
    def of_runs(cls, runs: list[tuple[Floats, Floats, Ints]]) -> Self:
        """Makes points from (x, y, step) of each run; a pair with a value that is not finite is left out."""
        parts = []
        for number, (x, y, step) in enumerate(runs):
            keep = np.isfinite(x) & np.isfinite(y)
            parts.append((x[keep], y[keep], np.full(int(keep.sum()), number, dtype=np.int64), step[keep]))
        if not parts:
            raise TooLittleDataError("no runs")
        return cls(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))

    @classmethod
    def of_shares(cls, runs: list[tuple[Floats, Floats, Ints, Floats]]) -> Self:
        """Makes points as `of_runs` does, of y that are shares; the last array of each run counts the responses."""
        points = cls.of_runs([(x, y, step) for x, y, step, _ in runs])
        samples = [samples[np.isfinite(x) & np.isfinite(y)] for x, y, _, samples in runs]
        return dataclasses.replace(points, samples=np.concatenate(samples))

    def __len__(self) -> int:
        return len(self.x)

    def where(self, keep: NDArray[np.bool_]) -> Self:
        """Returns the pairs that a mask [n] keeps."""
        samples = None if self.samples is None else self.samples[keep]
        return type(self)(self.x[keep], self.y[keep], self.run[keep], self.step[keep], samples)

    def by_run(self) -> list[Self]:
        """Returns the points of each run apart."""
        return [self.where(self.run == number) for number in np.unique(self.run)]

    def require(self, least: int, what: str) -> None:
        """Raises TooLittleDataError for fewer than `least` steps, and for an x or y that never changes."""
        steps = len(np.unique(self.step))
        if steps < least:
            raise TooLittleDataError(f"{steps} steps are too few for {what}, which needs {least}")
        for name, values in (("x", self.x), ("y", self.y)):
            if np.ptp(values) <= 1e-9 * max(1.0, float(np.abs(values).max())):
                raise TooLittleDataError(f"{name} is constant at {values[0]:.4g}")

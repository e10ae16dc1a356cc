"""Holds what a run has measured so far, for curves: as many points of each metric as a screen can show, and a few more.

A metric of a step is kept by step; a step that is trained again replaces what was there from it on. What belongs to no step
is kept by seconds since the run's first measurement. When a metric has `MOST_POINTS` points, neighbours become one, their
mean, and so on: memory is bounded however long the run is.

Cost: 24 bytes a point, at most 0.5 MB a metric; 10,000 steps of 70 metrics are 17 MB.
"""

from array import array
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from bus.messages import Metrics
from bus.metrics import OF_STEPS

MOST_POINTS = 20_000
MOST_SERIES = 20_000
"""Metrics that are kept: anybody may make up names."""
NO_STEP = -1

Floats = NDArray[np.float64]


class Series:
    """One metric of one process, or of the learner."""

    def __init__(self, *, by_step: bool = True) -> None:
        self.by_step = by_step
        self.place = array("d")
        """Step, or seconds since the run's first measurement; ascending."""
        self.time = array("d")
        """When it was measured, seconds since the epoch."""
        self.value = array("d")
        self.last = 0.0
        self._each = 1
        """Measurements that make a point."""
        self._waiting: list[tuple[float, float, float]] = []

    def add(self, place: float, time: float, value: float) -> None:
        """Takes a measurement; one that is not behind the last replaces what was there from its place on."""
        self.last = value
        if self._waiting and place <= self._waiting[-1][0]:
            self._waiting = [each for each in self._waiting if each[0] < place]
        while self.place and place <= self.place[-1]:
            for column in (self.place, self.time, self.value):
                column.pop()
        self._waiting.append((place, time, value))
        if len(self._waiting) >= self._each:
            self._append()
        if len(self.place) >= MOST_POINTS:
            self._thin()

    def _append(self) -> None:
        for column, values in zip((self.place, self.time, self.value), zip(*self._waiting, strict=True), strict=True):
            column.append(sum(values) / len(values))
        self._waiting.clear()

    def _thin(self) -> None:
        for name in ("place", "time", "value"):
            column = np.frombuffer(getattr(self, name))
            pairs = column[: len(column) // 2 * 2].reshape(-1, 2).mean(axis=1)
            setattr(self, name, array("d", pairs.tobytes()))
        self._each *= 2

    @property
    def total(self) -> float:
        """Returns the sum of all measurements."""
        return sum(self.value) * self._each + sum(value for _, _, value in self._waiting)

    def points(self) -> tuple[Floats, Floats, Floats]:
        """Returns places, times and values [n]."""
        waiting = [sum(each) / len(each) for each in zip(*self._waiting, strict=True)] if self._waiting else []
        columns = [np.array(column) for column in (self.place, self.time, self.value)]
        if not waiting:
            return columns[0], columns[1], columns[2]
        whole = [np.append(column, value) for column, value in zip(columns, waiting, strict=True)]
        return whole[0], whole[1], whole[2]


class Store:
    """Everything that one run has measured."""

    def __init__(self) -> None:
        self.series: dict[tuple[str, str, str], Series] = {}
        """By role, id (empty for the learner's) and name."""
        self.latest: dict[tuple[str, str], tuple[float, int | None, Mapping[str, float]]] = {}
        """By role and id: time, step and values of the last measurement."""
        self.began: float | None = None
        self.left_out = 0
        """Measurements of names beyond `MOST_SERIES`."""
        self.step = 0

    def add(self, metrics: Metrics) -> None:
        """Takes what one process measured."""
        step = metrics.step if metrics.role in OF_STEPS else None
        if self.began is None and metrics.role != "actor":
            # Whoever may write an actor's metrics makes up their times.
            self.began = metrics.time
        of_learner = metrics.role == "learner" and step is not None
        id = "" if of_learner else metrics.id
        began = metrics.time if self.began is None else self.began
        place = max(0.0, metrics.time - began) if step is None else float(step)
        for name, value in metrics.values.items():
            key = metrics.role, id, name
            series = self.series.get(key)
            if series is None:
                if len(self.series) >= MOST_SERIES:
                    self.left_out += 1
                    continue
                series = self.series[key] = Series(by_step=step is not None)
            series.add(place, metrics.time, value)
        if len(self.latest) < MOST_SERIES or (metrics.role, id) in self.latest:
            self.latest[metrics.role, id] = metrics.time, step, metrics.values
        if of_learner and step is not None:
            self.step = step

    def names(self) -> list[str]:
        """Returns what curves can be drawn: `learner/accuracy`, `actor/actor-0/tokens_per_s` ..."""
        return sorted(curve_name(*key) for key in self.series)

    def axis(self, name: str) -> tuple[Floats, Floats] | None:
        """Returns steps and, at each, how far a run was by an abscissa; None where its metrics do not say.

        `tokens`: sampled tokens trained on so far; `compute`: floating-point operations of training so far, in units of
        1e15 (6 a parameter and token, as `zerotir scaling` counts).
        """
        wanted = {"tokens": ("trained_tokens",), "compute": ("trained_sequence_tokens", "parameters")}[name]
        found = [self.series.get(("learner", "", each)) for each in wanted]
        if any(series is None for series in found):
            return None
        columns = [series.points() for series in found if series is not None]
        steps = columns[0][0]
        amount = np.prod([np.interp(steps, each[0], each[2]) for each in columns], axis=0)
        # Where points were thinned, each stands for several steps.
        covered = np.diff(steps, prepend=0.0)
        scale = 6e-15 if name == "compute" else 1.0
        return steps, np.cumsum(amount * covered) * scale


def curve_name(role: str, id: str, name: str) -> str:
    """Returns the name of a curve."""
    return "/".join(part for part in (role, id, name) if part)


def thinned(x: Floats, y: Floats, most: int) -> tuple[Floats, Floats]:
    """Returns at most `most` points of a curve, each the mean of its neighbours."""
    if len(x) <= most:
        return x, y
    starts = np.linspace(0, len(x), most, endpoint=False).astype(int)
    counts = np.diff(starts, append=len(x))
    return np.add.reduceat(x, starts) / counts, np.add.reduceat(y, starts) / counts

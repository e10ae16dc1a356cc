"""Holds what a run has measured so far, for curves: as many points of each metric as a screen can show, and a few more.

A metric of a step is kept by step; a step that is trained again takes away everything from it on. What belongs to no step is
kept by its time. When a metric has `MOST_POINTS` points, neighbours become one, their mean, and so on: memory is bounded
however long the run is. Anybody with a role's credentials may make up names, numbers and times of that role: it can fill
what is kept of its own role, and nothing else.

Cost: 24 bytes a point, at most 0.5 MB a metric; 10,000 steps of 70 metrics are 17 MB.
"""

from array import array
from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bus.messages import Metrics
from bus.metrics import FLOAT_LIMIT, OF_STEPS

MOST_POINTS = 20_000
MOST_SERIES = 20_000
"""Metrics that are kept of one role."""

Floats = NDArray[np.float64]


class Series:
    """One metric of one process, or of the learner."""

    def __init__(self, *, by_step: bool = True) -> None:
        self.by_step = by_step
        self.place = array("d")
        """Step, or time; ascending."""
        self.time = array("d")
        """When it was measured, seconds since the epoch."""
        self.value = array("d")
        self.cuts = 0
        """Counts the times when something was taken away."""
        self._each = 1
        """Measurements that make a point."""
        self._waiting: list[tuple[float, float, float]] = []

    def add(self, place: float, time: float, value: float) -> None:
        """Takes a measurement; one that is not behind the last replaces what was there from its place on."""
        self.cut(place)
        self._waiting.append((place, time, value))
        if len(self._waiting) >= self._each:
            self._append()
        if len(self.place) >= MOST_POINTS:
            self._thin()

    def cut(self, place: float) -> None:
        """Takes away what was measured from `place` on."""
        if (self._waiting and place <= self._waiting[-1][0]) or (self.place and place <= self.place[-1]):
            self.cuts += 1
        if self._waiting and place <= self._waiting[-1][0]:
            self._waiting = [each for each in self._waiting if each[0] < place]
        while self.place and place <= self.place[-1]:
            for column in (self.place, self.time, self.value):
                column.pop()

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


@dataclass(frozen=True)
class Latest:
    """What a process, or the learner, measured last."""

    time: float
    step: int | None
    values: dict[str, float]


class Store:
    """Everything that one run has measured."""

    def __init__(self) -> None:
        self.series: dict[tuple[str, str, str], Series] = {}
        """By role, id (empty for the learner's steps) and name."""
        self.latest: dict[tuple[str, str], Latest] = {}
        """By role and id."""
        self.began: float | None = None
        """When another role than an actor made the first measurement."""
        self.left_out = 0
        """Measurements of names beyond `MOST_SERIES`."""
        self.step = 0
        self._kept = Counter[str]()
        """Metrics of each role."""

    @property
    def learner(self) -> Latest | None:
        """Returns what the learner measured of its last step."""
        return self.latest.get(("learner", ""))

    def add(self, metrics: Metrics) -> None:
        """Takes what one process measured."""
        step = metrics.step if metrics.role in OF_STEPS else None
        if self.began is None and metrics.role != "actor":
            self.began = metrics.time
        id = metrics.id
        if metrics.role == "learner" and step is not None:
            id = ""
            if step <= self.step:
                # Also metrics that the step does not measure this time.
                for (role, of, _), series in self.series.items():
                    if role == "learner" and not of:
                        series.cut(step)
            self.step = step
        values = {name: value for name, value in metrics.values.items() if abs(value) < FLOAT_LIMIT}
        kept = {}
        for name, value in values.items():
            found = self._series(metrics.role, id, name, by_step=step is not None)
            if found is None:
                self.left_out += 1
                continue
            found.add(metrics.time if step is None else step, metrics.time, value)
            kept[name] = value
        if kept:
            self.latest[metrics.role, id] = Latest(metrics.time, step, kept)

    def _series(self, role: str, id: str, name: str, *, by_step: bool) -> Series | None:
        """Returns the series of a metric, a new one where there is none yet; None where the role has too many."""
        found = self.series.get((role, id, name))
        if found is None and self._kept[role] < MOST_SERIES:
            self._kept[role] += 1
            found = self.series[role, id, name] = Series(by_step=by_step)
        return found

    def names(self) -> list[str]:
        """Returns what curves can be drawn: `learner/accuracy`, `actor/actor-0/tokens_per_s` ..."""
        return sorted({curve_name(*key) for key in self.series})

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

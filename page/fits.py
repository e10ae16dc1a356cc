"""The scaling law's fits of what a run has measured so far, to be laid over its curves.

Forms, their choice and the bands are those of `zerotir scaling`, see `scaling.selection`; here of one run alone. A fit is
computed when somebody looks, and again once there is a fiftieth more of steps: 20 steps take 0.2 s, 10,000 steps 3 s.
Meanwhile the one before is shown.
"""

import asyncio
import threading
from functools import partial
from typing import Any

import numpy as np

from page.aside import aside
from page.store import Store
from scaling.data import Points, TooLittleDataError
from scaling.runs import QUANTITIES, SHARES

POINTS = 200
MORE = 1.02
"""Times as many steps as a fit is of make a new one worth while."""
REACH = 1.96
"""Standard errors to either side of the curve: 95 %."""
WAIT_S = 0.5
"""Seconds for which who asks waits for a fit."""
NOTHING: dict[str, Any] = {"form": "", "x": [], "y": [], "low": [], "high": [], "why": "", "computing": False}


class Fits:
    """Fits what one run has measured. To be used by the thread that fills the store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._core = threading.Lock()
        """A fit takes a whole core."""
        self._known: dict[tuple[str, str], tuple[int, int, dict[str, Any]]] = {}
        """Name and axis to the steps that a fit is of, how often they had been cut, and the fit."""
        self._computed: dict[tuple[str, str], asyncio.Future[tuple[int, int, dict[str, Any]]]] = {}
        """Those that are."""

    async def fit(self, name: str, axis: str) -> dict[str, Any]:
        """Returns the form that describes a curve over `step`, `tokens` or `compute`, with its 95 % band.

        `why` says why there is none, `computing` whether there will be another one soon. Raises ModuleNotFoundError where
        the packages of the extra `scaling` are not installed.
        """
        points = self._points(name, axis)
        if isinstance(points, str):
            return NOTHING | {"why": points}
        key = name, axis
        steps, cuts, found = self._known.get(key, (0, 0, NOTHING | {"why": "it is being computed"}))
        now = self._store.series["learner", "", name.removeprefix("learner/")].cuts
        is_old = cuts != now or not 0 < steps <= len(points) < max(steps + 1, MORE * steps)
        if key not in self._computed and is_old:
            self._computed[key] = aside(partial(self._fitted, points, now))
        if (computed := self._computed.get(key)) is None:
            return found
        await asyncio.wait({computed}, timeout=WAIT_S)
        if not computed.done():
            return found | {"computing": True}
        self._computed.pop(key, None)
        self._known[key] = computed.result()
        return self._known[key][2]

    def _points(self, name: str, axis: str) -> Points | str:
        """Returns the measurements of a curve; the word that says why there are none."""
        quantity = name.removeprefix("learner/")
        series = self._store.series.get(("learner", "", quantity))
        if quantity not in QUANTITIES or series is None:
            return "only accuracy, code ratio, calls per response and response length of the learner's steps are fitted"
        if axis not in ("step", "tokens", "compute"):
            return "fitted over steps, tokens or compute alone"
        steps, _, y = series.points()
        x = steps
        if axis != "step":
            found = self._store.axis(axis)
            if found is None:
                return "the run's metrics do not say how far its steps are on this axis"
            x = np.interp(steps, *found)
        numbers = steps.astype(np.int64)
        counted = self._store.series.get(("learner", "", "trajectories"))
        if quantity in SHARES and counted is not None:
            places, _, counts = counted.points()
            return Points.of_shares([(x, y, numbers, np.interp(steps, places, counts))])
        return Points.of_runs([(x, y, numbers)])

    def _fitted(self, points: Points, cuts: int) -> tuple[int, int, dict[str, Any]]:
        # Heavy, and of another extra.
        from scaling.selection import select

        with self._core:
            try:
                selection = select(points)
            except TooLittleDataError as error:
                return len(points), cuts, NOTHING | {"why": str(error)}
        if selection.flat:
            return len(points), cuts, NOTHING | {"why": "flat: no form predicts it better than a constant does"}
        fit = selection.chosen
        x = np.linspace(points.x.min(), points.x.max(), POINTS)
        mean, reach = fit.mean(x), REACH * fit.curve_error(x)
        columns = {"x": x, "y": mean, "low": mean - reach, "high": mean + reach}
        found = NOTHING | {"form": fit.form.name} | {name: each.tolist() for name, each in columns.items()}
        return len(points), cuts, found

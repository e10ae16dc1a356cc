"""Everything that is computed of a set of runs, in one structure that reports and plots are made from.

Where the data cannot carry a result, its place holds the word that says why.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import combinations

from scaling.breaks import Course, course
from scaling.comparison import Comparison, compare, pairs
from scaling.correlation import Correlation, LaggedCorrelation, changes, correlate, lagged
from scaling.data import Points, TooLittleDataError
from scaling.forecasting import Forecasts, forecast
from scaling.runs import AXES, QUANTITIES, Run, Setting, pool
from scaling.selection import Selection, select

MOST_LAGS = 5


@dataclass(frozen=True)
class Relation:
    """Says how two series of a setting go together."""

    x: str
    y: str
    spearman: Correlation | str
    pearson: Correlation | str
    of_changes: Correlation | str
    """Spearman's, of the differences from step to step."""
    lags_of_changes: list[LaggedCorrelation] | str
    """Spearman's, of the differences: x's with y's some steps later."""


@dataclass(frozen=True)
class Growth:
    """One quantity over one axis."""

    axis: str
    quantity: str
    points: Points | str
    selection: Selection | str
    forecasts: Forecasts | str


@dataclass(frozen=True)
class SettingAnalysis:
    """Holds the analysis of one setting."""

    setting: Setting
    trends: list[Relation]
    """Relation of each axis with each quantity."""
    relations: list[Relation]
    """Relations of the quantities among themselves."""
    growths: list[Growth]
    courses: dict[str, Course | str]
    """Quantity to its change points."""

    def growth(self, axis: str, quantity: str) -> Growth:
        """Returns the one of an axis and a quantity."""
        return next(growth for growth in self.growths if (growth.axis, growth.quantity) == (axis, quantity))


@dataclass(frozen=True)
class Analysis:
    """Holds the analysis of a set of runs."""

    settings: list[SettingAnalysis]
    comparisons: list[Comparison]
    not_compared: list[str]
    """Why a comparison could not be made."""


def analyse(runs: list[Run]) -> Analysis:
    """Pools the runs into settings, analyses each, and compares those with tools to the baseline of their task."""
    settings = pool(runs)
    comparisons, words = [], []
    for baseline, other in pairs(settings):
        for axis in AXES:
            for quantity in QUANTITIES:
                found = _or_word(partial(compare, baseline, other, axis, quantity))
                if isinstance(found, str):
                    words.append(f"{other.label} against {baseline.label}, {quantity} over {axis}: {found}")
                else:
                    comparisons.append(found)
    return Analysis([_analyse(setting) for setting in settings], comparisons, words)


def _analyse(setting: Setting) -> SettingAnalysis:
    trends = [_relation(setting, axis, quantity) for axis in AXES for quantity in QUANTITIES]
    relations = [_relation(setting, x, y) for x, y in combinations(QUANTITIES, 2)]
    growths = [_growth(setting, axis, quantity) for axis in AXES for quantity in QUANTITIES]
    courses = {quantity: _or_word(partial(course, setting.points("step", quantity))) for quantity in QUANTITIES}
    return SettingAnalysis(setting, trends, relations, growths, courses)


def _relation(setting: Setting, x: str, y: str) -> Relation:
    if word := setting.missing(x):
        return Relation(x, y, word, word, word, word)
    points = setting.points(x, y)
    word = "an axis only grows"
    of_changes: Correlation | str = word
    lags: list[LaggedCorrelation] | str = word
    if x in QUANTITIES:
        of_changes = _or_word(lambda: correlate(changes(points), "spearman"))
        most = min(MOST_LAGS, len(set(points.step)) // 6)
        lags = _or_word(lambda: lagged(changes(points), "spearman", most))
    return Relation(
        x,
        y,
        _or_word(lambda: correlate(points, "spearman")),
        _or_word(lambda: correlate(points, "pearson")),
        of_changes,
        lags,
    )


def _growth(setting: Setting, axis: str, quantity: str) -> Growth:
    if word := setting.missing(axis):
        return Growth(axis, quantity, word, word, word)
    points = setting.points(axis, quantity)
    return Growth(axis, quantity, points, _or_word(lambda: select(points)), _or_word(lambda: forecast(points)))


def _or_word[T](compute: Callable[[], T]) -> T | str:
    try:
        return compute()
    except TooLittleDataError as error:
        return str(error)

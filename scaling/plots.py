"""The figures of a report, each as PNG and SVG: measured steps, fitted forms, forecasts, and what goes with what.

Sized for one column of a paper or two side by side; colours are distinguishable to the colour-blind (Okabe and Ito).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

from scaling.analysis import Analysis, Growth, SettingAnalysis
from scaling.data import Points
from scaling.forecasting import Forecasts
from scaling.forms import FORMS
from scaling.runs import AXES, QUANTITIES
from scaling.selection import Selection

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLE: Any = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "lines.linewidth": 1.2,
    "svg.fonttype": "none",
    # The same figure gives the same file.
    "svg.hashsalt": "zerotir",
}
FORM_COLOURS = {form.name: colour for form, colour in zip(FORMS, COLOURS[::-1][: len(FORMS)], strict=True)}
SHARES = ("accuracy", "code_ratio")


def plot_analysis(analysis: Analysis, folder: Path) -> list[Path]:
    """Writes all figures into `folder`; returns the PNGs in the order of a reader."""
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    with mpl.rc_context(STYLE):
        for axis in AXES:
            with _figure(folder / f"growth-{axis}", 2, 2, (6.6, 4.6), written) as axes:
                _growth(analysis, axis, axes)
        for number, setting in enumerate(analysis.settings):
            # A label may hold anything that a configuration does; a file name may not.
            with _figure(folder / f"forecast-{number + 1}", 2, 2, (6.6, 4.8), written) as axes:
                for ax, quantity in zip(axes, QUANTITIES, strict=True):
                    _forecast(setting.growth("step", quantity), ax)
                figure = axes[0].get_figure(root=True)
                assert figure is not None
                label = setting.setting.label
                figure.suptitle(f"{label}: fitted left of the dotted line", fontsize=8)
                lines = _forecast_lines(setting)
                figure.legend(handles=lines, loc="outside lower center", ncols=len(lines))
        with _figure(folder / "relations", 1, 3, (6.6, 2.3), written) as axes:
            _relations(analysis, axes)
    return written


@contextmanager
def _figure(
    path: Path, rows: int, columns: int, size: tuple[float, float], written: list[Path]
) -> Iterator[list[Axes]]:
    """Yields axes to draw on; saves the figure as PNG and SVG, unless nothing was drawn."""
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(np.ravel(figure.subplots(rows, columns)))
    yield axes
    if not any(ax.has_data() for ax in axes):
        return
    figure.savefig(path.with_suffix(".png"), dpi=200)
    figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
    written.append(path.with_suffix(".png"))


def _growth(analysis: Analysis, axis: str, axes: list[Axes]) -> None:
    """Draws each quantity over one axis: the runs' steps as points, the chosen form with its 95 % band."""
    for ax, quantity in zip(axes, QUANTITIES, strict=True):
        for setting, colour in zip(analysis.settings, _colours(len(analysis.settings)), strict=True):
            growth = setting.growth(axis, quantity)
            if isinstance(growth.points, str):
                continue
            _scatter(ax, growth.points, colour)
            if isinstance(growth.selection, Selection) and not growth.selection.flat:
                fit = growth.selection.chosen
                x = np.linspace(growth.points.x.min(), growth.points.x.max(), 200)
                mean = fit.mean(x)
                reach = 1.96 * fit.curve_error(x)
                ax.plot(x, mean, color=colour)
                ax.fill_between(x, mean - reach, mean + reach, color=colour, alpha=0.18, linewidth=0)
        _dress(ax, axis, quantity)
    _legend(analysis, axes[0])


def _forecast(growth: Growth, ax: Axes) -> None:
    """Draws what was measured, each form's forecast of the second half, and that of all, weighted, with its 95 % band."""
    _dress(ax, growth.axis, growth.quantity)
    if isinstance(growth.points, str):
        ax.text(0.5, 0.5, growth.points, transform=ax.transAxes, ha="center", color="0.4")
        return
    if isinstance(growth.forecasts, Forecasts):
        found = growth.forecasts
        x = np.unique(growth.points.x)
        ax.axvline(found.last_fitted_step + 0.5, color="0.6", linewidth=0.8, linestyle=":")
        for forecast in found.forecasts:
            ax.plot(x, forecast.fit.mean(x), color=FORM_COLOURS[forecast.fit.form.name], linestyle="--", linewidth=1.0)
        if found.weighted is not None:
            low, high = found.weighted.fit.prediction(x, 0.95)
            ax.plot(x, found.weighted.fit.mean(x), color="0.2", linewidth=1.2)
            ax.fill_between(x, low, high, color="0.2", alpha=0.12, linewidth=0)
    _scatter(ax, growth.points, "0.25")
    if growth.quantity not in SHARES:
        # Forms that run away must not flatten what was measured.
        room = 0.25 * max(float(np.ptp(growth.points.y)), 1e-3)
        ax.set_ylim(growth.points.y.min() - room, growth.points.y.max() + room)


def _forecast_lines(setting: SettingAnalysis) -> list[Line2D]:
    """Returns the legend of the setting's forecasts: what `_forecast` draws, and nothing else."""
    found = [setting.growth("step", quantity).forecasts for quantity in QUANTITIES]
    forecasts = [each for each in found if isinstance(each, Forecasts)]
    drawn = {forecast.fit.form.name for each in forecasts for forecast in each.forecasts}
    lines = [Line2D([], [], color="0.25", marker="o", markersize=3, linewidth=0, label="measured")]
    lines += [
        Line2D([], [], color=colour, linestyle="--", linewidth=1.0, label=name)
        for name, colour in FORM_COLOURS.items()
        if name in drawn
    ]
    if any(each.weighted is not None for each in forecasts):
        lines.append(Line2D([], [], color="0.2", label="all, weighted, and 95 %"))
    return lines


def _relations(analysis: Analysis, axes: list[Axes]) -> None:
    """Draws accuracy against what may drive it: one point a step, darker the later."""
    for ax, quantity in zip(axes, ("code_ratio", "calls_per_response", "response_length"), strict=True):
        for setting, colour in zip(analysis.settings, _colours(len(analysis.settings)), strict=True):
            points = setting.setting.points(quantity, "accuracy")
            if not len(points):
                continue
            age = 0.25 + 0.75 * (points.step - points.step.min()) / max(1, np.ptp(points.step))
            ax.scatter(points.x, points.y, s=9, color=colour, alpha=age, linewidth=0)
        ax.set_xlabel(QUANTITIES[quantity])
        ax.set_ylabel("accuracy")
        ax.yaxis.set_major_formatter(PercentFormatter(1.0))
        if quantity in SHARES:
            ax.xaxis.set_major_formatter(PercentFormatter(1.0))
        ax.grid(alpha=0.25, linewidth=0.4)
    _legend(analysis, axes[0])


def _legend(analysis: Analysis, ax: Axes) -> None:
    colours = _colours(len(analysis.settings))
    lines = [
        Line2D([], [], color=colour, marker="o", markersize=3, linewidth=0, label=setting.setting.label)
        for setting, colour in zip(analysis.settings, colours, strict=True)
    ]
    ax.legend(handles=lines, loc="best")


def _scatter(ax: Axes, points: Points, colour: str) -> None:
    """Draws the steps of each run, every run with a marker of its own."""
    for number, run in enumerate(points.by_run()):
        marker = "osD^v"[number % 5]
        ax.plot(run.x, run.y, marker, markersize=2.6, color=colour, alpha=0.7, markeredgewidth=0)


def _dress(ax: Axes, axis: str, quantity: str) -> None:
    ax.set_xlabel(AXES[axis])
    ax.set_ylabel(QUANTITIES[quantity])
    if axis == "step":
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    if quantity in SHARES:
        ax.set_ylim(-0.03, 1.03)
        ax.yaxis.set_major_formatter(PercentFormatter(1.0))
    else:
        ax.set_ylim(bottom=0)
    ax.set_axisbelow(True)
    ax.grid(alpha=0.25, linewidth=0.4)


def _colours(count: int) -> list[str]:
    return [COLOURS[number % len(COLOURS)] for number in range(count)]


def setting_figure(analysis: Analysis, setting: SettingAnalysis) -> str:
    """Returns the name, without suffix, of the setting's own figure."""
    return f"forecast-{analysis.settings.index(setting) + 1}"

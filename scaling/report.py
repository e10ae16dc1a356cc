"""The report of a set of runs: Markdown with every number, JSON with the same, and a summary for the terminal."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from scaling.analysis import Analysis, Relation, SettingAnalysis, analyse
from scaling.breaks import Course
from scaling.correlation import Correlation
from scaling.fitting import Fit
from scaling.forecasting import Forecast, Forecasts
from scaling.forms import Form
from scaling.plots import plot_analysis, setting_figure
from scaling.runs import AXES, QUANTITIES, Run, read_run
from scaling.selection import Selection

FORECAST_AXES = ("step", "training_flops")
"""Whose forecasts stand in the Markdown; JSON has all."""
METHOD = """\
Correlations are taken within runs and averaged over a setting's runs on Fisher's scale; their 95 % intervals come from
a block bootstrap over steps, because consecutive steps are correlated. Fits are least squares with AR(1) noise; a form is
chosen by the likelihood of held-out blocks of steps, the simplest within one standard error of the best. Compute is the
usual count: 6 N D to train, 2 N D to generate. What each number means, and its limits: the project's `docs/scaling.md`."""


def write_report(folders: list[Path], target: Path) -> str:
    """Analyses the runs in `folders`, writes report.md, report.json and plots into `target`; returns the summary.

    Raises RunError for a folder that is no run.
    """
    analysis = analyse([read_run(folder) for folder in folders])
    plots = plot_analysis(analysis, target / "plots")
    (target / "report.md").write_text(markdown(analysis, [plot.stem for plot in plots]))
    (target / "report.json").write_text(json.dumps(plain(analysis), indent=1) + "\n")
    return f"{summary(analysis)}\nreport, its numbers as JSON, and plots: {target}"


def summary(analysis: Analysis) -> str:
    """Returns the main numbers, for a terminal."""
    lines = []
    for setting in analysis.settings:
        seeds = ", ".join(str(run.seed) for run in setting.setting.runs)
        lines.append(f"{setting.setting.label}: {_steps(setting)} steps, seeds {seeds}")
        for quantity, label in QUANTITIES.items():
            trend = next(t for t in setting.trends if (t.x, t.y) == ("step", quantity))
            growth = setting.growth("step", quantity)
            lines.append(
                f"  {label:<26} with the step: {_number_of(trend.spearman)}; form: {_form_of(growth.selection)}"
            )
        code = next(r for r in setting.relations if (r.x, r.y) == ("accuracy", "code_ratio"))
        lines.append(
            f"  {'accuracy and code ratio':<26} {_number_of(code.spearman)}; of changes: {_number_of(code.of_changes)}"
        )
    for comparison in analysis.comparisons:
        if (comparison.axis, comparison.quantity) == ("step", "accuracy"):
            lines.append(
                f"{comparison.other} against {comparison.baseline}: accuracy {comparison.difference:+.3f} "
                f"[{comparison.low:+.3f}, {comparison.high:+.3f}] over steps {comparison.first:.0f} to {comparison.last:.0f}"
            )
    return "\n".join(lines)


def markdown(analysis: Analysis, figures: list[str]) -> str:
    """Returns the whole report."""
    parts = ["# Scaling report\n", METHOD + "\n", "## Runs\n", _runs(analysis)]
    parts += [f"![{name}](plots/{name}.png)\n" for name in figures if name.startswith(("growth", "relations"))]
    if analysis.comparisons or analysis.not_compared:
        parts += ["## With and without tools\n", _comparisons(analysis)]
    for setting in analysis.settings:
        parts += [
            f"## {setting.setting.label}\n",
            _trends(setting),
            _relations(setting),
            _fits(setting),
            _forecasts(setting),
        ]
        name = setting_figure(analysis, setting)
        parts += [f"![{name}](plots/{name}.png)\n"] if name in figures else []
        parts.append(_courses(setting))
    return "\n".join(parts)


def plain(value: Any) -> Any:
    """Returns the structure as JSON's types; what is not finite as null."""
    match value:
        case Form():
            return value.name
        case Fit():
            parameters = {
                name: {"value": plain(best), "low": plain(low), "high": plain(high)}
                for name, best, low, high in value.interval(0.95)
            }
            noise = {"sigma": plain(value.sigma), "samples": plain(value.samples), "rho": plain(value.rho)}
            return {
                "form": value.form.name, "formula": value.form.formula, "X": plain(value.unit),
                "parameters": parameters, "at_bound": value.at_bound, **noise,
            }  # fmt: skip
        case Run():
            return {
                "folder": value.folder.name, "seed": value.seed, "steps": len(value.steps), "hours": value.hours,
                "missing": value.missing, "series": plain(value.series),
            }  # fmt: skip
        case float():
            return value if math.isfinite(value) else None
        case np.ndarray():
            return [plain(item) for item in value.tolist()]
        case dict():
            return {str(key): plain(item) for key, item in value.items()}
        case list() | tuple():
            return [plain(item) for item in value]
        case _ if dataclasses.is_dataclass(value):
            return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        case _:
            return value


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in lines) + "\n"


def _runs(analysis: Analysis) -> str:
    rows = [
        [setting.setting.label, run.folder.name, str(run.seed), run.model,
         str(run.max_tool_calls), str(len(run.steps)), f"{run.hours:.2f}",
         *(_last(run, axis) for axis in ("trained_tokens", "training_flops", "generation_flops"))]
        for setting in analysis.settings
        for run in setting.setting.runs
    ]  # fmt: skip
    head = ["setting", "run", "seed", "model", "limit of tool calls", "steps", "hours", "trained tokens (M)",
            "training PFLOP", "generation PFLOP"]  # fmt: skip
    return _table(head, rows)


def _last(run: Run, axis: str) -> str:
    return f"{run.series[axis][-1]:.3g}" if axis in run.series else run.missing[axis]


def _comparisons(analysis: Analysis) -> str:
    rows = [
        [f"{c.other} ({c.seeds[1]}) against {c.baseline} ({c.seeds[0]})", QUANTITIES[c.quantity],
         f"{AXES[c.axis]}, {c.first:.3g} to {c.last:.3g}", f"{c.baseline_mean:.3g}", f"{c.other_mean:.3g}",
         f"{c.difference:+.3g} [{c.low:+.3g}, {c.high:+.3g}]"]
        for c in analysis.comparisons
    ]  # fmt: skip
    head = ["settings (seeds)", "quantity", "at equal", "baseline", "other", "difference [95 %]"]
    words = "".join(f"- {word}\n" for word in analysis.not_compared)
    return (_table(head, rows) if rows else "") + words


def _trends(setting: SettingAnalysis) -> str:
    rows = []
    for quantity, label in QUANTITIES.items():
        of_axis = {trend.x: trend for trend in setting.trends if trend.y == quantity}
        rows.append(
            [label, _number_of(of_axis["step"].spearman), *(_number_of(of_axis[axis].pearson) for axis in AXES)]
        )
    head = ["quantity", "Spearman, any axis", *(f"Pearson, {label}" for label in AXES.values())]
    note = "Every axis grows with every step, so Spearman's coefficient is the same on all.\n"
    return "### Correlation with training\n\n" + _table(head, rows) + "\n" + note


def _relations(setting: SettingAnalysis) -> str:
    rows = [
        [f"{QUANTITIES[r.x]}, {QUANTITIES[r.y]}", _number_of(r.spearman), _number_of(r.pearson), _number_of(r.of_changes),
         _best_lag(r)]
        for r in setting.relations
    ]  # fmt: skip
    head = ["quantities", "Spearman", "Pearson", "Spearman of changes", "strongest lag of changes"]
    note = (
        "Two series that both grow are correlated whatever joins them; the changes from step to step are without that "
        "common trend. A positive lag: the second follows the first by that many steps. The strongest of several lags is "
        "stronger than any one alone would be.\n"
    )
    return "### Correlation among quantities\n\n" + _table(head, rows) + "\n" + note


def _best_lag(relation: Relation) -> str:
    if isinstance(relation.lags_of_changes, str):
        return relation.lags_of_changes
    best = max(relation.lags_of_changes, key=lambda item: abs(item.correlation.value))
    return f"{best.lag:+d}: {_number_of(best.correlation)}"


def _fits(setting: SettingAnalysis) -> str:
    rows = []
    for growth in setting.growths:
        where = [QUANTITIES[growth.quantity], AXES[growth.axis]]
        if isinstance(growth.selection, str):
            rows.append([*where, growth.selection, "", "", ""])
            continue
        fit, scores = growth.selection.chosen, growth.selection.scores
        behind = "; ".join(f"{score.form.name} {score.behind:.2f} ± {score.error:.2f}" for score in scores)
        form = (
            "flat: no form foretells better than a constant"
            if growth.selection.flat
            else f"{fit.form.name}, {fit.form.formula}"
        )
        rows.append([*where, form, _parameters(fit), f"{fit.sigma:.3g}, {fit.rho:.2f}", behind])
    head = [
        "quantity",
        "axis",
        "chosen form",
        "parameters [95 %]",
        "noise sd, rho",
        "log likelihood a held-out point, behind the best",
    ]
    return "### Fits\n\n" + _table(head, rows)


def _parameters(fit: Fit) -> str:
    parts = [f"{name} = {value:.3g} [{low:.3g}, {high:.3g}]" for name, value, low, high in fit.interval(0.95)]
    parts += [f"X = {fit.unit:.3g}"] if "X" in fit.form.formula else []
    parts += ["(at the edge of the search: not identified)"] if fit.at_bound else []
    return ", ".join(parts)


def _forecasts(setting: SettingAnalysis) -> str:
    rows, words = [], []
    for growth in setting.growths:
        if growth.axis not in FORECAST_AXES:
            continue
        where = f"{QUANTITIES[growth.quantity]} over {AXES[growth.axis]}"
        if isinstance(growth.forecasts, str):
            words.append(f"- {where}: {growth.forecasts}\n")
            continue
        rows += _forecast_rows(where, growth.forecasts)
    head = [
        "quantity over axis",
        "form",
        "error (RMS)",
        "bias",
        "80 % covers",
        "95 % covers",
        "width of 95 %",
        "log density",
    ]
    note = (
        "**Bold**: the forecast, of all forms with the weights that the first half gives them; its intervals are meant to "
        "hold. A single form's hold only if it is the right one: chosen from the first half, it covers far less. "
        "Without a bold row the first half is too short for weights. No form foretells a turn that has not begun.\n"
    )
    table = _table(head, rows) + "\n" + note if rows else ""
    return "### Forecast of the second half from the first\n\n" + table + "".join(words)


def _forecast_rows(where: str, found: Forecasts) -> list[list[str]]:
    rows = []
    if found.weighted is not None:
        mixture = found.weighted.fit
        weights = zip(mixture.fits, mixture.weights, strict=True)
        named = ", ".join(f"{fit.form.name} {weight:.0%}" for fit, weight in weights if weight >= 0.005)
        rows.append([where, f"**all, weighted**: {named}", *_measures(found.weighted)])
    for item in found.forecasts:
        name = item.fit.form.name
        rows.append([where, f"{name} (chosen)" if name == found.chosen else name, *_measures(item)])
    rows += [[where, name, word, "", "", "", "", ""] for name, word in found.refused.items()]
    return rows


def _measures(item: Forecast[Any]) -> list[str]:
    return [
        f"{item.error:.3g}", f"{item.bias:+.3g}", f"{item.coverage[0.8]:.0%}", f"{item.coverage[0.95]:.0%}",
        f"{item.width[0.95]:.3g}", f"{item.log_density:.2f}",
    ]  # fmt: skip


def _courses(setting: SettingAnalysis) -> str:
    lines = []
    for quantity, found in setting.courses.items():
        lines.append(f"- {QUANTITIES[quantity]}: {found if isinstance(found, str) else _course(found)}\n")
    return "### Change points\n\n" + "".join(lines)


def _course(found: Course) -> str:
    breaks = [f"slope changes at step {b.step} [{b.low}, {b.high}], p = {b.p_value:.3f}" for b in found.breaks]
    if found.rejected_p_value is not None:
        breaks.append(f"{'no further change' if breaks else 'no change of slope'}, p = {found.rejected_p_value:.3f}")
    slopes = [f"steps {p.first} to {p.last}: {p.slope:+.3g} a step [{p.low:+.3g}, {p.high:+.3g}]" for p in found.pieces]
    verdict = "it dips, then rises" if found.dip_then_rise else "no dip followed by a rise"
    return f"{'; '.join(breaks)}. Slopes: {'; '.join(slopes)}. Verdict: {verdict}."


def _steps(setting: SettingAnalysis) -> str:
    counts = sorted({len(run.steps) for run in setting.setting.runs})
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def _number_of(value: Correlation | str) -> str:
    return value if isinstance(value, str) else f"{value.value:+.2f} [{value.low:+.2f}, {value.high:+.2f}]"


def _form_of(value: Selection | str) -> str:
    if isinstance(value, str):
        return value
    return "flat" if value.flat else value.chosen.form.name

"""Plots of a run from its `metrics.jsonl`: what the paper plots, over training steps."""

from pathlib import Path

from bus.metrics import steps_of

PLOTS = {
    "accuracy": ("Accuracy", [("accuracy", "accuracy")], (0, 1)),
    "code_ratio": (
        "Code use",
        [("code_ratio", "responses with code"), ("successful_call_ratio", "calls that succeed")],
        (0, 1),
    ),
    "response_length": (
        "Response length (tokens)",
        [("response_length", "with tool output"), ("sampled_length", "sampled")],
        None,
    ),
    "staleness": ("Staleness (versions)", [("staleness_mean", "mean"), ("staleness_max", "maximum")], None),
}


def plot_run(folder: Path) -> list[Path]:
    """Writes one PNG per plot to `folder`/plots; returns their paths, none for a run of fewer than two steps."""
    steps = steps_of(folder)
    if len(steps) < 2:
        return []
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    target = folder / "plots"
    target.mkdir(exist_ok=True)
    written = []
    for name, (title, series, limits) in PLOTS.items():
        figure = Figure(figsize=(6, 3.6), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        for field, label in series:
            points = [(record["step"], record[field]) for record in steps if field in record]
            if points:
                axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=label)
        axes.set(title=f"{title}: {folder.name}", xlabel="training step", ylabel=title)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        if limits:
            axes.set_ylim(-0.02 + limits[0], limits[1] + 0.02)
        else:
            axes.set_ylim(bottom=0)
        if len(series) > 1:
            axes.legend()
        path = target / f"{name}.png"
        figure.savefig(path, dpi=120)
        written.append(path)
    return written

"""A plot of trials with different numbers of pollers, as SVG."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

    Figures = Mapping[str, Any]

# Readable on a light and on a dark page; the background is transparent.
_INK = "#808080"
_COLOURS = ("#2f86c1", "#d9822b", "#3f9c6b", "#b06fb5")
_MARKERS = ("s", "o", "^", "x")


def hit_rate(figures: Figures) -> float:
    """Return the percentage of the responses that came from the cache."""
    answered = figures["polls"]["answered"]
    return 100 * float(figures["counts"].get("hits", 0)) / answered if answered else 0.0


def statements_per_second(figures: Figures) -> float:
    """Return the statements that the database was sent."""
    return float(sum(figures["service"]["statements"].values()) / figures["took"])


def draw(trials: Sequence[Figures], path: Path) -> None:
    """Draw hit rate, latency and statements by the number of pollers, a line for each backend."""
    with mpl.rc_context():
        mpl.rcParams["svg.fonttype"] = "none"  # text stays text
        mpl.rcParams["svg.hashsalt"] = "jobcache"  # the same figures give the same file
        mpl.rcParams["font.size"] = 9
        for part in ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color"):
            mpl.rcParams[part] = _INK
        mpl.rcParams["ytick.color"] = mpl.rcParams["grid.color"] = _INK
        figure = Figure(figsize=(7, 6.5), layout="constrained")
        figure.patch.set_alpha(0)
        rate, latency, statements = figure.subplots(3, 1, sharex=True)
        _line(rate, trials, hit_rate, "", "-")
        rate.set_ylim(0, 105)
        rate.set_ylabel("% of polls that are hits")
        for name, style in (("p50", "-"), ("p99", "--")):
            _line(latency, trials, partial(_percentile, name), name, style)
        latency.set_ylabel("ms from the planned time")
        _line(statements, trials, statements_per_second, "", "-")
        statements.set_ylabel("statements/s")
        statements.set_xscale("log")
        statements.set_xlabel("pollers")
        for axes in (latency, statements):
            axes.set_ylim(0, 1.1 * axes.dataLim.ymax)
        for axes in (rate, latency, statements):
            axes.patch.set_alpha(0)
            axes.grid(visible=True, linewidth=0.3)
            axes.spines[["top", "right"]].set_visible(False)
            axes.legend(fontsize=7, framealpha=0, loc="center left", bbox_to_anchor=(1.0, 0.5))
        FigureCanvasSVG(figure)
        figure.savefig(path, metadata={"Date": None}, transparent=True)


def _percentile(name: str, figures: Figures) -> float | None:
    found: float | None = figures["rows"]["all"][name]
    return found


def _line(
    axes: Axes,
    trials: Sequence[Figures],
    value: Callable[[Figures], float | None],
    suffix: str,
    style: str,
) -> None:
    for number, backend in enumerate(dict.fromkeys(each["backend"] for each in trials)):
        points = [
            (each["plan"]["pollers"], shown)
            for each in trials
            if each["backend"] == backend and (shown := value(each)) is not None
        ]
        points.sort()
        axes.plot(
            [pollers for pollers, _ in points],
            [shown for _, shown in points],
            style,
            color=_COLOURS[number % len(_COLOURS)],
            marker=_MARKERS[number % len(_MARKERS)],
            markersize=7 - 2 * (number % 2),  # where two lines are the same, both are seen
            fillstyle="none",
            label=f"{backend} {suffix}".strip(),
        )

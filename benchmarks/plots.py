"""Plots of a run, as SVG."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING

import matplotlib as mpl
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from benchmarks.results import Run, Section

_COLOURS = {"ours": "#1b6ca8", "peer": "#c06c2b", "tuned peer": "#e0b48a", "limit": "#7a7a7a"}


def draw(run: Run, place: Path, plotted: Mapping[str, Sequence[str]]) -> list[str]:
    """Draw the requested plots of each section; return the names of the files."""
    place.mkdir(parents=True, exist_ok=True)
    drawn = []
    with mpl.rc_context():
        mpl.rcParams["svg.fonttype"] = "none"  # text stays text
        mpl.rcParams["svg.hashsalt"] = "jobcache"  # the same run gives the same file
        mpl.rcParams["font.size"] = 9
        for section in run.sections:
            for kind in plotted.get(section.name, ()):
                figure = _DRAWN[kind](section)
                name = f"{section.name}-{kind}"
                FigureCanvasSVG(figure)
                figure.savefig(place / f"{name}.svg", metadata={"Date": None})
                drawn.append(name)
    return drawn


def _bars(section: Section, *, logarithmic: bool) -> Figure:
    series = sorted(section.series, key=lambda one: one.median, reverse=not section.more_is_better)
    figure = Figure(figsize=(8, 0.8 + 0.24 * len(series)), layout="constrained")
    axes = figure.subplots()
    medians = [one.median for one in series]
    ends = [
        [one.median - min(one.samples) for one in series],
        [max(one.samples) - one.median for one in series],
    ]
    axes.barh(
        [one.subject for one in series],
        medians,
        xerr=ends,
        color=[_COLOURS[one.kind] for one in series],
        error_kw={"elinewidth": 0.8, "ecolor": "#222222"},
    )
    if logarithmic:
        axes.set_xscale("log")
    axes.set_xlabel(f"{section.unit}; line: lowest to highest turn")
    axes.set_title(f"{section.title} (blue: ours, brown: peers, grey: limits)", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(y=0.01)
    return figure


def _throughput(section: Section) -> Figure:
    return _bars(section, logarithmic=False)


def _cost(section: Section) -> Figure:
    return _bars(section, logarithmic=True)


def _latency(section: Section) -> Figure:
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    axes = figure.subplots()
    for one in sorted(section.series, key=lambda one: one.median, reverse=True):
        taken = one.details.get("latency_ms", [])
        if not taken or one.kind == "tuned peer":
            continue
        percents = list(taken[0])
        values = [median(turn[percent] for turn in taken) for percent in percents]
        axes.plot(
            values,
            [float(percent) for percent in percents],
            label=one.subject,
            linewidth=1.6 if one.kind == "ours" else 0.9,
            linestyle={"ours": "-", "peer": "--", "limit": ":"}[one.kind],
        )
    axes.set_xscale("log")
    axes.set_xlabel("ms until the answer, with all connections asking without pause")
    axes.set_ylabel("percent of the answers")
    axes.set_title(f"{section.title}: latency", fontsize=10)
    axes.grid(visible=True, linewidth=0.3)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _scale(section: Section) -> Figure:
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    for subject in dict.fromkeys(one.subject for one in section.series):
        series = sorted(
            (one for one in section.series if one.subject == subject), key=lambda one: one.x or 0
        )
        places = [one.x or 0 for one in series]
        kind = series[0].kind
        (line,) = axes.plot(
            places,
            [one.median for one in series],
            marker="o",
            markersize=3,
            label=subject,
            linestyle="-" if kind == "ours" else ":",
        )
        axes.fill_between(
            places,
            [min(one.samples) for one in series],
            [max(one.samples) for one in series],
            color=line.get_color(),
            alpha=0.15,
            linewidth=0,
        )
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_xlabel(section.scale)
    axes.set_ylabel(section.unit, fontsize=8)
    axes.set_title(section.title, fontsize=10)
    axes.grid(visible=True, linewidth=0.3)
    axes.legend(fontsize=7)
    return figure


_DRAWN: dict[str, Callable[[Section], Figure]] = {
    "throughput": _throughput,
    "cost": _cost,
    "latency": _latency,
    "scale": _scale,
}

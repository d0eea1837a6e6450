"""Plots of a run, as SVG.

A plot has a white background of its own, so it can be read on pages of any colour. It has at most
six lines, which differ in colour, dashes and markers.
"""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING

import matplotlib as mpl
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from benchmarks.headlines import POLLS, headliners
from benchmarks.results import NoResults

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from benchmarks.results import Run, Section, Series

THROUGHPUT = "summary-throughput"
LATENCY = "summary-latency"
"""The plots of the summary."""

_COLOURS = {"ours": "#0072b2", "peer": "#d55e00", "tuned peer": "#e0a98a", "limit": "#7a7a7a"}
_LEGEND = "blue: jobcache, orange: other caches, grey: limits"
_LINES = (
    # Colours that people with any colour vision can tell apart, by Okabe and Ito.
    ("#0072b2", "-", "o"),
    ("#d55e00", "--", "s"),
    ("#009e73", "-.", "^"),
    ("#a0528c", ":", "D"),
    ("#111111", (0, (5, 1)), "v"),
    ("#c48a00", (0, (3, 1, 1, 1)), "x"),
)


def draw(run: Run, place: Path, plotted: Mapping[str, Sequence[str]]) -> list[str]:
    """Draw the summary and the requested plots of each section; return the names of the files.

    Plots of earlier runs are removed.
    """
    place.mkdir(parents=True, exist_ok=True)
    drawn = []
    with mpl.rc_context():
        mpl.rcParams["svg.fonttype"] = "none"  # text stays text
        mpl.rcParams["svg.hashsalt"] = "jobcache"  # the same run gives the same file
        mpl.rcParams["font.size"] = 9
        for name in ("figure.facecolor", "savefig.facecolor", "axes.facecolor"):
            mpl.rcParams[name] = "white"
        for name, figure in figures(run, plotted):
            FigureCanvasSVG(figure)
            figure.savefig(place / f"{name}.svg", metadata={"Date": None})
            drawn.append(name)
    for file in place.glob("*.svg"):
        if file.stem not in drawn:
            file.unlink()
    return drawn


def figures(run: Run, plotted: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, Figure]]:
    """Yield each plot and its name."""
    try:
        polls = run.find(POLLS)
    except NoResults:
        pass
    else:
        chosen = headliners(polls)
        yield THROUGHPUT, _bars(polls, chosen, "Polls per second of one process", log=False)
        timed = [one for one in chosen if one.details.get("latency_ms")]
        if timed:
            yield LATENCY, _latency(polls, timed)
    for section in run.sections:
        for kind in plotted.get(section.name, ()):
            yield f"{section.name}-{kind}", _DRAWN[kind](section)


def _bars(section: Section, chosen: Sequence[Series], title: str, *, log: bool) -> Figure:
    series = sorted(chosen, key=lambda one: one.median, reverse=not section.more_is_better)
    figure = Figure(figsize=(8, 0.9 + 0.26 * len(series)), layout="constrained")
    axes = figure.subplots()
    medians = [one.median for one in series]
    ends = [
        [one.median - min(one.samples) for one in series],
        [max(one.samples) - one.median for one in series],
    ]
    bars = axes.barh(
        [one.subject for one in series],
        medians,
        xerr=ends,
        color=[_COLOURS[one.kind] for one in series],
        error_kw={"elinewidth": 0.8, "ecolor": "#222222"},
    )
    labels = [f"{value:,.3g}" if value < 100 else f"{value:,.0f}" for value in medians]
    axes.bar_label(bars, labels, padding=4)
    if log:
        axes.set_xscale("log")
    axes.set_xlabel(f"{section.unit}; line: lowest to highest turn")
    axes.set_title(f"{title} ({_LEGEND})", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.12, y=0.01)
    return figure


def _throughput(section: Section) -> Figure:
    return _bars(section, section.series, section.title, log=False)


def _cost(section: Section) -> Figure:
    return _bars(section, section.series, section.title, log=True)


def _latency(section: Section, chosen: Sequence[Series]) -> Figure:
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.subplots()
    for one, (colour, dashes, marker) in zip(chosen, _styles(len(chosen)), strict=True):
        taken = one.details["latency_ms"]
        percents = list(taken[0])
        axes.plot(
            [median(turn[percent] for turn in taken) for percent in percents],
            [float(percent) for percent in percents],
            label=one.subject,
            color=colour,
            linestyle=dashes,
            marker=marker,
            markersize=4,
        )
    axes.set_xscale("log")
    axes.set_xlabel("ms until the response, with all connections sending without pause")
    axes.set_ylabel("percent of the responses")
    axes.set_title(f"{section.title}: latency", fontsize=10)
    axes.grid(visible=True, linewidth=0.3)
    axes.legend(fontsize=8, loc="lower right")
    return figure


def _scale(section: Section) -> Figure:
    figure = Figure(figsize=(8, 3.8), layout="constrained")
    axes = figure.subplots()
    subjects = list(dict.fromkeys(one.subject for one in section.series))
    for subject, (colour, dashes, marker) in zip(subjects, _styles(len(subjects)), strict=True):
        series = sorted(
            (one for one in section.series if one.subject == subject), key=lambda one: one.x or 0
        )
        places = [one.x or 0 for one in series]
        axes.plot(
            places,
            [one.median for one in series],
            label=subject,
            color=colour,
            linestyle=dashes,
            marker=marker,
            markersize=4,
        )
        axes.fill_between(
            places,
            [min(one.samples) for one in series],
            [max(one.samples) for one in series],
            color=colour,
            alpha=0.15,
            linewidth=0,
        )
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_xlabel(section.scale)
    axes.set_ylabel(section.unit, fontsize=8)
    axes.set_title(section.title, fontsize=10)
    axes.grid(visible=True, linewidth=0.3)
    axes.legend(fontsize=8)
    return figure


def _styles(count: int) -> Sequence[tuple[str, str | tuple[int, tuple[int, ...]], str]]:
    if count > len(_LINES):
        raise ValueError(f"{count} lines in one plot cannot be told apart: choose {len(_LINES)}")
    return _LINES[:count]


_DRAWN: dict[str, Callable[[Section], Figure]] = {
    "throughput": _throughput,
    "cost": _cost,
    "scale": _scale,
}

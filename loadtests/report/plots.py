"""Plots of a report, as SVG to be put into a page.

Text and axes have the colour of the page's text, and the lines have colours that are legible on
light and dark backgrounds.
"""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING

import matplotlib as mpl
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

    from loadtests.report.document import Bucket

MOST_LINES = 6
COLOURS = ("#808080", "#2f7fd6", "#d64b3c", "#2b9457", "#9a63d0", "#b9731c")
_STYLES = ("-", "-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
_TEXT = "#010203"  # becomes the page's own colour
FILE_TEXT = "#767b82"
"""Colour of text in files: a page that shows one need not have the colours of the system."""

_SIZE = (5.6, 2.8)
_PERCENTS = (0, 50, 90, 99, 99.9)


class TooManyLines(ValueError):  # noqa: N818 - says what is the matter
    """A plot would have more lines than can be told apart."""


def over_time(
    unit: str,
    lines: Mapping[str, Sequence[tuple[float, float]]],
    marks: Sequence[tuple[float, str]] = (),
) -> str:
    """Return a plot of values over seconds.

    Args:
        unit: what the values are.
        lines: the points of each line, as second and value.
        marks: seconds with a text, which is written once.
    """

    def draw(axes: Axes, name: str) -> list[Line2D]:
        points = lines[name]
        return axes.plot([x for x, _ in points], [y for _, y in points])

    figure, axes = _figure(unit, lines, draw)
    written: set[str] = set()
    for second, text in marks:
        axes.axvline(second, color=_TEXT, linewidth=0.8, linestyle=":")
        if text not in written:
            axes.annotate(
                text,
                (second, 0.5),
                xycoords=("data", "axes fraction"),
                color=_TEXT,
                fontsize=7,
                rotation=90,
                ha="right",
                va="center",
            )
            written.add(text)
    axes.set_xlabel("seconds")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    return _svg(figure, f"{unit}, over time")


def distribution(lines: Mapping[str, Sequence[Bucket]]) -> str:
    """Return a plot of durations over percentiles.

    Args:
        lines: the histogram of each line, the shortest durations first.
    """

    def draw(axes: Axes, name: str) -> list[Line2D]:
        total = sum(bucket.count for bucket in lines[name])
        seen = 0
        places, values = [], []
        for bucket in lines[name]:
            # Each request of a bucket took up to its upper edge: a step.
            places += [_place(seen, total), _place(seen + bucket.count, total)]
            values += [bucket.upper_ms] * 2
            seen += bucket.count
        return axes.plot(places, values)

    figure, axes = _figure("duration of polls, ms", lines, draw)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks([100 / (100 - percent) for percent in _PERCENTS])
    axes.set_xticklabels([f"{percent:g} %" for percent in _PERCENTS])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("percentile of the polls")
    return _svg(figure, "duration of polls, ms, by percentile")


def standalone(svg: str) -> str:
    """Return a plot as the content of a file, with text that is legible on light and dark pages."""
    return svg.replace("><title>", f"><style>svg {{ color: {FILE_TEXT} }}</style><title>", 1)


def _place(seen: int, total: int) -> float:
    # The last request has no place on an axis that ends at infinity: half a request before it.
    return total / max(total - seen, 0.5)


def _figure(
    title: str, lines: Mapping[str, object], draw: Callable[[Axes, str], list[Line2D]]
) -> tuple[Figure, Axes]:
    if len(lines) > MOST_LINES:
        raise TooManyLines(f"{len(lines)} lines, which is more than {MOST_LINES}")
    figure = Figure(figsize=_SIZE, layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.subplots()
    axes.patch.set_alpha(0)
    for name, colour, dashes in zip(lines, COLOURS, _STYLES, strict=False):
        for line in draw(axes, name):
            line.set(label=name, color=colour, linestyle=dashes, linewidth=1.6)
    axes.grid(visible=True, linewidth=0.3, color=_TEXT, alpha=0.4)
    axes.spines[["top", "right"]].set_visible(False)
    for spine in axes.spines.values():
        spine.set_color(_TEXT)
    axes.tick_params(colors=_TEXT, which="both", labelsize=8)
    axes.xaxis.label.set_color(_TEXT)
    axes.set_title(title, color=_TEXT, fontsize=9, loc="left", pad=20)
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(-0.02, 0.98),
        ncols=MOST_LINES,
        frameon=False,
        labelcolor=_TEXT,
        fontsize=8,
        columnspacing=1.2,
    )
    return figure, axes


def _svg(figure: Figure, title: str) -> str:
    """Return the figure as an element of a page, with a title for screen readers."""
    FigureCanvasSVG(figure)
    file = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with mpl.rc_context({"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9}):
        figure.savefig(file, format="svg", metadata=nothing)
    text = file.getvalue()
    text = text[text.index("<svg") :]
    used = set(re.findall(r"(?:href=\"|url\()#([^\")]+)", text))
    text = re.sub(
        r' id="([^"]+)"', lambda found: found[0] if found[1] in used else "", text
    )  # ids that several plots would share
    text = text.replace(_TEXT, "currentColor")
    return text.replace(">", f' role="img"><title>{title}</title>', 1)

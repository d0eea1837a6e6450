"""A plot of durations by row, as SVG: which share of the requests took no longer than that."""

from __future__ import annotations

import html
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from loadtests.pollers.histogram import Histogram

_MOST_LINES = 6
_WIDTH, _HEIGHT = 760, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 220, 16, 48  # margins
_SHARES = [*range(101), 99.5, 99.9]
# Colours and dashes that can be told apart on light and on dark pages, also without colours.
_COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_DASHES = ("", "8 3", "2 3", "8 3 2 3", "12 4", "4 6")


def latency_plot(durations: Mapping[str, Histogram]) -> str:
    """Return the plot of the rows with the most requests; empty if there are none.

    Args:
        durations: by row.
    """
    most = sorted(
        (row for row in durations if durations[row].count), key=lambda row: -durations[row].count
    )
    rows = sorted(most[:_MOST_LINES])
    lines = {row: durations[row].percentiles(sorted(_SHARES)) for row in rows}
    if not lines:
        return ""
    times = [max(0.001, value) for values in lines.values() for value in values]
    decades = range(math.floor(math.log10(min(times))), math.ceil(math.log10(max(times))) + 1)
    scale = _Scale(decades[0], max(decades[-1], decades[0] + 1))
    parts = [*_axes(scale), *_lines(scale, lines)]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img"'
        f' aria-label="Latency distribution by row" width="{_WIDTH}" font-size="12"'
        f' font-family="sans-serif" fill="currentColor">{"".join(parts)}</svg>'
    )


class _Scale:
    """Places in the plot: a logarithmic axis of milliseconds, and shares in percent."""

    def __init__(self, low: int, high: int) -> None:
        self.low = low
        self.high = high

    def x(self, milliseconds: float) -> float:
        part = (math.log10(max(0.001, milliseconds)) - self.low) / (self.high - self.low)
        return _LEFT + part * (_WIDTH - _LEFT - _RIGHT)

    def y(self, percent: float) -> float:
        return _HEIGHT - _BOTTOM - percent / 100 * (_HEIGHT - _TOP - _BOTTOM)


def _axes(scale: _Scale) -> Iterator[str]:
    grid = 'stroke="currentColor" stroke-opacity="0.2"'
    left, right, bottom, top = _LEFT, _WIDTH - _RIGHT, scale.y(0), scale.y(100)
    for percent in range(0, 101, 25):
        y = scale.y(percent)
        yield f'<line x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" {grid}/>'
        yield f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{percent} %</text>'
    for decade in range(scale.low, scale.high + 1):
        x = scale.x(10.0**decade)
        yield f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top:.1f}" y2="{bottom:.1f}" {grid}/>'
        place = f'x="{x:.1f}" y="{bottom + 18:.1f}" text-anchor="middle"'
        yield f"<text {place}>{10.0**decade:g}</text>"
    middle = (left + right) / 2
    yield f'<text x="{middle}" y="{_HEIGHT - 8}" text-anchor="middle">milliseconds</text>'


def _lines(scale: _Scale, lines: Mapping[str, Sequence[float]]) -> Iterator[str]:
    for number, (row, values) in enumerate(lines.items()):
        points = " ".join(
            f"{scale.x(value):.1f},{scale.y(share):.1f}"
            for share, value in zip(sorted(_SHARES), values, strict=True)
        )
        style = (
            f'stroke="{_COLOURS[number]}" stroke-dasharray="{_DASHES[number]}"'
            ' stroke-width="2" fill="none"'
        )
        x, y = _WIDTH - _RIGHT + 16, _TOP + 20 * number + 8
        yield f'<polyline points="{points}" {style}/>'
        yield f'<line x1="{x}" x2="{x + 28}" y1="{y}" y2="{y}" {style}/>'
        yield f'<text x="{x + 36}" y="{y + 4}">{html.escape(row)}</text>'

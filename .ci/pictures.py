"""Draw the races of docs/coherence.md: `make pictures`."""

from pathlib import Path
from typing import NamedTuple

IMAGES = Path(__file__).parents[1] / "docs" / "images"
LEFT, STEP, TOP = 70, 34, 64
"""Pixels: from the edge to the first column, between two steps, from the edge to the first step."""
STYLE = """
.paper { fill: #fff } text { font: 14px system-ui, sans-serif; fill: #1a1a2e }
.column { font-weight: 600; text-anchor: middle } .life { stroke: #c3c3d0 }
.arrow { stroke: #3f51b5; stroke-width: 1.5 } .head { fill: #3f51b5 }
.state { font-family: ui-monospace, monospace; font-size: 13px } .bad { fill: #b3261e }
@media (prefers-color-scheme: dark) {
  .paper { fill: #1e2129 } text { fill: #e2e4ed } .life { stroke: #4a4f63 }
  .arrow { stroke: #9fa8da } .head { fill: #9fa8da } .bad { fill: #ff8a80 }
}"""
"""Pictures have a background of their own: readers may choose other colours for the page."""


class Step(NamedTuple):
    """One row of a picture.

    Attributes:
        start: the column that acts.
        end: the column that it acts on.
        label: what it does.
        state: what the last column holds afterwards; with ! at its beginning, if that is wrong.
    """

    start: int
    end: int
    label: str
    state: str = ""


class Picture(NamedTuple):
    """A sequence of steps.

    Attributes:
        columns: who acts, and what is acted on, from left to right, with their distance.
        steps: from top to bottom.
    """

    columns: dict[str, int]
    steps: list[Step]


READER, DATABASE, WORKER, CACHE = range(4)
_FOUR = {"reader": 0, "database": 200, "worker": 190, "cache": 230}
PICTURES = {
    "race-deleted-key": Picture(
        _FOUR,
        [
            Step(READER, CACHE, "get: nothing", "empty"),
            Step(READER, DATABASE, "SELECT: 40 %"),
            Step(WORKER, DATABASE, "UPDATE, COMMIT: 50 %"),
            Step(WORKER, CACHE, "delete", "empty"),
            Step(READER, CACHE, "set “40 %”", "!40 %, until it expires"),
        ],
    ),
    "race-lease-and-fence": Picture(
        _FOUR,
        [
            Step(READER, CACHE, "get: nothing; lease r", "lease {r}"),
            Step(READER, DATABASE, "SELECT: 40 %"),
            Step(WORKER, CACHE, "fence w", "fence {w}"),
            Step(WORKER, DATABASE, "UPDATE, COMMIT: 50 %"),
            Step(READER, CACHE, "publish “40 %” with r: refused", "fence {w}"),
            Step(WORKER, CACHE, "publish “50 %” with w", "50 %"),
        ],
    ),
    "race-local-tier": Picture(
        {"writer elsewhere": 0, "Redis": 220, "this process": 250, "its local tier": 250},
        [
            Step(2, 3, "get: nothing; lease r", "lease {r}"),
            Step(2, 1, "get: 40 %"),
            Step(0, 1, "publish “50 %”"),
            Step(1, 3, "report: the key has changed", "empty"),
            Step(2, 3, "store “40 %” over r: refused", "empty"),
        ],
    ),
}


def drawn(picture: Picture) -> str:
    """Return a picture as SVG."""
    at, places = LEFT, []
    for distance in picture.columns.values():
        at += distance
        places.append(at)
    width, bottom = places[-1] + 210, TOP + STEP * len(picture.steps)
    rows = [
        f'<text class="column" x="{x}" y="28">{name}</text>'
        f'<line class="life" x1="{x}" y1="40" x2="{x}" y2="{bottom}"/>'
        for name, x in zip(picture.columns, places, strict=True)
    ]
    for number, step in enumerate(picture.steps):
        y = TOP + STEP * number + 14
        start, end = places[step.start], places[step.end]
        way = 1 if end > start else -1
        tip = f"{end},{y} {end - 8 * way},{y - 4} {end - 8 * way},{y + 4}"
        label = start + 10 if way > 0 else end + 14
        bad, state = step.state.startswith("!"), step.state.removeprefix("!")
        rows.append(
            f'<line class="arrow" x1="{start}" y1="{y}" x2="{end - 8 * way}" y2="{y}"/>'
            f'<polygon class="head" points="{tip}"/>'
            f'<text x="{label}" y="{y - 6}">{step.label}</text>'
            f'<text class="state{" bad" * bad}" x="{places[-1] + 12}" y="{y + 4}">{state}</text>'
        )
    height = bottom + 16
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}">\n<style>{STYLE}\n</style>\n'
        f'<rect class="paper" width="{width}" height="{height}" rx="8"/>\n'
        + "\n".join(rows)
        + "\n</svg>\n"
    )


if __name__ == "__main__":
    for name, picture in PICTURES.items():
        (IMAGES / f"{name}.svg").write_text(drawn(picture), "utf-8")

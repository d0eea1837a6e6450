"""Render results as `RESULTS.md` and plots.

    python -m benchmarks.tables benchmarks/results/latest.json --write

Without `--write` it only prints. The plots need matplotlib; without it there are none.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from benchmarks import results
from benchmarks.backends import EVERY_BACKEND
from benchmarks.headlines import summary
from benchmarks.limits import limits
from benchmarks.results import NoResults, Run, Section, Series, ratios, rows, spread
from benchmarks.suites import keys
from benchmarks.verdicts import verdicts

if TYPE_CHECKING:
    from collections.abc import Sequence

RESULTS = Path(__file__).with_name("RESULTS.md")
PLOTS = Path(__file__).with_name("plots")

_BUSY = 0.9  # of a load generator that may have been the bottleneck
_KINDS = {
    "ours": "ours",
    "peer": "peer",
    "tuned peer": "peer, tuned by us",
    "limit": "limit",
}
_PLOTTED = {
    "polls-many": ["throughput"],
    "polls-one": ["throughput"],
    "lookups": ["cost"],
    "calls": ["cost"],
    "gets-at-once": ["throughput"],
    "gets-alone": ["cost"],
    "updates": ["cost"],
    "keys": ["scale"],
    "connections": ["scale"],
    "wire": ["scale"],
}


def page(run: Run, plots: Sequence[str] = ()) -> str:
    """`RESULTS.md`: the summary, the tables, the measured limits, and the goals at the end.

    Args:
        run: what was measured.
        plots: names of the plots there are, without suffix.
    """
    lines = ["# Results of the benchmarks", ""]
    if run.quick:
        lines += ["A quick run only shows that the benchmarks work. It has no verdicts.", ""]
    else:
        lines += ["## Summary", "", *summary(run), ""]
        lines += [f"![{name}](plots/{name}.svg)\n" for name in plots if name.startswith("summary-")]
    lines += [
        f"Written by `{run.command}`. Do not edit; what is measured, and how to read it, is in",
        "[README.md](README.md).",
        "",
        *[f"- {name}: {text}" for name, text in run.surroundings.items()],
        f"- load of the machine: {run.load[0]:.1f} before, {run.load[-1]:.1f} at the end",
        f"- versions: {', '.join(f'{name} {text}' for name, text in run.versions.items())}",
        "",
        "All subjects of a table took turns; ratios are taken turn by turn. Shown are the median",
        "of the turns and, in brackets, the lowest and the highest.",
        "",
    ]
    for section in run.sections:
        lines += _section(section, plots)
    lines += ["## Not measured", ""]
    if run.missing:
        lines += rows(["subject", "reason"], ([one.subject, one.reason] for one in run.missing))
    else:
        lines.append("Nothing was left out.")
    if not run.quick:
        lines += ["", *_limits(run), *_goals(run)]
    return "\n".join(lines).rstrip() + "\n"


def _limits(run: Run) -> list[str]:
    found = limits(run)
    if not found:
        return []
    return [
        "## Measured limits",
        "",
        "Python, the hardware or the workload set these. They are no goals.",
        "",
        *rows(["limit", "value", "reason"], ([one.name, one.value, one.reason] for one in found)),
        "",
    ]


def _goals(run: Run) -> list[str]:
    return [
        "## Goals",
        "",
        *rows(
            ["goal", "limit", "found", "verdict"],
            ([one.claim, one.limit, one.figure, one.words] for one in verdicts(run)),
        ),
    ]


def _section(section: Section, plots: Sequence[str]) -> list[str]:
    lines = [f"## {section.title}", "", f"{section.workload}. Driver: {section.driver}.", ""]
    if section.name == "operations":
        lines += _by_backend(section)
    else:
        lines += _scale(section) if section.scale else _table(section)
    lines.append("")
    facts = _facts(section)
    lines += [*facts, ""] if facts else []
    busiest = max((_busy(one) for one in section.series), default=0.0)
    if busiest:
        lines.append(f"The load generator was computing at most {busiest:.0%} of the time.")
        if busiest > _BUSY:
            lines.append("So it may have held the fastest back: they are no slower than this.")
        lines.append("")
    lines += [
        f"![{section.title}: {kind}](plots/{section.name}-{kind}.svg)\n"
        for kind in _PLOTTED.get(section.name, ())
        if f"{section.name}-{kind}" in plots
    ]
    return lines


def _table(section: Section) -> list[str]:
    timed = any("latency_ms" in one.details for one in section.series)
    head = ["subject", "", section.unit]
    if section.reference:
        head.append(f"times {section.reference}")
    if timed:
        head += ["p50 ms", "p99 ms", "processor µs"]
    head.append("set up as")
    lines = []
    for one in sorted(section.series, key=lambda one: one.median, reverse=section.more_is_better):
        line = [one.subject, _KINDS[one.kind], spread(one.samples, _style(section))]
        if section.reference:
            line.append(spread(ratios(one, section.find(section.reference)), ".2f"))
        if timed:
            line += [_percentile(one, "50"), _percentile(one, "99"), _processor(one)]
        lines.append([*line, one.how])
    return rows(head, lines)


def _scale(section: Section) -> list[str]:
    subjects = list(dict.fromkeys(one.subject for one in section.series))
    places = sorted({one.x for one in section.series if one.x is not None})
    lines = [
        [
            f"{place:,.0f}",
            *(spread(section.find(name, place).samples, _style(section)) for name in subjects),
        ]
        for place in places
    ]
    return [f"In {section.unit}.", "", *rows([section.scale, *subjects], lines)]


def _by_backend(section: Section) -> list[str]:
    """Return a row for each operation, with a column for each backend."""
    found = {one.subject.rpartition(", ")[::2]: one for one in section.series}
    names = list(dict.fromkeys(operation for operation, _ in found))
    backends = [name for name in EVERY_BACKEND if any(name == other for _, other in found)]
    lines = [[name, *(_cost(found.get((name, backend))) for backend in backends)] for name in names]
    return [f"In {section.unit}.", "", *rows(["one operation", *backends], lines)]


def _cost(one: Series | None) -> str:
    if one is None:
        return ""
    return spread(one.samples, ".0f" if one.median >= 100 else ".3g")


def _facts(section: Section) -> list[str]:
    facts = dict(section.facts)
    lines = []
    if keys.BYTES_PER_ENTRY in facts:
        each, body = facts.pop(keys.BYTES_PER_ENTRY), facts.pop(keys.BYTES_OF_BODY)
        lines.append(
            f"- A cached entry takes {each:.0f} bytes of memory, its body alone {body:.0f} "
            f"({each / body:.2f} times)."
        )
    lines += [f"- {name.replace('_', ' ')}: {figure:.4g}" for name, figure in facts.items()]
    return lines


def _style(section: Section) -> str:
    smallest = min(one.median for one in section.series)
    return ".0f" if smallest >= 100 else ".1f" if smallest >= 10 else ".2f"


def _busy(one: Series) -> float:
    busy = one.details.get("generator_busy", [])
    return median(busy) if busy else 0.0


def _percentile(one: Series, percent: str) -> str:
    found = [latency[percent] for latency in one.details.get("latency_ms", [])]
    return f"{median(found):.2f}" if found else ""


def _processor(one: Series) -> str:
    found = one.details.get("processor_us", [])
    return f"{median(found):.0f}" if found else ""


def write(run: Run) -> None:
    """Write `RESULTS.md` and the plots.

    Raises:
        NoResults: it was a quick run, which says nothing about speed.
    """
    if run.quick:
        raise NoResults("a quick run is no result to publish")
    try:
        from benchmarks.plots import draw  # noqa: PLC0415 - needs what may be missing
    except ImportError as error:
        sys.stderr.write(f"no plots are drawn: {error}\n")
        drawn: list[str] = []
    else:
        drawn = draw(run, PLOTS, _PLOTTED)
    RESULTS.write_text(page(run, drawn), "utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Render a run; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tables", description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("--write", action="store_true", help="RESULTS.md and the plots")
    options = parser.parse_args(arguments)
    try:
        run = results.load(options.results)
        if options.write:
            write(run)
        else:
            sys.stdout.write(page(run))
    except (OSError, NoResults) as error:
        sys.stderr.write(f"{options.results}: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

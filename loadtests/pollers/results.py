"""The results of a test as tables: for Locust's web page and report, as text, and as CSV."""

from __future__ import annotations

import csv
import html
import io
from typing import TYPE_CHECKING

from loadtests.pollers.histogram import PERCENTILES, Histogram
from loadtests.pollers.latency_plot import latency_plot
from loadtests.pollers.rows import POLLS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from loadtests.pollers.record import Record

    Line = Mapping[str, str | int]

LATENCIES = "polls"
COUNTS = "counts"

TITLES = {LATENCIES: "Poll latencies", COUNTS: "Cache and jobs"}
"""The titles of the two tables."""

COLUMNS: dict[str, dict[str, str]] = {
    LATENCIES: {
        "row": "Row",
        "count": "# Requests",
        **{name.replace(".", ""): f"{name} (ms)" for name in PERCENTILES},
    },
    COUNTS: {"name": "Count", "value": "Value"},
}
"""The columns of the tables: keys of their lines, and titles."""

_NONE = "-"
# Locust sorts lines by their names, so the first words keep together what belongs together.
_COUNTED = {
    "hits": "cache: hits",
    "misses": "cache: misses",
    "bypasses": "cache: bypasses (polls during a change)",
    "stale_served": "cache: stale responses",
    "coalesced": "cache: coalesced (polls that shared a query)",
    "held": "polls: held by the service",
}
_OTHERS = {
    "cut_off": "polls: cut off at the end of the test",
    "first_polls": "polls: first after a change",
    "first_polls_missed": "polls: first after a change, missed by the cache",
    "jobs": "jobs: created",
    "completed": "jobs: completed",
    "ends_seen": "jobs: ends seen by users",
    "received_bytes": "traffic: bytes received",
    "sent_bytes": "traffic: bytes sent",
}


def lines(record: Record, table: str) -> list[Line]:
    """Return the lines of a table."""
    return _latencies(record) if table == LATENCIES else _counts(record)


def as_text(record: Record) -> str:
    """Return both tables for a terminal."""
    return "\n".join(_text(table, lines(record, table)) for table in TITLES)


def as_csv(record: Record) -> str:
    """Return the table of latencies as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS[LATENCIES])
    writer.writerow(COLUMNS[LATENCIES])
    writer.writerows(_latencies(record))
    return text.getvalue()


def as_html(record: Record) -> str:
    """Return both tables, and a plot of the durations of polls, as a section of a page."""
    polls = {row: each for row, each in record.durations().items() if row in POLLS}
    parts = {
        table: f"<h2>{title}</h2>{_html_table(COLUMNS[table], lines(record, table))}"
        for table, title in TITLES.items()
    }
    style = (
        "#jobcache-results{font-family:sans-serif;max-width:1152px;margin:0 auto;padding:24px}"
        "#jobcache-results td,#jobcache-results th{padding:4px 12px;text-align:right}"
        "#jobcache-results td:first-child,#jobcache-results th:first-child{text-align:left}"
    )
    plot = f"<h2>Distribution of poll latencies</h2>{latency_plot(polls)}"
    shown = "".join([parts[LATENCIES], plot, parts[COUNTS]])
    return f'<section id="jobcache-results"><style>{style}</style>{shown}</section>'


def as_page(record: Record) -> str:
    """Return a page with the results so far."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Poll latencies</title>'
        "<style>:root{color-scheme:light dark}</style></head>"
        f"<body>{as_html(record)}</body></html>"
    )


def insert(page: str, record: Record) -> str:
    """Return Locust's report with the results of the test at its end."""
    before, end, after = page.rpartition("</body>")
    return f"{before}{as_html(record)}{end}{after}"


def _latencies(record: Record) -> list[Line]:
    found = [_latency(row, durations) for row, durations in record.durations().items()]
    return [*found, _latency("all polls", record.polls())]


def _latency(row: str, durations: Histogram) -> Line:
    shown = {
        name.replace(".", ""): _NONE if value is None else f"{value:.3f}"
        for name, value in durations.summary().items()
    }
    return {"row": row, "count": durations.count, **shown}


def _counts(record: Record) -> list[Line]:
    report = record.report()
    found: list[Line] = [
        {"name": title, "value": report["outcomes"][key]} for key, title in _COUNTED.items()
    ]
    found += [{"name": title, "value": report[key]} for key, title in _OTHERS.items()]
    for name, value in report["delay_ms"].items():
        shown = _NONE if value is None else f"{value:.1f}"
        found.append({"name": f"delay from commit to user: {name} (ms)", "value": shown})
    return found


def _text(table: str, found: Sequence[Line]) -> str:
    columns = COLUMNS[table]
    cells = [list(columns.values()), *([str(line[key]) for key in columns] for line in found)]
    widths = [max(len(row[number]) for row in cells) for number in range(len(columns))]
    text = [TITLES[table]]
    for first, *others in cells:
        right = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        text.append("  ".join([first.ljust(widths[0]), *right]))
    return "\n".join([*text, ""])


def _html_table(columns: Mapping[str, str], found: Sequence[Line]) -> str:
    head = "".join(f"<th>{html.escape(title)}</th>" for title in columns.values())
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(str(line[key]))}</td>" for key in columns) + "</tr>"
        for line in found
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

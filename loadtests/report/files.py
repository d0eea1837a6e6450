"""The files of a report: HTML, JSON, CSV for runs, samples and requests, and each plot as SVG."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING

from loadtests.report.document import to_json
from loadtests.report.page import draw, html
from loadtests.report.plots import standalone

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from loadtests.report.document import Document, Measurement
    from loadtests.report.page import Drawn

_SUMS = (
    *("seconds", "users", "polls", "held", "not_modified", "jobs", "completed", "ends_seen"),
    *("first_polls", "first_polls_missed", "updates", "update_polls"),
    *("received_bytes", "sent_bytes", "cut_off", "reads_without_outcome", "cache_errors"),
)
_OUTCOMES = ("hits", "misses", "bypasses", "stale", "coalesced")


def write_json(document: Document, place: Path) -> None:
    """Write the document, so that an interruption finds either the old file or the new one."""
    place.mkdir(parents=True, exist_ok=True)
    new = place / "report.json.new"
    new.write_bytes(to_json(document))
    new.replace(place / "report.json")


def write(document: Document, place: Path) -> Path:
    """Write all files; return the path of the page."""
    write_json(document, place)
    _write_csv(place / "runs.csv", (_run(run) for run in document.runs))
    _write_csv(place / "requests.csv", (row for run in document.runs for row in _requests(run)))
    _write_csv(place / "samples.csv", (row for run in document.runs for row in _samples(run)))
    drawn = draw(document)
    _write_plots(drawn, place / "plots")
    page = place / "report.html"
    page.write_text(html(document, drawn), "utf-8")
    return page


def _write_plots(drawn: Drawn, place: Path) -> None:
    place.mkdir(exist_ok=True)
    for scenario, plots in drawn.items():
        for name, svg in plots.items():
            (place / f"{scenario}-{name}.svg").write_text(standalone(svg), "utf-8")


def _run(run: Measurement) -> Mapping[str, object]:
    return {
        "scenario": run.scenario,
        "backend": run.backend,
        **{name: getattr(run, name) for name in _SUMS},
        **{name: getattr(run.service, name) for name in _OUTCOMES},
        "process_reads": " ".join(map(str, run.process_reads)),
        **{f"clients_{name}": getattr(run.clients, name) for name in _OUTCOMES},
        **{f"delay_ms_{name}": value for name, value in run.delay_ms.items()},
        **{f"statements_{purpose}": count for purpose, count in run.statements.items()},
        **{f"database_{name}": count for name, count in run.database.items()},
        **{
            f"inside_{operation}_{figure}": value
            for operation, taken in run.inside_us.items()
            for figure, value in taken.items()
        },
        "faults": "; ".join(f"{fault.text} at {fault.second:g} s" for fault in run.faults),
        "problems": len(run.problems),
    }


def _requests(run: Measurement) -> Iterable[Mapping[str, object]]:
    for requests in run.requests:
        yield {"scenario": run.scenario, "backend": run.backend, **vars(requests)}


def _samples(run: Measurement) -> Iterable[Mapping[str, object]]:
    for sample in run.samples:
        yield {
            "scenario": run.scenario,
            "backend": run.backend,
            "second": sample.second,
            "reads": sample.reads,
            "hits": sample.hits,
            "statements": sample.statements,
            "machine_seconds": sample.machine_seconds,
            **{f"cpu_seconds_{name}": value for name, value in sample.cpu_seconds.items()},
            **{f"resident_bytes_{name}": value for name, value in sample.resident_bytes.items()},
        }


def _write_csv(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    listed = list(rows)
    columns = dict.fromkeys(name for row in listed for name in row)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(columns))
        writer.writeheader()
        writer.writerows(listed)

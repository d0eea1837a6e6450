"""The columns of the tables and of the CSV files."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, TypeVar

from loadtests.report import figures

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from loadtests.report.document import Document, Measurement, Requests

NONE = "-"
_Row = TypeVar("_Row")


def cells(columns: Mapping[str, Callable[[_Row], str]], row: _Row) -> list[str]:
    """Return the text of each column for a row."""
    return [column(row) for column in columns.values()]


def _number(value: float | None, style: str = ",.0f") -> str:
    return NONE if value is None else format(value, style)


def _inside(run: Measurement, operation: str) -> float | None:
    taken = run.inside_us.get(operation, {})
    return taken["p50"] / 1000 if taken.get("count") else None


ANSWERS: Mapping[str, Callable[[Measurement], str]] = {
    "backend": lambda run: run.backend,
    "polls": lambda run: _number(run.polls),
    "held": lambda run: _number(run.held),
    "hit rate %": lambda run: _number(run.service.hit_rate, ".2f"),
    "hits": lambda run: _number(run.service.hits),
    "misses": lambda run: _number(run.service.misses),
    "bypasses": lambda run: _number(run.service.bypasses),
    "coalesced": lambda run: _number(run.service.coalesced),
    "by process": lambda run: " + ".join(map(_number, run.process_reads)),
    "304": lambda run: _number(run.not_modified),
    "jobs": lambda run: _number(run.jobs),
    "first polls after a change": lambda run: _number(run.first_polls),
    "of them missed": lambda run: _number(run.first_polls_missed),
    "queries by polls": lambda run: _number(run.statements.get("load", 0)),
    "per job": lambda run: _number(figures.loads_per_job(run), ".2f"),
    "all statements": lambda run: _number(figures.statements(run)),
    "transactions": lambda run: _number(run.database.get("xact_commit")),
    "cache errors": lambda run: _number(run.cache_errors),
    "failures": lambda run: _number(sum(requests.failures for requests in run.requests)),
}
"""How the polls of a run were answered, and what the database was sent in all."""

COSTS: Mapping[str, Callable[[Measurement], str]] = {
    "backend": lambda run: run.backend,
    "p50 ms": lambda run: _number(figures.percentile(run.polls_ms, 50), ".2f"),
    "p99 ms": lambda run: _number(figures.percentile(run.polls_ms, 99), ".2f"),
    "max ms": lambda run: _number(figures.percentile(run.polls_ms, 100), ".2f"),
    "commit to client, p50 ms": lambda run: _number(run.delay_ms.get("p50"), ".0f"),
    "polls per update": lambda run: _number(figures.polls_per_update(run), ".2f"),
    "kB received": lambda run: _number(run.received_bytes / 1000),
    "kB sent": lambda run: _number(run.sent_bytes / 1000),
    "hit inside, p50 ms": lambda run: _number(_inside(run, "hit"), ".3f"),
    "other read inside, p50 ms": lambda run: _number(_inside(run, "miss"), ".3f"),
    "CPU service s": lambda run: _number(figures.cpu_seconds(run, "service"), ".2f"),
    "CPU database s": lambda run: _number(figures.cpu_seconds(run, "database"), ".2f"),
    "CPU Redis s": lambda run: _number(figures.cpu_seconds(run, "redis"), ".2f"),
    "CPU clients s": lambda run: _number(figures.cpu_seconds(run, "clients"), ".2f"),
    "CPU others %": lambda run: _number(figures.others_percent(run)),
    "service MB": lambda run: _number(figures.peak_megabytes(run, "service"), ".0f"),
    "Redis MB": lambda run: _number(figures.peak_megabytes(run, "redis"), ".0f"),
}
"""Durations, processor time and the largest memory of a run."""

REQUESTS: Mapping[str, Callable[[Requests], str]] = {
    "request": lambda requests: requests.name,
    "count": lambda requests: _number(requests.count),
    "failures": lambda requests: _number(requests.failures),
    "p50 ms": lambda requests: _number(requests.p50_ms, ".2f"),
    "p95 ms": lambda requests: _number(requests.p95_ms, ".2f"),
    "p99 ms": lambda requests: _number(requests.p99_ms, ".2f"),
    "max ms": lambda requests: _number(requests.max_ms, ".2f"),
}
"""A row for each name of requests."""


@dataclass(frozen=True, kw_only=True)
class BackendSummary:
    """All runs of one backend."""

    backend: str
    runs: list[Measurement]

    def lowest_hit_rate(self) -> float | None:
        """Return the lowest hit rate of all scenarios."""
        return min(_known(run.service.hit_rate for run in self.runs), default=None)

    def per_thousand(self, amount: Callable[[Measurement], float | None]) -> float | None:
        """Return an amount of all runs for each thousand polls."""
        pairs = [(amount(run), run.polls) for run in self.runs]
        polls = sum(count for value, count in pairs if value is not None)
        return 1000 * sum(v for v, _ in pairs if v is not None) / polls if polls else None

    def middle(self, value: Callable[[Measurement], float | None]) -> float | None:
        """Return the median of a figure over the scenarios."""
        known = _known(value(run) for run in self.runs)
        return median(known) if known else None


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _duration(run: Measurement, percent: float) -> float | None:
    """Return a percentile of a run's polls; None if some were held, and so took as they should."""
    return None if run.held else figures.percentile(run.polls_ms, percent)


BACKENDS: Mapping[str, Callable[[BackendSummary], str]] = {
    "backend": lambda one: one.backend,
    "scenarios": lambda one: _number(len(one.runs)),
    "lowest hit rate %": lambda one: _number(one.lowest_hit_rate(), ".2f"),
    "queries per 1,000 polls": lambda one: _number(
        one.per_thousand(lambda run: run.statements.get("load", 0)), ".1f"
    ),
    "median poll ms": lambda one: _number(one.middle(lambda run: _duration(run, 50)), ".2f"),
    "median p99 ms": lambda one: _number(one.middle(lambda run: _duration(run, 99)), ".2f"),
    "CPU ms per poll, service": lambda one: _number(
        one.per_thousand(lambda run: figures.cpu_seconds(run, "service")), ".2f"
    ),
    "CPU ms per poll, database": lambda one: _number(
        one.per_thousand(lambda run: figures.cpu_seconds(run, "database")), ".2f"
    ),
    "CPU ms per poll, Redis": lambda one: _number(
        one.per_thousand(lambda run: figures.cpu_seconds(run, "redis")), ".2f"
    ),
}
"""A row for each backend. Seconds per thousand polls are milliseconds per poll."""


def backends(document: Document) -> list[BackendSummary]:
    """Return all backends of a document, in the order of their first runs."""
    return [
        BackendSummary(backend=name, runs=[run for run in document.runs if run.backend == name])
        for name in dict.fromkeys(run.backend for run in document.runs)
    ]

"""Runs side by side, as Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    Row = Mapping[str, Any]

_NONE = "-"
_COLUMNS: dict[str, Callable[[Row], str]] = {
    "users": lambda row: str(row["users"]),
    "backend": lambda row: row["backend"],
    "polls": lambda row: str(polls(row)),
    "hit rate %": lambda row: f"{hit_rate(row):.2f}",
    "jobs": lambda row: str(row["jobs"]),
    "changes of jobs": lambda row: str(row["changes"]),
    "SELECTs by polls": lambda row: str(row["selects_by_polls"]),
    "per job": lambda row: _ratio(row["selects_by_polls"], row["jobs"], ".2f"),
    "polls per SELECT": lambda row: _ratio(polls(row), row["selects_by_polls"], ".1f"),
    "polls during a change": lambda row: str(row["bypasses"]),
    "first polls after a change": lambda row: str(row["news"]),
    "of them missed": lambda row: str(row["news_missed"]),
    "cache errors": lambda row: str(row["cache_errors"]),
    "all statements": lambda row: str(row["statements"]),
    "p50 ms": lambda row: _milliseconds(row["poll_ms"]["p50"]),
    "p95 ms": lambda row: _milliseconds(row["poll_ms"]["p95"]),
    "p99 ms": lambda row: _milliseconds(row["poll_ms"]["p99"]),
    "max ms": lambda row: _milliseconds(row["poll_ms"]["max"]),
    "failures": lambda row: str(failures(row)),
}


def markdown(rows: Iterable[Row], notes: Sequence[str]) -> str:
    """A table with a line for each run, and notes below it."""
    lines: list[Iterable[str]] = [_COLUMNS, ["---"] * len(_COLUMNS)]
    lines += [[column(row) for column in _COLUMNS.values()] for row in rows]
    table = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([*table, "", *notes, ""])


def polls(row: Row) -> int:
    """How many polls there were."""
    return int(row["requests"].get("poll", 0))


def hit_rate(row: Row) -> float:
    """Percent of what the service read that its cache answered."""
    return 100 * float(row["hits"]) / row["reads"] if row["reads"] else 0.0


def failures(row: Row) -> int:
    """How many requests were not answered as they should have been, polls and others."""
    return sum(row["failures"].values())


def complaints(row: Row) -> list[str]:
    """What makes a run a failure, in sentences."""
    run = f"{row['users']} users, {row['backend']}"
    found = [f"{run}: {failures(row)} failures, such as {row['errors']}"] if failures(row) else []
    if not 0 < row["completed"] == row["jobs"]:
        found.append(f"{run}: {row['completed']} of {row['jobs']} jobs were seen to complete")
    return found


def _ratio(part: int, whole: int, style: str) -> str:
    return f"{part / whole:{style}}" if whole else _NONE


def _milliseconds(value: float | None) -> str:
    return _NONE if value is None else f"{value:.1f}"

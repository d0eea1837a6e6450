"""Tables that compare runs, as Markdown."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from loadtests.pollers.rows import COUNTERS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    Row = Mapping[str, Any]

_NONE = "-"
_COLUMNS: dict[str, Callable[[Row], str]] = {
    "users": lambda row: str(row["users"]),
    "backend": lambda row: row["backend"],
    "mode": lambda row: row["mode"],
    "polls": lambda row: str(polls(row)),
    "hit rate %": lambda row: f"{hit_rate(row):.2f}",
    "jobs": lambda row: str(row["jobs"]),
    "changes of jobs": lambda row: str(row["changes"]),
    "SELECTs by polls": lambda row: str(row["selects_by_polls"]),
    "per job": lambda row: _ratio(row["selects_by_polls"], row["jobs"], ".2f"),
    "polls per SELECT": lambda row: _ratio(polls(row), row["selects_by_polls"], ".1f"),
    "polls during a change": lambda row: str(row["bypasses"]),
    "first polls after a change": lambda row: str(row["first_polls"]),
    "of them missed": lambda row: str(row["first_polls_missed"]),
    "cache errors": lambda row: str(row["cache_errors"]),
    "all statements": lambda row: str(row["statements"]),
    "p50 ms": lambda row: _milliseconds(row["poll_ms"]["p50"]),
    "p95 ms": lambda row: _milliseconds(row["poll_ms"]["p95"]),
    "p99 ms": lambda row: _milliseconds(row["poll_ms"]["p99"]),
    "max ms": lambda row: _milliseconds(row["poll_ms"]["max"]),
    "failures": lambda row: str(failures(row)),
}
_OF_CLIENTS: dict[str, Callable[[Row], str]] = {
    "users": lambda row: str(row["users"]),
    "backend": lambda row: row["backend"],
    "mode": lambda row: row["mode"],
    "polls": lambda row: str(polls(row)),
    "per user and update": lambda row: _ratio(row["update_polls"], row["updates"], ".2f"),
    "kB received": lambda row: f"{row['received_bytes'] / 1000:.0f}",
    "kB sent": lambda row: f"{row['sent_bytes'] / 1000:.0f}",
    "SELECTs by polls": lambda row: str(row["selects_by_polls"]),
    "delay p50 ms": lambda row: _milliseconds(row["delay_ms"]["p50"]),
    "delay p95 ms": lambda row: _milliseconds(row["delay_ms"]["p95"]),
    "delay p99 ms": lambda row: _milliseconds(row["delay_ms"]["p99"]),
    "delay max ms": lambda row: _milliseconds(row["delay_ms"]["max"]),
}

MOST_REQUESTS = 1.2
"""Requests that waiting may take for each user and update."""

LEAST_GAIN = 10.0
"""How many times smaller than with polls the median delay must be."""

_NEVER_WOKEN = frozenset({"null"})  # waits there are polls by the service: nothing to judge


def markdown(rows: Iterable[Row], notes: Sequence[str]) -> str:
    """Return tables with a row for each run, its cost and its clients' view, and notes below."""
    listed = list(rows)
    return "\n".join([*_table(listed, _COLUMNS), "", *_table(listed, _OF_CLIENTS), "", *notes, ""])


def _table(rows: Iterable[Row], columns: Mapping[str, Callable[[Row], str]]) -> list[str]:
    lines: list[Iterable[str]] = [columns, ["---"] * len(columns)]
    lines += [[column(row) for column in columns.values()] for row in rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def polls(row: Row) -> int:
    """Return the number of polls."""
    return int(row["polls"])


def hit_rate(row: Row) -> float:
    """Return the percentage of reads that the cache answered."""
    return 100 * float(row["hits"]) / row["reads"] if row["reads"] else 0.0


def failures(row: Row) -> int:
    """Return the number of requests with a wrong response, polls and others."""
    return sum(row["failures"].values())


def complaints(row: Row) -> list[str]:
    """Return the reasons why a run is a failure, as sentences."""
    run = _name(row)
    found = [f"{run}: {failures(row)} failures, such as {row['errors']}"] if failures(row) else []
    if not 0 < row["completed"] == row["jobs"]:
        found.append(f"{run}: {row['completed']} of {row['jobs']} jobs were seen to complete")
    if row["ends_seen"] != row["users"]:
        found.append(f"{run}: {row['ends_seen']} of {row['users']} users saw the end of their job")
    return found + [f"{run}: {difference}" for difference in differences(row)]


def differences(row: Row) -> list[str]:
    """Return where the counts of the users and of the service differ, as sentences.

    The service reads its cache several times for a poll that it holds, so there is nothing to
    compare where polls were held, or where the test did not wait for responses.
    """
    seen = row["outcomes"]
    if seen["held"] or row["cut_off"]:
        return []
    return [
        f"{name}: users counted {seen[name]}, the service {row[name]}"
        for name in COUNTERS
        if seen[name] != row[name]
    ]


def worth_of_waiting(rows: Iterable[Row]) -> tuple[list[str], list[str]]:
    """Compare waiting with polling; return the findings, and those that are failures.

    Runs in mode `wait` are compared with those beside them, of as many users and the same backend.
    """
    listed = [row for row in rows if row["backend"] not in _NEVER_WOKEN]
    found: list[str] = []
    short: list[str] = []
    for row in listed:
        if row["mode"] != "wait":
            continue
        requests = row["update_polls"] / row["updates"] if row["updates"] else math.inf
        sentence = f"{_name(row)}: {requests:.2f} requests per user and update"
        (found if requests <= MOST_REQUESTS else short).append(
            f"{sentence} (at most {MOST_REQUESTS:g})"
        )
        delay = row["delay_ms"]["p50"]
        for other in listed:
            beside = (other["users"], other["backend"]) == (row["users"], row["backend"])
            polled = other["delay_ms"]["p50"]
            if other["mode"] == "wait" or not beside or polled is None:
                continue
            gain = 0.0 if delay is None else polled / max(delay, 1.0)  # timed in whole ms
            sentence = f"{_name(row)}: median delay {gain:.0f} times smaller than {other['mode']}'s"
            (found if gain >= LEAST_GAIN else short).append(f"{sentence} (at least {LEAST_GAIN:g})")
    return found, short


def _name(row: Row) -> str:
    return f"{row['users']} users, {row['backend']}, {row['mode']}"


def _ratio(part: int, whole: int, style: str) -> str:
    return f"{part / whole:{style}}" if whole else _NONE


def _milliseconds(value: float | None) -> str:
    return _NONE if value is None else f"{value:.1f}"

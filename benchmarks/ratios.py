"""From pytest-benchmark's results to the tables people read, and to a verdict.

    python -m benchmarks.ratios benchmarks/results/latest.json

Ends with 1 where a backend does not answer as many times more polls than the service without a
cache as was promised, and with 2 where the results do not tell.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from benchmarks.backends import NEEDS_REDIS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

PROMISED = {"memory": 3.0, "redis": 2.0}
"""How many times more polls than without a cache, by backend, at the least; on `PROMISED_FOR`."""
PROMISED_FOR = ("postgres", "a job each")

_BUSY = 0.8  # of a generator that may have been too slow to tell
_DATABASES = {"postgres": "PostgreSQL", "sqlite": "SQLite"}


class NoResults(Exception):  # noqa: N818 - says what is the matter
    """The file does not hold what was asked for."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ratios", description=__doc__)
    parser.add_argument("results", type=Path, help="what --benchmark-json wrote")
    path = parser.parse_args(arguments).results
    try:
        results = json.loads(path.read_text("utf-8"))
        series = _series(results)
        broken = broken_promises(series)
    except (OSError, ValueError, LookupError, TypeError, NoResults) as error:
        sys.stderr.write(f"{path}: {error}\n")
        return 2
    sys.stdout.write("\n".join([*_report(results, series), "", *broken]).rstrip() + "\n")
    return 1 if broken else 0


def broken_promises(series: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence for each of `PROMISED` that the polls did not keep.

    Raises:
        NoResults: a backend with a promise, or the one without a cache, was not measured.
    """
    sentences = []
    for backend, promised in PROMISED.items():
        found = [one for one in series if _is(one, backend, *PROMISED_FOR)]
        if not found:
            raise NoResults(
                f"no polls were measured with {backend} on {' with '.join(PROMISED_FOR)}"
            )
        ratio = median(ratios(found[0], series))
        if ratio < promised:
            sentences.append(
                f"FAILED: {backend} is {ratio:.2f} x null, promised is {promised:g} x."
            )
    return sentences


def ratios(one: Mapping[str, Any], series: Iterable[Mapping[str, Any]]) -> list[float]:
    """How many times more polls than the service without a cache on PostgreSQL, turn by turn.

    Raises:
        NoResults: that service was not measured under this workload.
    """
    for other in series:
        if _is(other, "null", "postgres", one["workload"]):
            rates = one["polls_per_second"]
            return [
                rate / base for rate, base in zip(rates, other["polls_per_second"], strict=True)
            ]
    raise NoResults("no polls were measured without a cache on PostgreSQL")


def _is(one: Mapping[str, Any], server: str, database: str, workload: str) -> bool:
    return (one["server"], one["database"], one["workload"]) == (server, database, workload)


def _series(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    for benchmark in results["benchmarks"]:
        series: list[dict[str, Any]] = benchmark["extra_info"].get("polls", [])
        if series:
            return series
    raise NoResults("no polls were measured")


# --- tables ---


def _report(results: Mapping[str, Any], series: Sequence[Mapping[str, Any]]) -> list[str]:
    surroundings = ", ".join(f"{name} {text}" for name, text in results["surroundings"].items())
    return [
        "## One operation, in microseconds (median)",
        "",
        *_operations(results["benchmarks"]),
        "",
        "## Whole polls over HTTP (median of all turns, lowest to highest)",
        "",
        *_polls(series),
        "",
        *_generator(series),
        "",
        _promises(),
        "",
        f"Taken with: {surroundings}.",
    ]


def _operations(benchmarks: Iterable[Mapping[str, Any]]) -> list[str]:
    times: dict[str, dict[str, float]] = {}
    for benchmark in benchmarks:
        info = benchmark["extra_info"]
        if "operation" in info:
            seconds = benchmark["stats"]["median"] / info["operations_per_round"]
            times.setdefault(info["operation"], {})[info["backend"]] = seconds * 1e6
    backends = [name for name in NEEDS_REDIS if any(name in row for row in times.values())]
    rows = [
        [operation, *(f"{row[name]:.1f}" if name in row else "" for name in backends)]
        for operation, row in sorted(times.items())
    ]
    return _table(["operation", *backends], rows)


def _polls(series: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = []
    for one in sorted(series, key=lambda one: str(one["workload"])):
        if one["database"] in _DATABASES:
            named = [one["workload"], one["server"], _DATABASES[one["database"]]]
            rates, compared = one["polls_per_second"], ratios(one, series)
            rows.append([*named, _spread(rates, ".0f"), _spread(compared, ".2f")])
    return _table(["workload", "backend", "database", "polls/s", "times null on PostgreSQL"], rows)


def _generator(series: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        f"The load generator alone, with a server of constant bytes: "
        f"{_spread(one['polls_per_second'], '.0f')} answers/s, "
        f"computing {median(one['generator_busy']):.0%} of the time."
        for one in series
        if one["database"] not in _DATABASES
    ]
    busiest = max(median(one["generator_busy"]) for one in series if one["database"] in _DATABASES)
    lines.append(f"With the service it was computing at most {busiest:.0%} of the time.")
    if busiest > _BUSY:
        lines.append("So it may have held the fastest back: true ratios are no lower than these.")
    return lines


def _promises() -> str:
    promised = ", ".join(f"{backend} {times:g} times" for backend, times in PROMISED.items())
    database, workload = PROMISED_FOR
    return f"Promised, with {workload} on {_DATABASES[database]}: {promised} the polls of null."


def _spread(values: Sequence[float], style: str) -> str:
    return f"{median(values):{style}} ({min(values):{style}} to {max(values):{style}})"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


if __name__ == "__main__":
    sys.exit(main())

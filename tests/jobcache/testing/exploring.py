"""Simulations as tests write them, and what a test expects of an exploration."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from jobcache.testing.simulation import Explorer, Report, Simulator, Violation


def simulator(processes: str, faults: int, kinds: str = "", **ways: Any) -> Simulator:
    names = kinds.split() or Simulator().kinds
    return Simulator(
        processes=tuple(processes.split()), faults=faults, kinds=frozenset(names), **ways
    )


def in_order(report: Report) -> None:
    assert report.finding is None, f"{report.simulator!r}\n{report}"


def found(
    explorer: Explorer,
    seeds: Mapping[tuple[str, str], int],
    name: str,
    *simulations: tuple[Simulator, int | None],
) -> None:
    """Explore simulations, a seed's few schedules first, until something is wrong."""

    def reports() -> Iterator[tuple[Simulator, Report]]:
        for where, _ in simulations:
            if (name, str(where)) in seeds:
                yield where, explorer.search(where, seed=seeds[name, str(where)], runs=40)
        for where, switches in simulations:
            yield where, explorer.exhaust(where, switches=switches, most=20_000)

    for where, report in reports():
        print(report)  # noqa: T201 - pytest -rP shows the schedules
        if report.finding is not None:
            with pytest.raises(Violation, match=re.escape(report.finding.reason)):
                explorer.replay(where, report.finding.schedule)
            return
    raise AssertionError(f"this was not found: {report}")

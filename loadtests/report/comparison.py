"""The goals of the project, beside the claims of the first version of the service."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from loadtests.report.figures import loads_per_job, polls_per_update

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadtests.report.document import Document, Measurement

    Value = Callable[[Document, Measurement], float | None]

_OWN_PACE = frozenset({"users_1", "users_10", "users_100"})
_ALL = frozenset({"memory", "redis", "tiered"})
_IN_PROCESS = frozenset({"memory", "tiered"})


@dataclass(frozen=True, kw_only=True)
class Goal:
    """A bound for a figure of some runs.

    Attributes:
        figure: what is measured.
        bound: the limit.
        at_least: whether the limit is the lowest value allowed, and not the highest.
        unit: of figure and limit.
        scenarios: the scenarios it is for.
        backends: the backends it is for.
        value: returns the figure; None if it was not measured.
        first_version: what the first version claimed.
    """

    figure: str
    bound: float
    at_least: bool
    unit: str
    scenarios: frozenset[str]
    backends: frozenset[str]
    value: Value
    first_version: str = "no claim"

    def is_met(self, value: float) -> bool:
        """Return whether a value keeps to the bound."""
        return value >= self.bound if self.at_least else value <= self.bound


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A goal and its figure in one run; `met` is None where goals are not judged."""

    goal: Goal
    run: Measurement
    value: float
    met: bool | None


def compare(document: Document) -> list[Verdict]:
    """Return the verdict for each goal and each run that it is for, if its figure was measured."""
    found = []
    for goal in GOALS:
        for run in document.runs:
            if run.scenario not in goal.scenarios or run.backend not in goal.backends:
                continue
            value = goal.value(document, run)
            if value is not None:
                met = None if document.quick else goal.is_met(value)
                found.append(Verdict(goal=goal, run=run, value=value, met=met))
    return found


def _hit_rate(_: Document, run: Measurement) -> float | None:
    return run.service.hit_rate


def _loads_per_job(_: Document, run: Measurement) -> float | None:
    return loads_per_job(run)


def _inside_ms(run: Measurement, operation: str) -> float | None:
    taken = run.inside_us.get(operation, {})
    return taken["p50"] / 1000 if taken.get("count") else None


def _hit_ms(_: Document, run: Measurement) -> float | None:
    return _inside_ms(run, "hit")


def _times_faster(document: Document, run: Measurement) -> float | None:
    hit = _inside_ms(run, "hit")
    for other in document.runs:
        if (other.scenario, other.backend) == (run.scenario, "null"):
            read = _inside_ms(other, "miss")
            return None if read is None or not hit else read / hit
    return None


def _first_polls_missed(_: Document, run: Measurement) -> float | None:
    return run.first_polls_missed if run.first_polls else None


def _polls_per_update(_: Document, run: Measurement) -> float | None:
    return polls_per_update(run)


def _times_sooner(document: Document, run: Measurement) -> float | None:
    delay = run.delay_ms.get("p50")
    for other in document.runs:
        if (other.scenario, other.backend) == ("one_job", run.backend):
            polled = other.delay_ms.get("p50")
            # Commits are timed in whole milliseconds.
            return None if polled is None or delay is None else polled / max(delay, 1.0)
    return None


def _not_modified(_: Document, run: Measurement) -> float | None:
    return 100 * run.not_modified / run.polls if run.polls else None


GOALS = (
    Goal(
        figure="hit rate",
        first_version="85 to 90 %",
        bound=99,
        at_least=True,
        unit="%",
        scenarios=_OWN_PACE,
        backends=_ALL,
        value=_hit_rate,
    ),
    Goal(
        figure="queries caused by polls, per job",
        bound=1,
        at_least=False,
        unit="",
        scenarios=_OWN_PACE,
        backends=_ALL,
        value=_loads_per_job,
    ),
    Goal(
        figure="first polls after a change that caused a query",
        bound=0,
        at_least=False,
        unit="",
        scenarios=_OWN_PACE,
        backends=_ALL,
        value=_first_polls_missed,
    ),
    Goal(
        figure="median hit inside the service",
        bound=0.2,
        at_least=False,
        unit="ms",
        scenarios=_OWN_PACE,
        backends=_IN_PROCESS,
        value=_hit_ms,
    ),
    Goal(
        figure="median hit inside the service",
        bound=1,
        at_least=False,
        unit="ms",
        scenarios=_OWN_PACE,
        backends=frozenset({"redis"}),
        value=_hit_ms,
    ),
    Goal(
        figure="median read of null, divided by the median hit",
        bound=10,
        at_least=True,
        unit="times",
        scenarios=_OWN_PACE,
        backends=_IN_PROCESS,
        value=_times_faster,
    ),
    Goal(
        figure="polls answered 304",
        bound=75,
        at_least=True,
        unit="%",
        scenarios=frozenset({"etags"}),
        backends=_ALL,
        value=_not_modified,
    ),
    Goal(
        figure="median hit inside the service, with ETags",
        bound=0.1,
        at_least=False,
        unit="ms",
        scenarios=frozenset({"etags"}),
        backends=_IN_PROCESS,
        value=_hit_ms,
    ),
    Goal(
        figure="polls of a waiting client for each update",
        bound=1.2,
        at_least=False,
        unit="",
        scenarios=frozenset({"long_polls"}),
        backends=_ALL,
        value=_polls_per_update,
    ),
    Goal(
        figure="median delay of polls every 3 s, divided by that of long polls",
        bound=10,
        at_least=True,
        unit="times",
        scenarios=frozenset({"long_polls"}),
        backends=_ALL,
        value=_times_sooner,
    ),
    Goal(
        figure="queries of a cold start, per job",
        bound=1,
        at_least=False,
        unit="",
        scenarios=frozenset({"stampede"}),
        backends=frozenset({"memory"}),
        value=_loads_per_job,
    ),
    Goal(
        figure="queries of a cold start, per job",
        bound=2,
        at_least=False,
        unit="",
        scenarios=frozenset({"stampede"}),
        backends=frozenset({"redis", "tiered"}),
        value=_loads_per_job,
    ),
)
"""What is promised. Durations are of the service, without network and client."""

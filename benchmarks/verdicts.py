"""The goals of the project, as ratios within one run, and whether they are reached.

What Python or the hardware sets is no goal: see `benchmarks.limits`.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from benchmarks.peers.table import is_peer, is_peer_on_redis
from benchmarks.results import NoResults, Run, Series, ratios, spread
from benchmarks.suites import calls, embedded, keys, lookups, observed, polls, updates

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

PAUSE_MS = 10.0


@dataclass(frozen=True)
class Verdict:
    """The result for one goal.

    Attributes:
        claim: the goal, as text.
        limit: the limit of the figure, as text.
        figure: the measured figure, as text.
        holds: whether the goal is reached; None if it was not measured.
        margin: by how much, as a part of the limit; below 0 if it does not hold; None where there
            is no more or less.
    """

    claim: str
    limit: str
    figure: str
    holds: bool | None
    margin: float | None = None

    @property
    def words(self) -> str:
        """Return the verdict as text."""
        if self.holds is None:
            return "not measured"
        verdict = "holds" if self.holds else "DOES NOT HOLD"
        return verdict if self.margin is None else f"{verdict}, by {abs(self.margin):.0%}"


def verdicts(run: Run) -> list[Verdict]:
    """Return all verdicts, in the order of the goals."""
    found = []
    for claim, check in _CLAIMS:
        try:
            found.append(check(claim, run))
        except NoResults as error:
            found.append(Verdict(claim, "", str(error), None))
    return found


def _at_least(claim: str, found: Sequence[float], limit: float, beside: str = "") -> Verdict:
    ratio = median(found)
    figure = f"{spread(found, '.2f')}{beside}"
    return Verdict(claim, f"≥ {limit:g}", figure, ratio >= limit, ratio / limit - 1)


def _at_most(claim: str, found: Sequence[float], limit: float, beside: str = "") -> Verdict:
    ratio = median(found)
    figure = f"{spread(found, '.2f')}{beside}"
    return Verdict(claim, f"≤ {limit:g}", figure, ratio <= limit, 1 - ratio / limit)


if TYPE_CHECKING:
    _Check = Callable[[str, Run], Verdict]


def _over(section: str, subject: str, other: str, limit: float) -> _Check:
    """The rate of one over that of another."""

    def check(claim: str, run: Run) -> Verdict:
        measured = run.find(section)
        return _at_least(claim, ratios(measured.find(subject), measured.find(other)), limit)

    return check


def _over_best(
    section: str, subject: str, limit: float, chosen: Callable[[Series], bool]
) -> _Check:
    """The rate of one over that of the fastest of the chosen."""

    def check(claim: str, run: Run) -> Verdict:
        measured = run.find(section)
        best = measured.best(chosen)
        found = ratios(measured.find(subject), best)
        return _at_least(claim, found, limit, f"; it is {best.subject}")

    return check


def _costs(section: str, subject: str, other: str, limit: float) -> _Check:
    """The cost of one over that of another."""

    def check(claim: str, run: Run) -> Verdict:
        measured = run.find(section)
        return _at_most(claim, ratios(measured.find(subject), measured.find(other)), limit)

    return check


def _pause(kind: str) -> _Check:
    def check(claim: str, run: Run) -> Verdict:
        measured = run.find("keys")
        computing = measured.fact(keys.COMPUTED.format(kind))
        passed = measured.fact(keys.PAUSE.format(kind))
        count = max(one.x or 0 for one in measured.series)
        figure = f"{computing:.2f} ms of processor time ({passed:.2f} ms in all), {count:,.0f} keys"
        margin = 1 - computing / PAUSE_MS
        return Verdict(claim, f"≤ {PAUSE_MS:g} ms", figure, margin >= 0, margin)

    return check


def _statements(backend: str) -> _Check:
    def check(claim: str, run: Run) -> Verdict:
        measured = run.find("updates")
        each = measured.fact(updates.STATEMENTS.format(backend))
        others = measured.fact(updates.OTHERS.format(backend))
        figure = f"{each:g} for each update; {others:g} in all that were no UPDATE"
        return Verdict(claim, "= 1", figure, each == 1 and others == 0)

    return check


def _claims() -> Iterator[tuple[str, _Check]]:
    many = "polls-many"
    for name, least in (("memory", 1.6), ("tiered", 1.6), ("redis", 0.9)):
        unchanged = polls.NOT_MODIFIED.format(name)
        is_rival, rival = (
            (is_peer_on_redis, "the fastest other cache on Redis")
            if name == "redis"
            else (is_peer, "the fastest other cache")
        )
        yield f"Poll, {name}: times a plain ASGI function", _over(many, name, polls.PLAIN, least)
        yield (
            f"Poll answered 304, {name}: times the plain function's 200",
            _over(many, unchanged, polls.PLAIN, least),
        )
        yield f"Poll, {name}: times {rival}", _over_best(many, name, 6, is_rival)
    yield (
        "Poll, memory without the uvicorn protocol class: times a plain ASGI function",
        _over(many, polls.WITHOUT_PROTOCOL, polls.PLAIN, 0.85),
    )
    for server, wrapped in (("uvicorn", 0.85), ("granian", 0.8), ("hypercorn", 0.9)):
        yield (
            f"Poll of an application in FastPath, {server}: times a plain ASGI function",
            _over(
                "embedded",
                embedded.WRAPPED.format(server),
                embedded.PLAIN.format(server),
                wrapped,
            ),
        )
    yield (
        "Poll of an application behind RepeatedPolls, uvicorn: times a plain ASGI function",
        _over(
            "embedded",
            embedded.REPEATED.format("uvicorn"),
            embedded.PLAIN.format("uvicorn"),
            0.65,
        ),
    )
    yield (
        "Poll by PollingRoutes, uvicorn: times the service's own route",
        _over("embedded", embedded.ROUTES.format("uvicorn"), embedded.SERVICE, 1),
    )
    for name, most in (
        (observed.METRICS, 1.03),
        (observed.SPANS, 1.05),
        (observed.ALL_SPANS, 1.05),
    ):
        yield (
            f"Hit over HTTP, {name}: times its cost unobserved",
            _costs("observed", name, observed.UNOBSERVED, most),
        )
    yield (
        f"Hit of JobCache on memory: times the cost of {lookups.BARE}",
        _costs("lookups", lookups.OURS, lookups.BARE, 1.3),
    )
    yield (
        "Hit of JobCache on postgres: times its cost on tiered",
        _costs("lookups", lookups.READ.format("postgres"), lookups.READ.format("tiered"), 1.05),
    )
    yield "Poll, postgres: times tiered", _over(many, "postgres", "tiered", 0.95)
    yield (
        f"Hit of JobCache.cached on memory: times the cost of {calls.BARE}",
        _costs("calls", calls.OURS, calls.BARE, 2),
    )
    for peer in (calls.CASHEWS, calls.AIOCACHE):
        yield (
            f"Hit of JobCache.cached on memory: times the cost of {peer}",
            _costs("calls", calls.OURS, peer, 0.5),
        )
    for name in ("redis", "tiered"):
        update = f"Progress update, {name}"
        yield (
            f"{update}: times its bare statement and two round trips",
            _costs("updates", updates.OURS.format(name), updates.BARE, 1.35),
        )
        yield f"{update}: SQL statements", _statements(name)
    yield "Progress update, postgres: SQL statements", _statements("postgres")
    for kind in keys.PAUSES:
        yield f"Longest pause of the event loop by {kind}, at 1,000,000 keys", _pause(kind)


_CLAIMS = list(_claims())

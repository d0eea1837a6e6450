"""The goals, as ratios within one run, and whether they are reached."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from benchmarks.results import NoResults, Run, Section, Series, ratios, spread
from benchmarks.suites import gets, keys, lookups, polls, updates, wire

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

PAUSE_MS = 10.0
FLAT = 1.15
"""The highest cost on a scale, over the lowest."""


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
    """Return all verdicts, in the order of their numbers."""
    found = []
    for claim, check in _CLAIMS:
        try:
            found.append(check(claim, run))
        except NoResults as error:
            found.append(Verdict(claim, "", str(error), None))
    return found


def _is_peer(one: Series) -> bool:
    return one.kind == "peer"


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


def _over_best(section: str, subject: str, limit: float) -> _Check:
    """The rate of one over that of the fastest peer; or, of costs, the other way round."""

    def check(claim: str, run: Run) -> Verdict:
        measured = run.find(section)
        best = measured.best(_awaited if section == "lookups" else _is_peer)
        found = ratios(measured.find(subject), best)
        if not measured.more_is_better:
            found = [1 / ratio for ratio in found]
        return _at_least(claim, found, limit, f"; it is {best.subject}")

    return check


def _awaited(one: Series) -> bool:
    return one.kind == "peer" and lookups.SYNCHRONOUS not in one.how


def _costs(section: str, subject: str, other: str, limit: float) -> _Check:
    """The cost of one over that of another."""

    def check(claim: str, run: Run) -> Verdict:
        measured = run.find(section)
        return _at_most(claim, ratios(measured.find(subject), measured.find(other)), limit)

    return check


def _flat(section: str, subject: str, other: str = "") -> _Check:
    """The highest of the costs on a scale, over the lowest, turn by turn; and that of another."""

    def check(claim: str, run: Run) -> Verdict:
        measured = run.find(section)
        found, beside = _steepness(measured, subject)
        if other:
            least, _ = _steepness(measured, other)
            beside += f"; {other}: {median(least):.2f}"
        return _at_most(claim, found, FLAT, beside)

    return check


def _steepness(section: Section, subject: str) -> tuple[list[float], str]:
    series = sorted(
        (one for one in section.series if one.subject == subject), key=lambda one: one.median
    )
    if not series:
        raise NoResults(f"{subject} was not measured: {section.title}")
    low, high = series[0], series[-1]
    beside = f"; highest at {high.x:,.0f} {section.scale}, lowest at {low.x:,.0f}"
    return ratios(high, low), beside


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
    one, many = "polls-one", "polls-many"
    for name in ("memory", "tiered"):
        hit, not_modified = f"1. Poll hit, {name}", f"1. Poll answered 304, {name}"
        yield f"{hit}: of the plain ASGI function", _over(one, name, polls.PLAIN, 0.88)
        asked = polls.NOT_MODIFIED.format(name)
        yield f"{not_modified}: of the plain function's 200", _over(one, asked, polls.PLAIN, 0.95)
        unlike = polls.UNLIKE.format(name)
        yield (
            f"{hit}, no two requests alike: of the plain function",
            _over(one, unlike, polls.PLAIN, 1.6),
        )
        yield f"{hit}: times the fastest peer", _over_best(one, name, 6)
        yield f"{hit}: times null, all asking for one job", _over(one, name, "null", 30)
        yield f"{hit}: times null, 100 jobs", _over(many, name, "null", 30)
        yield (
            f"{hit}: times a route without a cache, all asking for one job",
            _over(one, name, polls.HANDWRITTEN, 30),
        )
    yield (
        "1. Poll hit, memory without the fast protocol: of the plain function",
        _over(one, polls.UNLIKE.format(polls.WITHOUT_PROTOCOL), polls.PLAIN, 0.85),
    )
    hit = "2. Poll hit, redis, 100 jobs"
    yield (
        f"{hit}, no two requests alike: of the plain function",
        _over(many, polls.UNLIKE.format("redis"), polls.PLAIN, 0.9),
    )
    yield f"{hit}: of the plain ASGI function", _over(many, "redis", polls.PLAIN, 0.5)
    yield f"{hit}: times the fastest peer on Redis", _over_best(many, "redis", 5)
    hit = "3. JobCache hit on memory, in a coroutine"
    yield (
        f"{hit}: times the cost of {lookups.BARE}",
        _costs("lookups", lookups.OURS, lookups.BARE, 1.3),
    )
    yield (
        f"{hit}: times as fast as the fastest peer that is awaited",
        _over_best("lookups", lookups.OURS, 3),
    )
    together, alone = "gets-at-once", "gets-alone"
    yield "4. redis get, 64 tasks: times redis-py alone", _over(together, gets.OURS, gets.ALONE, 8)
    yield "4. redis get, 64 tasks: times valkey-glide", _over(together, gets.OURS, gets.GLIDE, 3)
    yield (
        "4. redis get, one after the other: times the latency of redis-py",
        _costs(alone, gets.OURS, gets.ALONE, 1.15),
    )
    for name in ("redis", "tiered"):
        update = f"5. Progress update, {name}"
        ours = updates.OURS.format(name)
        for other, words in (
            (updates.BARE, "the bare statement in a transaction of SQLAlchemy and 2 round trips"),
            (updates.BAREST, "the bare statement in asyncpg, without BEGIN, and 2 round trips"),
        ):
            yield f"{update}: times {words}", _costs("updates", ours, other, 1.35)
        yield f"{update}: SQL statements in its transaction", _statements(name)
    yield "6. Cost of a hit, 100 to 1,000,000 keys, the same 100 asked for", _flat("keys", keys.HOT)
    yield (
        "6. Cost of a hit, 100 to 1,000,000 keys, all asked for by chance",
        _flat("keys", keys.ALL, keys.ALL_DICTIONARY),
    )
    for name in ("memory", "tiered"):
        yield (
            f"6. Cost of a poll hit, 1 to 512 connections, {name}",
            _flat("connections", name, polls.PLAIN),
        )
    yield "6. Our own part of it, without sockets", _flat("wire", wire.OURS)
    for kind in keys.PAUSES:
        yield f"6. Longest pause of the loop by {kind}, at 1,000,000 keys", _pause(kind)
    uncached = "7. Uncached poll: of a FastAPI route written by hand"
    yield f"{uncached}, 100 jobs", _over(many, "null", polls.HANDWRITTEN, 0.9)
    yield f"{uncached}, all asking for one job", _over(one, "null", polls.HANDWRITTEN, 0.9)


_CLAIMS = list(_claims())

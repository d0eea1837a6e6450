"""Limits that Python, the hardware or the workload sets, as measured, with the reasons.

They are no goals: no work on this project could lift them.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from benchmarks.peers.table import is_peer
from benchmarks.results import NoResults, Run, Section, Series, ratios, spread
from benchmarks.suites import gets, keys, lookups, polls, updates, wire

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


@dataclass(frozen=True)
class Limit:
    """A limit.

    Attributes:
        name: what is limited.
        value: as text, as it was measured.
        reason: where it comes from, with the figure that shows it.
    """

    name: str
    value: str
    reason: str


def limits(run: Run) -> list[Limit]:
    """Return the limits that the run has measured."""
    found: list[Limit] = []
    for measure in _MEASURES:
        try:
            found += measure(run)
        except NoResults:
            continue  # its section, or a peer, was not part of the run
    return found


def steepness(section: Section, subject: str) -> tuple[list[float], Series, Series]:
    """Return the ratios of the highest cost on a scale to the lowest, and both.

    Raises:
        NoResults: the subject was not measured.
    """
    series = sorted(
        (one for one in section.series if one.subject == subject), key=lambda one: one.median
    )
    if not series:
        raise NoResults(f"{subject} was not measured: {section.title}")
    return ratios(series[-1], series[0]), series[-1], series[0]


def _times(values: Sequence[float]) -> str:
    return f"{spread(values, '.2f')} times"


def _one_job(run: Run) -> Iterator[Limit]:
    section = run.find("polls-one")
    null = section.find("null")
    for name in ("memory", "tiered"):
        yield Limit(
            f"`{name}` beside `null`, if all connections poll one job",
            f"{_times(ratios(section.find(name), null))} as fast",
            "Concurrent polls of one job share one query, so `null` is fast, too: "
            f"{_times(ratios(null, section.find(polls.HANDWRITTEN)))} a route without a cache.",
        )


def _parser(run: Run) -> Iterator[Limit]:
    section = run.find("polls-many")
    floor, plain = section.find(polls.PARSER), section.find(polls.PLAIN)
    yield Limit(
        "Polls of any service on uvicorn, beside a plain ASGI function",
        f"{_times(ratios(floor, plain))} as fast",
        "This is what uvicorn's parser and the kernel leave, if nothing looks at the request. A "
        f"poll on `memory` reaches {median(ratios(section.find('memory'), floor)):.2f} of it: it "
        "has to find the job, the caller, the entry and the tag that the client has.",
    )


def _connections(run: Run) -> Iterator[Limit]:
    section = run.find("connections")
    plain, _, _ = steepness(section, polls.PLAIN)
    alone = ""
    try:
        ours, _, _ = steepness(run.find("wire"), wire.OURS)
    except NoResults:
        pass
    else:
        alone = f" The service's own part, without sockets, differs by {median(ours):.2f} times."
    for name in ("memory", "tiered"):
        found, high, low = steepness(section, name)
        yield Limit(
            f"Processor time of a poll on `{name}`, by the number of connections",
            f"{_times(found)} as much with {high.x:,.0f} as with {low.x:,.0f}",
            "With one connection the process sleeps and wakes up for each poll; with hundreds "
            "the kernel handles hundreds of sockets. The plain ASGI function differs by "
            f"{median(plain):.2f} times.{alone}",
        )


def _compiled(run: Run) -> Iterator[Limit]:
    section = run.find("lookups")
    ours = section.find(lookups.OURS)
    best = section.best(lambda one: is_peer(one) and lookups.SYNCHRONOUS not in one.how)
    empty = section.find(lookups.EMPTY)
    yield Limit(
        "A hit of `JobCache`, beside the fastest other cache that is awaited",
        f"{_times(ratios(ours, best))} the time of {best.subject}",
        "A compiled decorator needs no coroutine of its own. Awaiting a coroutine that does "
        f"nothing costs {empty.median:.2f} µs, and the rest is Python.",
    )


def _round_trip(run: Run) -> Iterator[Limit]:
    section = run.find("gets-alone")
    ours, bare = section.find(gets.OURS), section.find(gets.ALONE)
    yield Limit(
        "Gets from Redis, one after the other",
        f"{spread(ours.samples, '.0f')} µs each",
        "Each waits for a round trip, through the kernel and the event loop twice. redis-py alone "
        f"takes {bare.median:.0f} µs; ours takes {_times(ratios(ours, bare))} that.",
    )


def _statement(run: Run) -> Iterator[Limit]:
    section = run.find("updates")
    bare, barest = section.find(updates.BARE), section.find(updates.BAREST)
    for name in ("redis", "tiered"):
        yield Limit(
            f"A progress update on `{name}`, beside its statement in asyncpg without BEGIN",
            f"{_times(ratios(section.find(updates.OURS.format(name)), barest))} the time",
            "SQLAlchemy and the transaction. With them, the same statement and round trips take "
            f"{_times(ratios(bare, barest))} the time.",
        )


def _caches(run: Run) -> Iterator[Limit]:
    section = run.find("keys")
    found, high, low = steepness(section, keys.ALL)
    hot, _, _ = steepness(section, keys.HOT)
    plain, _, _ = steepness(section, keys.ALL_DICTIONARY)
    yield Limit(
        "A hit, if all keys are asked for by chance",
        f"{_times(found)} the time with {high.x:,.0f} keys as with {low.x:,.0f}",
        "The entries do not fit into the processor's caches. A dictionary differs by "
        f"{median(plain):.1f} times. Hits of the same 100 keys differ by {median(hot):.2f} times.",
    )


def _collection(run: Run) -> Iterator[Limit]:
    section = run.find("keys")
    count = max(one.x or 0 for one in section.series)
    yield Limit(
        f"One full garbage collection with {count:,.0f} entries",
        f"{section.fact(keys.COLLECTION):.0f} ms",
        "Python's collector visits every object, and the event loop waits. The service makes it "
        "rare.",
    )


_MEASURES: tuple[Callable[[Run], Iterator[Limit]], ...] = (
    _parser,
    _one_job,
    _connections,
    _compiled,
    _round_trip,
    _statement,
    _caches,
    _collection,
)

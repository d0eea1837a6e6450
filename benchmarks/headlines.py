"""The few subjects that a reader compares first, and what they come to in plain words."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING

from benchmarks.peers.table import is_peer, is_peer_on_redis
from benchmarks.results import NoResults, Run, Section, Series, ratios
from benchmarks.suites import keys, lookups, polls, updates
from benchmarks.verdicts import verdicts

if TYPE_CHECKING:
    from collections.abc import Iterator

POLLS = "polls-many"
"""The section of the headline figures."""

_BUSY = 0.5  # the load of a machine that does something else, too


def headliners(section: Section) -> list[Series]:
    """Return at most six subjects of a section on polls, the fastest first."""
    found: dict[str, Series] = {}
    for one in section.series:
        if one.subject in ("memory", "redis", "memcached", polls.PLAIN, polls.HANDWRITTEN):
            found[one.subject] = one
    if "memcached" not in found:
        found |= {one.subject: one for one in section.series if one.subject == "tiered"}
    try:
        best = section.best(is_peer)
    except NoResults:
        pass
    else:
        found[best.subject] = best
    return sorted(found.values(), key=lambda one: one.median, reverse=True)


def summary(run: Run) -> list[str]:
    """Return the summary in plain words, as lines of Markdown."""
    lines = []
    for tell in (_polls, _limits, _peers, _unchanged, _hit, _update, _pauses, _goals):
        try:
            lines += [f"- {text}" for text in tell(run)]
        except NoResults:
            continue  # its section, or a peer, was not part of the run
    if run.load[0] > _BUSY:
        lines.append(
            f"- **The machine was busy** when the run began (load {run.load[0]:.1f}). Repeat it on "
            "a quiet machine before you trust a figure."
        )
    return lines


def _polls(run: Run) -> Iterator[str]:
    section = run.find(POLLS)
    ours = ("memory", "tiered", "postgres", "redis", "memcached")
    first, *others = [
        f"{one.median:,.0f}{{}} from `{one.subject}`"
        for name in ours
        for one in section.series
        if one.subject == name
    ]
    rates = ", ".join([first.format(" polls per second"), *(one.format("") for one in others)])
    null, route = section.find("null"), section.find(polls.HANDWRITTEN)
    yield (
        f"**Polls.** One process answers {rates}, over {polls.CONNECTIONS} connections. Without a "
        f"cache it is {null.median:,.0f} (`null`), and {route.median:,.0f} in a FastAPI route with "
        "the same query. No two of the requests are alike."
    )


def _limits(run: Run) -> Iterator[str]:
    section = run.find(POLLS)
    plain = section.find(polls.PLAIN)
    yield (
        f"**Python's limit.** A plain ASGI function that sends the same bytes answers "
        f"{plain.median:,.0f} per second: `memory` is {_times(section, 'memory', plain)} as fast, "
        f"`redis` {_times(section, 'redis', plain)}."
    )


def _peers(run: Run) -> Iterator[str]:
    section = run.find(POLLS)
    best, on_redis = section.best(is_peer), section.best(is_peer_on_redis)
    yield (
        f"**Other caches.** The fastest is {best.subject} with {best.median:,.0f} per second: "
        f"`memory` is {_times(section, 'memory', best)} as fast. On Redis it is "
        f"{on_redis.subject} with {on_redis.median:,.0f}: `redis` is "
        f"{_times(section, 'redis', on_redis)} as fast."
    )


def _unchanged(run: Run) -> Iterator[str]:
    section = run.find(POLLS)
    memory = section.find(polls.NOT_MODIFIED.format("memory"))
    yield (
        f"**Nothing new.** A poll with the ETag that the client has is answered 304: "
        f"{memory.median:,.0f} per second from `memory`."
    )


def _hit(run: Run) -> Iterator[str]:
    section = run.find("lookups")
    ours, bare = section.find(lookups.OURS), section.find(lookups.BARE)
    yield (
        f"**In the process.** A hit of `JobCache` takes {ours.median:.2f} µs, "
        f"{_middle(ratios(ours, bare))} times a lookup in {lookups.BARE}."
    )


def _update(run: Run) -> Iterator[str]:
    section = run.find("updates")
    bare = section.find(updates.BARE)
    ours = section.find(updates.OURS.format("redis"))
    yield (
        f"**A change.** A progress update on `redis` takes {ours.median / 1000:.2f} ms, "
        f"{_middle(ratios(ours, bare))} times its statement and two round trips to Redis."
    )


def _pauses(run: Run) -> Iterator[str]:
    section = run.find("keys")
    longest = max(section.fact(keys.COMPUTED.format(kind)) for kind in keys.PAUSES)
    count = max(one.x or 0 for one in section.series)
    yield (
        f"**Many jobs.** With {count:,.0f} keys, the event loop waits at most {longest:.1f} ms for "
        "growth, eviction, expiry or clearing."
    )


def _goals(run: Run) -> Iterator[str]:
    judged = [one for one in verdicts(run) if one.holds is not None]
    if not judged:
        raise NoResults("no goal was measured")
    missed = [one for one in judged if not one.holds]
    names = f" Missed: {'; '.join(one.claim for one in missed)}." if missed else ""
    yield f"**[Goals](#goals).** {len(judged) - len(missed)} of {len(judged)} are reached.{names}"


def _times(section: Section, subject: str, other: Series) -> str:
    return f"{_middle(ratios(section.find(subject), other))} times"


def _middle(values: list[float]) -> str:
    return f"{median(values):.2f}"

"""Rows of Locust's tables: polls by how the service answered them, and other requests."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jobcache.client.core.messages import Response

HIT = "poll: hit"
MISS = "poll: miss"
UNCHANGED = "poll: 304"
LONG_POLL = "poll: long poll"
DURING_CHANGE = "poll: during a change"
STALE = "poll: stale"
UNCACHED = "poll: no cache status"
NO_ANSWER = "poll: no answer"

LIST = "dashboard: list"
BATCH = "dashboard: batch"
EVENT = "stream: event"

POLLS = (
    *(HIT, UNCHANGED, MISS, DURING_CHANGE, LONG_POLL, STALE, UNCACHED, NO_ANSWER),
    *(LIST, BATCH, EVENT),
)
"""All rows of polls."""

CREATE = "job: create"
APPROVE = "job: approve"
RENDER = "job: render"
PROGRESS = "job: report progress"
COMPLETE = "job: report completion"
EMPTY_CACHE = "deploy: empty the cache"

COUNTERS = ("hits", "misses", "bypasses", "stale_served", "coalesced")
"""The service's counters of polls, which `PollOutcome` follows."""

_OUTCOMES = {
    "hit": "hits",
    "fwd=miss": "misses",
    "fwd=stale": "misses",
    "fwd=bypass": "bypasses",
}
_ROWS = {"hits": HIT, "misses": MISS, "bypasses": DURING_CHANGE, "stale_served": STALE}


@dataclass(frozen=True, slots=True, kw_only=True)
class PollOutcome:
    """How the service answered a poll.

    Attributes:
        row: the row of Locust's tables.
        counter: the name of the service's own counter, such as `hits`; None if the response does
            not say.
        coalesced: whether the poll shared the query of another one.
        held: whether the service held it. Such a poll reads the cache several times.
        not_modified: whether the status is 304, from the cache or not.
    """

    row: str
    counter: str | None
    coalesced: bool
    held: bool
    not_modified: bool

    @property
    def missed(self) -> bool:
        """Whether the cache did not have the version that was needed."""
        return self.counter == "misses"


def outcome_of(response: Response) -> PollOutcome:
    """Return how a poll was answered, by its `Cache-Status` (RFC 9211) and status."""
    members = [part.strip() for part in response.headers.get("cache-status", "").split(";")]
    found = [_OUTCOMES[member] for member in members if member in _OUTCOMES]
    counter = found[0] if found else None
    if "fwd=stale" in members and any(re.fullmatch("fwd-status=5..", each) for each in members):
        counter = "stale_served"
    held = "preference-applied" in response.headers
    row = UNCACHED if counter is None else _ROWS[counter]
    not_modified = response.status == 304
    if row == HIT and not_modified:
        row = UNCHANGED
    if held:
        row = LONG_POLL
    return PollOutcome(
        row=row,
        counter=counter,
        coalesced="collapsed" in members,
        held=held,
        not_modified=not_modified,
    )

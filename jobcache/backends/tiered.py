"""Two tiers: a near one in this process, before a far one that all processes share.

The near tier keeps the contract of a backend like any other; what is special is its source, which
is the far tier, and its writers, who are everybody. The feed speaks for them: each report of a
change empties the near cell. So the protocol that keeps readers of a database right keeps the
readers of the far tier right, too:

    a fill is a load       it takes the near lease before it asks the far tier, and what it brings
                           is stored only over that lease; a report in between has removed it
    an answer is an offer  whatever the far tier says is offered to the near one before it is
                           returned, and so removes what is older, or may become older

        R0 takes the near lease, reads v1; W commits v2; R1 finds the lease, reads v2, returns it
        R0 stores v1, for the report has not come yet; the next read goes back to v1

Writers fence the far tier, and all processes are told of that. But what is offered in this process
may be acknowledged or returned here before the feed has told of anything. So the near cell is
emptied once the offer has been made, whatever came of it, and before anybody hears of it:

    W fences, commits v2, offers it, acknowledges it; no report has come yet; R is given v1

Even while the feed is not live, when nothing is filled, what the far tier says is offered to the
near one: the feed may be live again before it has told of that.

What a process serves from its near tier may be as old as the feed lags, and no older than the limit
after which a silent feed is not live any more. While it is not, the near tier is not asked at all,
and every read is the far tier's.

Rejected: to empty the cell before an offer, too, or for a fence. Until the offer has been made
nobody is owed what it carries, and what is filled meanwhile goes with the rest.

Rejected: to keep what a write has offered. Its own report comes back and empties the cell again;
and if another writer's fence were reported in between, the cell would hide what that one commits.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from jobcache._concurrency.batching import Together
from jobcache.protocol.backend import (
    CacheBackend,
    Condition,
    Drop,
    Entry,
    Holdings,
    Identifies,
    Offered,
    Peek,
    PurgeAll,
    Remember,
    Standing,
    Starts,
    SupportsBodyCheck,
    SupportsClockSteps,
    SupportsLeaseTime,
    Watched,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from jobcache.protocol.backend import Feed


_BATCH = 500  # gets that are asked of the far tier at once


class NearTier(CacheBackend, Peek, Drop, Holdings, Protocol):
    """What can stand in front: a backend of this process, none of whose operations waits."""


class FarTier(CacheBackend, PurgeAll, Remember, Watched, Starts, Identifies, Protocol):
    """What can stand behind: a guarded backend that several processes share."""


class TieredBackend:
    """A near tier before a far one.

    Args:
        near: what is asked first, while the feed is live.
        far: the truth about cells.
        feed: tells what changes in the far tier.
        ticket: makes unique tickets of ASCII letters and digits, for the near tier only.
    """

    name = "tiered"

    def __init__(
        self,
        near: NearTier,
        far: FarTier,
        feed: Feed,
        *,
        ticket: Callable[[], str] | None = None,
    ) -> None:
        numbers = itertools.count()
        self._ticket: Callable[[], str] = ticket or (lambda: f"n{next(numbers)}")
        self._near = near
        self._far = far
        self._feed = feed
        self._gets: Together[str, Entry | None] = Together(self._get_together, _BATCH)
        feed.listen(self)

    @property
    def tiers(self) -> tuple[str, str]:
        """See `Tiers`."""
        return self._near.name, self._far.name

    # --- reading ---

    def peek(self, key: str) -> Entry | None:
        """See `Peek`."""
        return self._near.peek(key) if self._feed.live else None

    async def get(self, key: str) -> Entry | None:
        """See `CacheBackend`. All that are asked for in one turn of the loop are asked together.

        So a burst for one key takes one near lease. Two would be in each other's way, for whoever
        offers first removes the other's.
        """
        return await self._gets.ask(key)

    async def _get_together(self, keys: Sequence[str]) -> list[Entry | None]:
        found = await self.get_many(list(dict.fromkeys(keys)))
        return [found.get(key) for key in keys]

    async def get_many(self, keys: Sequence[str]) -> Mapping[str, Entry]:
        """See `CacheBackend`."""
        ticket = self._ticket()
        found: dict[str, Entry] = {}
        for key in keys:
            entry = await self._lease_near(key, ticket)
            if entry is not None:
                found[key] = entry
        lacking = [key for key in keys if key not in found]
        if lacking:
            brought: Mapping[str, Entry] = {}
            try:
                brought = await self._far.get_many(lacking)
            finally:
                for key in lacking:
                    await self._offer_near(key, ticket, brought.get(key))
            found.update(brought)
        return found

    async def _lease_near(self, key: str, ticket: str) -> Entry | None:
        """What the near tier holds; if it holds nothing, the right to fill it is now `ticket`'s."""
        if not self._feed.live:
            self._feed.start()
            return None  # and so nothing can be filled
        found = await self._near.lease(key, ticket)
        return found if isinstance(found, Entry) else None

    async def _offer_near(self, key: str, ticket: str, entry: Entry | None) -> None:
        """Offer what the far tier has brought, or withdraw the lease if it has brought nothing."""
        if entry is not None and entry.fresh_ms <= 0:
            entry = replace(entry, keep_ms=0)  # to be confirmed by the source first
        await self._near.offer(key, ticket, entry)

    async def lease(self, key: str, ticket: str) -> Entry | Standing:
        """See `CacheBackend`."""
        found = await self._far.lease(key, ticket)
        if isinstance(found, Entry):
            # It is newer than what the near tier has, or that is not served.
            self._near.drop((key,))
        return found

    def set_body_check(self, check: Callable[[str, bytes], object]) -> None:
        """See `SupportsBodyCheck`: the far tier's, from which the near one is filled."""
        if isinstance(self._far, SupportsBodyCheck):
            self._far.set_body_check(check)

    def set_lease_time(self, seconds: float) -> None:
        """See `SupportsLeaseTime`: the far tier's. A fill of the near tier is never slow."""
        if isinstance(self._far, SupportsLeaseTime):
            self._far.set_lease_time(seconds)

    def clock_set_back(self, latest_ms: int) -> None:
        """See `SupportsClockSteps`."""
        self._near.drop_all()
        if isinstance(self._far, SupportsClockSteps):
            self._far.clock_set_back(latest_ms)

    # --- changing ---

    async def fence(self, key: str, ticket: str) -> None:
        """See `CacheBackend`."""
        await self._far.fence(key, ticket)

    async def offer(self, key: str, ticket: str, entry: Entry | None) -> Offered:
        """See `CacheBackend`."""
        try:
            return await self._far.offer(key, ticket, entry)
        finally:
            self._near.drop((key,))

    def remember(self, key: str, version: int) -> None:
        """See `Remember`."""
        self._near.drop((key,))
        self._far.remember(key, version)

    async def purge(self, keys: Sequence[str]) -> int:
        """See `CacheBackend`. Counted are the far tier's."""
        try:
            return await self._far.purge(keys)
        finally:
            self._near.drop(keys)

    async def purge_all(self) -> int:
        """See `PurgeAll`. Counted are the far tier's."""
        try:
            return await self._far.purge_all()
        finally:
            self._near.drop_all()

    # --- what the feed tells ---

    def changed(self, keys: Sequence[str]) -> None:
        """See `Listener`."""
        self._near.drop(keys)

    def interrupted(self) -> None:
        """See `Listener`. Fills under way lose their leases, and so store nothing."""
        self._near.drop_all()

    def resumed(self) -> None:
        """See `Listener`. The near tier is empty since `interrupted`, for nothing filled it."""

    # --- the rest ---

    def feed(self) -> Feed:
        """See `Announces`."""
        return self._feed

    def condition(self) -> Condition:
        """See `Watched`: the far tier's, without which nothing is coherent."""
        return self._far.condition()

    def holdings(self) -> tuple[int, int]:
        """See `Holdings`: the near tier's."""
        return self._near.holdings()

    def identify(self, source_id: str) -> None:
        """See `Identifies`."""
        self._far.identify(source_id)

    async def start(self) -> None:
        """See `Starts`."""
        self._feed.start()
        await self._far.start()

    async def aclose(self) -> None:
        """Close both tiers, and the feed before them."""
        await self._feed.aclose()
        await self._gets.aclose()
        await self._near.aclose()
        await self._far.aclose()

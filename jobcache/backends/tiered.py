"""Two tiers: a local one in this process, in front of a remote one that all processes share.

The local tier keeps the contract of a backend like any other. Its source is the remote tier, and
its writers are all processes. The feed stands for them: each change that it reports empties the
local cell. So the protocol that keeps the readers of a database right keeps the readers of the
remote tier right, too:

    a fill is a load         it takes the local lease before it reads the remote tier, and its
                             result is stored only over that lease; a report in between removes it
    an answer is a publish   each answer of the remote tier is published to the local one before it
                             is returned, and so removes an entry that is older, or may become so

        R0 takes the local lease, reads v1; W commits v2; R1 finds the lease, reads v2, returns it
        R0 stores v1, because the report has not come yet; the next read goes back to v1

Writers fence the remote tier, and the feed reports that to all processes. But a version that is
published in this process may be acknowledged or returned here before the feed has reported it. So
the local cell is emptied after the publish, whatever came of it, and before anybody learns of it:

    W fences, commits v2, publishes it, acknowledges it; no report has come yet; R is given v1

Even while the feed is not live, and nothing is filled, the answers of the remote tier are published
to the local one: the feed may be live again before it has reported the change.

An entry of the local tier may be as old as the feed lags, and no older than the limit after which a
silent feed is not live any more. While it is not, the local tier is not read at all.

Rejected: to empty the cell before a publish, too, or for a fence. Until the publish has been made
nobody has been promised its version, and a fill in the meantime is dropped with the rest.

Rejected: to keep the entry that a write has published. Its own report comes back and empties the
cell again; and if another writer's fence were reported in between, the cell would hide the version
that this writer commits.
"""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from jobcache.backends._closing import end_all
from jobcache.protocol.backend import (
    CacheBackend,
    Entry,
    Health,
    LeaseResult,
    PublishResult,
    SupportsBodyCheck,
    SupportsClockSteps,
    SupportsDiscard,
    SupportsFutureGet,
    SupportsHealth,
    SupportsLeaseTime,
    SupportsNamespaceOwner,
    SupportsPeek,
    SupportsPurgeAll,
    SupportsSize,
    SupportsStart,
    SupportsVersionHint,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence

    from jobcache.protocol.backend import ChangeFeed


class LocalTier(CacheBackend, SupportsPeek, SupportsDiscard, SupportsSize, Protocol):
    """A backend of this process, none of whose operations waits."""


class RemoteTier(
    CacheBackend,
    SupportsVersionHint,
    SupportsHealth,
    SupportsStart,
    Protocol,
):
    """A guarded backend that several processes share."""


class TieredBackend:
    """A local tier before a remote one.

    An optional ability of the remote tier is this backend's, too, and only then.

    Args:
        local: is read first, while the feed is live.
        remote: decides what a cell holds.
        feed: reports changes of the remote tier.
        token: makes unique tokens of ASCII letters and digits, for the local tier only.
    """

    name = "tiered"

    purge_all: Callable[[], Coroutine[Any, Any, int]]
    set_body_check: Callable[[Callable[[str, bytes], object]], None]
    set_lease_time: Callable[[float], None]
    identify: Callable[[str], None]

    def __init__(
        self,
        local: LocalTier,
        remote: RemoteTier,
        feed: ChangeFeed,
        *,
        token: Callable[[], str] | None = None,
    ) -> None:
        self._token = map("n{}".format, itertools.count()).__next__ if token is None else token
        self._local = local
        self._remote = remote
        self._feed = feed
        self._get_remote: Callable[[Sequence[str]], Awaitable[Mapping[str, Entry]]] = (
            remote.get_many_future if isinstance(remote, SupportsFutureGet) else remote.get_many
        )
        self._reading: set[asyncio.Task[Mapping[str, Entry]]] = set()
        self._pass_on(remote)
        feed.listen(self)

    def _pass_on(self, remote: RemoteTier) -> None:
        """Have the optional abilities of the remote tier; the local one is filled from there."""
        if isinstance(remote, SupportsPurgeAll):
            self.purge_all = partial(self._purge_all, remote)
        if isinstance(remote, SupportsBodyCheck):
            self.set_body_check = remote.set_body_check
        if isinstance(remote, SupportsLeaseTime):
            self.set_lease_time = remote.set_lease_time
        if isinstance(remote, SupportsNamespaceOwner):
            self.identify = remote.identify

    @property
    def tiers(self) -> tuple[str, str]:
        """The names of both tiers, local and remote."""
        return self._local.name, self._remote.name

    # --- reading ---

    def peek(self, key: str) -> Entry | None:
        """Return the entry of the local tier, without waiting; None while the feed is not live."""
        return self._local.peek(key) if self._feed.live else None

    async def get(self, key: str) -> Entry | None:
        """Return the entry at `key`, or None."""
        return (await self.get_many((key,))).get(key)

    def get_many_future(self, keys: Sequence[str]) -> asyncio.Future[Mapping[str, Entry]]:
        """Return a future of the entries at `keys`, by one task for all of them."""
        reading = asyncio.create_task(self.get_many(keys))
        self._reading.add(reading)
        reading.add_done_callback(self._reading.discard)
        return reading

    async def get_many(self, keys: Sequence[str]) -> Mapping[str, Entry]:
        """Return the entries at `keys`, from the local tier or else from the remote one."""
        token = self._token()
        found: dict[str, Entry] = {}
        lacking = []
        fills = self._feed.live
        if not fills:
            self._feed.start()
        for key in keys:
            # Where the local tier holds nothing, `token` has the right to fill it from now on.
            held = await self._local.lease(key, token) if fills else None
            if isinstance(held, Entry):
                found[key] = held
            else:
                lacking.append(key)
        if lacking:
            fetched: Mapping[str, Entry] = {}
            try:
                fetched = await self._get_remote(lacking)
            finally:
                for key in lacking:
                    await self._publish_local(key, token, fetched.get(key))
            found.update(fetched)
        return found

    async def _publish_local(self, key: str, token: str, entry: Entry | None) -> None:
        """Publish the entry that the remote tier returned, or withdraw the lease without one."""
        if entry is not None and entry.fresh_ms <= 0:
            entry = replace(entry, keep_ms=0)  # to be confirmed by the source first
        await self._local.publish(key, token, entry)

    async def lease(self, key: str, token: str) -> Entry | LeaseResult:
        """Take a lease of the remote tier; an entry that is found there empties the local cell."""
        found = await self._remote.lease(key, token)
        if isinstance(found, Entry):
            # It is newer than what the local tier has, or that is not served.
            self._local.drop((key,))
        return found

    def clock_set_back(self, latest_ms: int) -> None:
        """Empty the local tier, and tell the remote one."""
        self._local.drop_all()
        if isinstance(self._remote, SupportsClockSteps):
            self._remote.clock_set_back(latest_ms)

    # --- changing ---

    async def fence(self, key: str, token: str) -> None:
        """Fence the remote tier."""
        await self._remote.fence(key, token)

    async def publish(self, key: str, token: str, entry: Entry | None) -> PublishResult:
        """Publish to the remote tier, then empty the local cell, whatever came of it."""
        try:
            return await self._remote.publish(key, token, entry)
        finally:
            self._local.drop((key,))

    def remember(self, key: str, version: int) -> None:
        """Empty the local cell, and have the remote tier note the version."""
        self._local.drop((key,))
        self._remote.remember(key, version)

    async def purge(self, keys: Sequence[str]) -> int:
        """Purge both tiers; return how many cells of the remote one held something."""
        try:
            return await self._remote.purge(keys)
        finally:
            self._local.drop(keys)

    async def _purge_all(self, remote: SupportsPurgeAll) -> int:
        """Empty both tiers; return how many cells of the remote one were dropped."""
        try:
            return await remote.purge_all()
        finally:
            self._local.drop_all()

    # --- what the feed reports ---

    def changed(self, keys: Sequence[str]) -> None:
        """Empty the local cells of keys that have changed."""
        self._local.drop(keys)

    def interrupted(self) -> None:
        """Empty the local tier. Fills under way lose their leases, and so store nothing."""
        self._local.drop_all()

    def resumed(self) -> None:
        """Resume; the local tier is empty since `interrupted`, for nothing filled it."""

    # --- the rest ---

    def feed(self) -> ChangeFeed:
        """Return the feed of the remote tier."""
        return self._feed

    def condition(self) -> Health:
        """Return the health of the remote tier, without which nothing is coherent."""
        return self._remote.condition()

    def size(self) -> tuple[int, int]:
        """Return the local tier's size."""
        return self._local.size()

    async def start(self) -> None:
        """Start the feed and the remote tier."""
        self._feed.start()
        await self._remote.start()

    async def aclose(self) -> None:
        """Close both tiers, and the feed before them."""
        await self._feed.aclose()
        await end_all(list(self._reading))
        await self._local.aclose()
        await self._remote.aclose()

"""Two tiers: a local one in this process, in front of a remote one that all processes share.

To the local tier, the remote tier is the source, and all processes are its writers. The local tier
learns of their writes from the change feed: each report empties the local cell. So the protocol
that is used between a database and a cache is used between the two tiers, too:

    a fill is a load          it takes the local lease before it reads the remote tier; its result
                              is stored only if that lease is still there; a report removes it
    a result is a publish     each result of the remote tier is published to the local tier before
                              it is returned; this removes an older entry, and the lease of a fill
                              that may store one

        R0 takes the local lease, reads v1; W commits v2; R1 finds the lease, reads v2, returns it
        without the publish of R1: R0 stores v1, as no report has come; the next read returns v1

Writers fence the remote tier, and the feed reports each fence to all processes. But a version that
this process publishes may be acknowledged or returned here before its report comes. So the local
cell is emptied after each publish, even a failed one, and before the caller continues:

    W fences, commits v2, publishes it, acknowledges it; no report has come yet; R is given v1

While the feed is not live, the local tier is neither read nor filled. Results of the remote tier
are published to the local tier even then: the feed may be live again before it reports the change.

An entry that is in use is read again when it changes, before it is polled (`_read_ahead`). To the
protocol that is one more reader.

A local entry is out of date for as long as the feed lags, at most for the limit after which a
silent feed is no longer live.

Rejected: emptying the local cell before a publish, or for a fence. Before the publish nobody has
been promised the new version, and a fill that happens meanwhile is dropped after the publish.

Rejected: keeping the entry that a write has published. The report of that write would empty the
cell anyway. And if another writer's fence were reported in between, the cell would hide the version
that this writer commits.
"""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from jobcache.backends._closing import end_all
from jobcache.backends._read_ahead import ReadAhead
from jobcache.protocol.backend import CacheBackend, LeaseResult, PublishResult
from jobcache.protocol.capabilities import (
    Health,
    SupportsBodyCheck,
    SupportsClockSteps,
    SupportsDiscard,
    SupportsEvictions,
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
from jobcache.protocol.entry import Entry

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence

    from jobcache.protocol.change_feed import ChangeFeed


class LocalTier(CacheBackend, SupportsPeek, SupportsDiscard, SupportsSize, Protocol):
    """A backend in this process. Its operations never wait."""

    def was_used(self, key: str) -> bool:
        """Return whether there is an entry that was read after it was stored."""


class RemoteTier(
    CacheBackend,
    SupportsVersionHint,
    SupportsHealth,
    SupportsStart,
    Protocol,
):
    """A guarded backend that several processes share."""


class TieredBackend:
    """A local tier in front of a remote one.

    It has an optional ability only if the remote tier has it; `evictions`, if the local tier does.

    Args:
        local: the local tier, which is read first while the feed is live.
        remote: the remote tier, which decides what each cell holds.
        feed: reports changes of the remote tier.
        token: makes unique tokens of ASCII letters and digits, for the local tier only.
        sleep: waits for the given seconds.
    """

    name = "tiered"

    purge_all: Callable[[], Coroutine[Any, Any, int]]
    set_body_check: Callable[[Callable[[str, bytes], object]], None]
    set_lease_time: Callable[[float], None]
    identify: Callable[[str], None]
    evictions: Callable[[], Mapping[str, int]]

    def __init__(
        self,
        local: LocalTier,
        remote: RemoteTier,
        feed: ChangeFeed,
        *,
        token: Callable[[], str] | None = None,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._token = map("n{}".format, itertools.count()).__next__ if token is None else token
        self._local = local
        self._remote = remote
        self._feed = feed
        self._get_remote: Callable[[Sequence[str]], Awaitable[Mapping[str, Entry]]] = (
            remote.get_many_future if isinstance(remote, SupportsFutureGet) else remote.get_many
        )
        self._reading: set[asyncio.Task[Mapping[str, Entry]]] = set()
        self._ahead = ReadAhead(self._read_ahead, sleep)
        self._reads_ahead = 0
        self._pass_on(remote)
        if isinstance(local, SupportsEvictions):
            self.evictions = local.evictions
        feed.listen(self)

    def _pass_on(self, remote: RemoteTier) -> None:
        """Take over the optional abilities of the remote tier."""
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
        """Return a future of the entries at `keys`; one task reads all of them."""
        reading = asyncio.create_task(self.get_many(keys))
        self._reading.add(reading)
        reading.add_done_callback(self._reading.discard)
        return reading

    async def get_many(self, keys: Sequence[str]) -> Mapping[str, Entry]:
        """Return the entries at `keys`, each from the local tier if it is there."""
        token = self._token()
        found: dict[str, Entry] = {}
        lacking = []
        fills = self._feed.live
        if not fills:
            self._feed.start()
        for key in keys:
            # If the local cell is empty, `token` takes its lease, and so the right to fill it.
            held = await self._local.lease(key, token) if fills else None
            if isinstance(held, Entry):
                found[key] = held
            else:
                lacking.append(key)
        if lacking:
            found.update(await self._fill(lacking, token))
        return found

    async def _read_ahead(self, keys: Sequence[str]) -> None:
        """Read these keys into local cells, but not where an entry or another's lease is."""
        if not self._feed.live:
            return
        token = self._token()
        lease = self._local.lease
        empty = [key for key in keys if await lease(key, token) is LeaseResult.ACQUIRED]
        if empty:
            self._reads_ahead += len(empty)
            await self._fill(empty, token)

    async def _fill(self, keys: Sequence[str], token: str) -> Mapping[str, Entry]:
        """Return the entries of the remote tier; store those whose local lease `token` has."""
        fetched: Mapping[str, Entry] = {}
        try:
            fetched = await self._get_remote(keys)
        finally:
            for key in keys:
                await self._publish_local(key, token, fetched.get(key))
        return fetched

    async def _publish_local(self, key: str, token: str, entry: Entry | None) -> None:
        """Publish an entry of the remote tier to the local one; without one, withdraw the lease."""
        if entry is not None:
            self._ahead.filled(key)
        if entry is not None and entry.fresh_ms <= 0:
            # Not to be kept: an entry past its freshness must be confirmed by the source.
            entry = replace(entry, keep_ms=0)
        await self._local.publish(key, token, entry)

    async def lease(self, key: str, token: str) -> Entry | LeaseResult:
        """Take a lease of the remote tier; if it holds an entry, empty the local cell."""
        found = await self._remote.lease(key, token)
        if isinstance(found, Entry):
            # The caller saw no usable local entry, so the remote entry is newer.
            self._local.drop((key,))
        return found

    def clock_set_back(self, latest_ms: int) -> None:
        """Empty the local tier, and notify the remote one."""
        self._local.drop_all()
        if isinstance(self._remote, SupportsClockSteps):
            self._remote.clock_set_back(latest_ms)

    # --- changing ---

    async def fence(self, key: str, token: str) -> None:
        """Fence the remote tier."""
        await self._remote.fence(key, token)

    async def publish(self, key: str, token: str, entry: Entry | None) -> PublishResult:
        """Publish to the remote tier; then empty the local cell, even if that failed."""
        try:
            return await self._remote.publish(key, token, entry)
        finally:
            self._local.drop((key,))

    def remember(self, key: str, version: int) -> None:
        """Empty the local cell, and note the version in the remote tier."""
        self._local.drop((key,))
        self._remote.remember(key, version)

    async def purge(self, keys: Sequence[str]) -> int:
        """Purge both tiers; return the number of cells of the remote tier that held something."""
        try:
            return await self._remote.purge(keys)
        finally:
            self._local.drop(keys)

    async def _purge_all(self, remote: SupportsPurgeAll) -> int:
        """Empty both tiers; return the number of cells that the remote tier has dropped."""
        try:
            return await remote.purge_all()
        finally:
            self._local.drop_all()

    # --- reports of the feed ---

    def changed(self, keys: Sequence[str]) -> None:
        """Empty the local cells of keys that have changed."""
        self._ahead.changed(keys, self._local.was_used)
        self._local.drop(keys)

    def interrupted(self) -> None:
        """Empty the local tier. Fills in progress lose their leases, and store nothing."""
        self._ahead.clear()
        self._local.drop_all()

    def resumed(self) -> None:
        """Do nothing: since `interrupted` the local tier is empty, and was not filled."""

    # --- the rest ---

    def feed(self) -> ChangeFeed:
        """Return the feed of the remote tier."""
        return self._feed

    def condition(self) -> Health:
        """Return the health of the remote tier."""
        return self._remote.condition()

    def size(self) -> tuple[int, int]:
        """Return the size of the local tier."""
        return self._local.size()

    def reads_ahead(self) -> int:
        """Return how many keys the remote tier was asked for ahead of a poll."""
        return self._reads_ahead

    async def start(self) -> None:
        """Start the feed and the remote tier."""
        self._feed.start()
        await self._remote.start()

    async def aclose(self) -> None:
        """Close the feed, then both tiers."""
        await self._feed.aclose()
        await self._ahead.aclose()
        await end_all(list(self._reading))
        await self._local.aclose()
        await self._remote.aclose()

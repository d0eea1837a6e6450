"""A local tier and a change feed on the database itself, without a store that processes share.

To each process, all transactions that change a document are writers, its own as well. They notify
of the keys that they change, and PostgreSQL passes the notifications on after the commit, in the
order of the commits. Each report empties the local cell. A reader takes the lease before it loads,
and stores only over its own lease. So what it stores was loaded after every report so far:

    R leases, loads v1; W commits v2; the report removes the lease; R's v1 is not stored
    R leases, loads v1; W commits v2; R stores v1; the report removes v1

Between a commit and its report, other processes may serve the version before. The rules below keep
this lag from doing more harm.

A result is published to the local tier before it is returned, stored or not. This removes an older
entry, and the leases of others, even while the feed is not live:

    R0 leases, loads v1; W commits v2; R1 finds the lease, loads v2, returns it
    without the publish of R1: R0 stores v1, as no report has come; the next read returns v1

A writer continues after its commit when its own report has come: that has emptied the cell. If the
report does not come soon, or the feed is not live, the writer empties the cell itself, whatever has
become of the commit. Any other report of the key is not enough, so a notification has the token of
its writer:

    W0's report comes; R leases, loads v1 of W0, stores it; W1 commits v2, takes the report for its
    own, and acknowledges v2; the next read returns v1

    without waiting: W acknowledges v2; R leases, loads v2; W's report removes the lease, and v2
    is loaded once more

The writer's process keeps the entry of the write. Its own report takes the lease, after it has
emptied the cell, and the entry is stored over this lease. Whatever is committed later is reported
later, and removes the lease:

    W0's report comes; W1 commits v3, and its report comes; W0 stores v2: its lease is gone

A notification that is sent after the commit has no place in the order of the commits. So the entry
of such a write is not kept:

    W0 commits v2; W1 commits v3, and its report comes; W0 notifies; its report comes; W0 stores v2

While the feed is not live, entries are served only if the source is away, as those past their
freshness are. After an interruption, it is live again only after a proof that everything later will
be reported. Then all cells are emptied, and the loads in progress lose their leases.

    R leases, loads v1; the feed breaks; W commits v2, no report comes; the feed is live; R
    publishes v1: its lease is gone

    the feed breaks; R finds v1, past its freshness, and loads v1; W commits v2, no report comes;
    the feed is live; R publishes v1: it would be prolonged, if the cell were not empty

If a write's statement does not notify, the backend does so after the commit, before the write
returns. If the process dies in between, other processes serve the version before until it expires.
If a statement should have notified and has not, the feed does so after a heartbeat.

Documents without a version are invalidated in the same way: a purge notifies of the keys, and
empties the local cells.

Rejected: a fence in the local cell. It prevents nothing that the report does not, and while it is
there, every read of this process is a load.
"""

from __future__ import annotations

import secrets
from functools import partial
from typing import TYPE_CHECKING, Protocol

from jobcache.backends.postgres.payloads import notification_of
from jobcache.protocol.backend import CacheBackend, LeaseResult, PublishResult
from jobcache.protocol.capabilities import (
    Health,
    Notification,
    SupportsDiscard,
    SupportsEvictions,
    SupportsLeaseTime,
    SupportsPeek,
    SupportsSize,
)
from jobcache.protocol.change_feed import ChangeFeed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from jobcache.protocol.entry import Entry

_MOST_WRITES = 10_000
"""Writes that have begun and not ended. With more, the oldest are forgotten: some are never ended,
such as one whose outer transaction Django has rolled back."""


class LocalCells(
    CacheBackend,
    SupportsPeek,
    SupportsDiscard,
    SupportsSize,
    SupportsEvictions,
    SupportsLeaseTime,
    Protocol,
):
    """A backend in this process. Its operations never wait."""

    def lease_now(self, key: str, token: str) -> Entry | LeaseResult:
        """Do as `lease`, in this turn of the event loop."""


class NotificationFeed(ChangeFeed, Protocol):
    """A feed of notifications, which this process can send, too. `PostgresFeed` documents it."""

    channel: str

    async def connected(self) -> None:
        """Start, and wait a moment for the connection."""

    async def notify(self, keys: Sequence[str], token: str = "") -> None:
        """Notify all processes of changed keys."""

    def expect(self, key: str, token: str, on_report: Callable[[], object] | None = None) -> None:
        """Note that this process is about to commit a change that notifies with this token."""

    async def arrived(self, key: str, token: str) -> bool:
        """Return whether the notification has been reported; wait a moment for it."""

    def make_good(self, key: str, token: str) -> None:
        """Notify of a key, unless the report of its transaction comes before the next heartbeat."""

    def forget(self, key: str, token: str) -> None:
        """Wait no longer for a notification."""


class PostgresBackend:
    """Cells in this process, which the notifications of transactions empty.

    Args:
        local: the local tier, which is used while the feed is live.
        feed: reports committed changes.
        token: makes unique tokens of ASCII letters and digits.
    """

    name = "postgres"

    def __init__(
        self,
        local: LocalCells,
        feed: NotificationFeed,
        *,
        token: Callable[[], str] = lambda: secrets.token_hex(8),
    ) -> None:
        self._local = local
        self._feed = feed
        self._token = token
        # The writes between fence and publish: True if the transaction itself notifies.
        self._writing: dict[tuple[str, str], bool] = {}
        self.size = local.size
        self.evictions = local.evictions
        self.set_lease_time = local.set_lease_time
        feed.listen(self)

    # --- reading ---

    def peek(self, key: str) -> Entry | None:
        """Return the entry at `key`, without waiting; None while the feed is not live."""
        return self._local.peek(key) if self._feed.live else None

    async def get(self, key: str) -> Entry | None:
        """Return the entry at `key`, or None."""
        return (await self.get_many((key,))).get(key)

    async def get_many(self, keys: Sequence[str]) -> Mapping[str, Entry]:
        """Return the entries at `keys`; while the feed is not live, past their freshness."""
        found = await self._local.get_many(keys)
        if self._feed.live:
            return found
        return {key: entry.past_its_freshness() for key, entry in found.items()}

    async def lease(self, key: str, token: str) -> Entry | LeaseResult:
        """Take the lease of an empty cell, or none while the feed is not live."""
        # What would be stored then is not served. So readers need not wait for each other's loads.
        if self._feed.live:
            return await self._local.lease(key, token)
        self._feed.start()
        entry = await self._local.get(key)
        return LeaseResult.ACQUIRED if entry is None else entry.past_its_freshness()

    # --- changing ---

    def notification(self, keys: Sequence[str], token: str) -> Notification:
        """Return how a transaction announces the keys that it changes."""
        return notification_of(self._feed.channel, token, keys)

    def announce(self, key: str, token: str) -> None:
        """Note that the writer's transaction itself notifies of `key`."""
        self._begin(key, token, announced=True)

    async def fence(self, key: str, token: str) -> None:
        """Note that the writer's transaction does not notify, so that `publish` does."""
        self._begin(key, token, announced=False)

    def _begin(self, key: str, token: str, *, announced: bool) -> None:
        self._feed.start()
        # Only what is part of the commit is reported in the order of the commits.
        on_report = partial(self._reported, key, token) if announced else None
        self._feed.expect(key, token, on_report)
        self._writing[key, token] = announced
        if len(self._writing) > _MOST_WRITES:
            oldest = next(iter(self._writing))
            del self._writing[oldest]
            self._feed.forget(*oldest)

    def _reported(self, key: str, token: str) -> None:
        """Take the lease for the entry of a write: its report has just emptied the cell."""
        if self._feed.live:
            self._local.lease_now(key, token)

    async def publish(self, key: str, token: str, entry: Entry | None) -> PublishResult:
        """Publish the result of a load or of a write; without an entry, withdraw."""
        announced = self._writing.pop((key, token), None)
        if announced is None:
            return await self._local.publish(key, token, entry)
        if entry is None:
            self._feed.forget(key, token)
            return await self._local.publish(key, token, None)
        if await self._committed(key, token, announced=announced):
            return await self._local.publish(key, token, entry)
        return PublishResult.KEPT  # whatever the cell holds now is not older

    async def abandon(self, key: str, token: str) -> None:
        """End a write after a commit that failed."""
        announced = self._writing.pop((key, token), None)
        try:
            if announced is False:
                await self._feed.notify((key,))
        finally:
            self._feed.forget(key, token)
            self._local.drop((key,))

    async def _committed(self, key: str, token: str, *, announced: bool) -> bool:
        """Return once nothing is left in this process that is older than a commit.

        Returns:
            Whether the report of the transaction has come, and has taken the lease.
        """
        arrived = False
        try:
            if not announced:
                await self._feed.notify((key,), token)
            arrived = await self._feed.arrived(key, token)
            if announced and not arrived and self._feed.live:
                self._feed.make_good(key, token)
        finally:
            self._feed.forget(key, token)
            if not arrived:
                self._local.drop((key,))
        return announced and arrived

    async def purge(self, keys: Sequence[str]) -> int:
        """Empty cells, and have all other processes do so; return how many held something here."""
        if not keys:
            return 0
        unique, token = tuple(dict.fromkeys(keys)), self._token()
        dropped = self._local.drop(unique)
        self._feed.expect(unique[-1], token)
        try:
            await self._feed.notify(unique, token)
            # Else the report would have what is loaded from now on loaded once more.
            await self._feed.arrived(unique[-1], token)
        finally:
            self._feed.forget(unique[-1], token)
        return dropped

    async def purge_all(self) -> int:
        """Empty every cell in all processes; return how many held something here."""
        dropped = self._local.drop_all()
        await self._feed.notify(("",))
        return dropped

    def drop(self, keys: Sequence[str]) -> int:
        """Empty cells of this process only, without waiting."""
        return self._local.drop(keys)

    def drop_all(self) -> int:
        """Empty every cell of this process only, without waiting."""
        return self._local.drop_all()

    # --- reports of the feed ---

    def changed(self, keys: Sequence[str]) -> None:
        """Empty the cells of keys that have changed."""
        self._local.drop(keys)

    def interrupted(self) -> None:
        """Keep the entries for the case that the source is away, too; nothing counts as fresh."""

    def resumed(self) -> None:
        """Empty the local tier: nobody knows which of its entries were outdated meanwhile."""
        self._local.drop_all()

    # --- the rest ---

    def feed(self) -> ChangeFeed:
        """Return the feed of this backend."""
        return self._feed

    def condition(self) -> Health:
        """Return whether entries are served: while the feed is live."""
        feed = self._feed.condition()
        live = self._feed.live
        return Health(
            available=live,
            state="closed" if live else "open",
            age=feed.age,
            reason="" if live else feed.reason or "the feed of changes is not connected yet",
            pending=0,
            openings=feed.interruptions,
        )

    async def start(self) -> None:
        """Start the feed.

        Raises:
            SettingsError: it cannot work with this database.
        """
        await self._feed.connected()

    async def aclose(self) -> None:
        """Close the feed, then the local tier."""
        await self._feed.aclose()
        await self._local.aclose()

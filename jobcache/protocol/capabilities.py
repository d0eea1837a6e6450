"""Optional abilities of a backend: one Protocol each.

A backend has an ability if it has the methods. A wrapper around a backend has an ability only if
the wrapped backend has it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Mapping, Sequence

    from jobcache.protocol.backend import PublishResult
    from jobcache.protocol.change_feed import ChangeFeed
    from jobcache.protocol.entry import Entry


@runtime_checkable
class SupportsPeek(Protocol):
    """A backend whose entries can be read without waiting."""

    def peek(self, key: str) -> Entry | None:
        """Return the entry at `key`, or None, in this turn of the event loop."""


@runtime_checkable
class SupportsFutureGet(Protocol):
    """A backend that reads without a task of the caller."""

    def get_many_future(self, keys: Sequence[str]) -> asyncio.Future[Mapping[str, Entry]]:
        """Return a future of the result of `get_many`, which can be awaited or given a callback.

        Cancelling the future does not affect other callers.
        """


@runtime_checkable
class SupportsFutureWrite(Protocol):
    """A backend that fences and publishes without a task of the caller.

    Both operations continue if their future is cancelled. They end when the backend is closed.
    """

    def fence_future(self, key: str, token: str) -> asyncio.Future[None]:
        """Return a future of the result of `fence`."""

    def publish_future(
        self, key: str, token: str, entry: Entry | None
    ) -> asyncio.Future[PublishResult]:
        """Return a future of the result of `publish`."""


@runtime_checkable
class SupportsDiscard(Protocol):
    """A backend whose cells can be emptied without waiting."""

    def drop(self, keys: Sequence[str]) -> int:
        """Purge these cells in this turn of the event loop."""

    def drop_all(self) -> int:
        """Purge every cell, fences too, in this turn of the event loop."""


@runtime_checkable
class SupportsPurgeAll(Protocol):
    """A backend that can find all keys of its namespace."""

    async def purge_all(self) -> int:
        """Empty every cell of the namespace, fences too, as an eviction would.

        This takes time for each key, so no caller sets a deadline: the operation itself raises
        when the store does not answer one of its steps. Entries that are stored meanwhile may stay.

        Returns:
            How many cells were emptied.

        Raises:
            CacheUnavailable: the store did not answer. Some cells may have been dropped.
        """


@runtime_checkable
class SupportsNamespaceOwner(Protocol):
    """A backend on a store where a service with another source may use the same keys."""

    def identify(self, source_id: str) -> None:
        """From now on refuse a store that belongs to another source. Called before `start`.

        Args:
            source_id: the identity of the source, such as a random id kept in the database. All
                processes that share the source give the same.
        """


@runtime_checkable
class SupportsPing(Protocol):
    """A backend whose store may be unreachable at times."""

    async def ping(self) -> None:
        """Raise `CacheUnavailable` unless the store does everything that the backend needs."""


@runtime_checkable
class SupportsSize(Protocol):
    """A backend that keeps cells in this process."""

    def size(self) -> tuple[int, int]:
        """Return how many cells there are and about how many bytes they take."""


@runtime_checkable
class SupportsEvictions(Protocol):
    """A backend that counts the cells that it drops from this process."""

    def evictions(self) -> Mapping[str, int]:
        """Return how many cells were dropped so far, by the reason.

        - `capacity`: to make room;
        - `expired`: past their deadline, when they were looked up;
        - `invalidated`: by a purge or a report of a change;
        - `cleared`: because everything was.
        """


@runtime_checkable
class SupportsReadAhead(Protocol):
    """A backend that reads entries from its store before it is asked for them."""

    def reads_ahead(self) -> int:
        """Return how many keys it has read so."""


@runtime_checkable
class SupportsVersionHint(Protocol):
    """A backend that remembers versions for its store while the store does not answer."""

    def remember(self, key: str, version: int) -> None:
        """Note, without waiting, that the source has `version` of `key`.

        From now on this process reads nothing older. The backend publishes the version once the
        store answers again.
        """


@runtime_checkable
class SupportsLeaseTime(Protocol):
    """A backend with a configurable lease time.

    If a lease is lost before its load has ended, the result is not stored. So a lease lasts as long
    as a load may take. That costs little if its reader dies: the next reader finds the lease, waits
    for a moment, loads, and its publish removes the lease. The reader after that stores again.

    Rejected: short leases, which their readers renew. Each slow load would send an operation every
    few seconds, and a renewal that arrives after the lease was lost must not take it anew:

        R leases, loads v1; W fences, commits v2, publishes it; v2 is evicted
        R's renewal leases the empty cell; R publishes v1, and it is stored
    """

    def set_lease_time(self, seconds: float) -> None:
        """Make new leases last for `seconds` at least."""


@runtime_checkable
class SupportsBodyCheck(Protocol):
    """A backend that reads cells which other processes may have written."""

    def set_body_check(self, check: Callable[[str, bytes], object]) -> None:
        """Call `check` with key and decoded body of each new entry.

        If the body cannot be decoded, or `check` raises, the cell is an `UnreadableCell`.
        """


@runtime_checkable
class SupportsClockSteps(Protocol):
    """A backend that has to react when the wall clock is set back."""

    def clock_set_back(self, latest_ms: int) -> None:
        """Require that entries which were stored before now are confirmed by the source.

        They look younger than they are, so each is confirmed before it is served.

        Args:
            latest_ms: the latest time that the clock has shown.
        """


@runtime_checkable
class SupportsStart(Protocol):
    """A backend that needs a start before its first use."""

    async def start(self) -> None:
        """Start. It is no error if the store does not answer.

        Raises:
            NamespaceConflict: the store belongs to another source; see `SupportsNamespaceOwner`.
        """


@runtime_checkable
class SupportsChangeFeed(Protocol):
    """A backend whose store reports which cells change."""

    def feed(self) -> ChangeFeed | None:
        """Return the one feed of this backend, or None. It may not have been started yet."""


class Notification(NamedTuple):
    """How a transaction of PostgreSQL tells all processes which keys it changes.

    Its statement calls `pg_notify(channel, payload)`, such as in its RETURNING. For a key that only
    the statement knows, such as that of an inserted row, it is `pg_notify(channel, prefix || key)`.

    If the table has a trigger that notifies, too, the statement keeps it from repeating the keys by
    `pg_notify(channel, set_config(setting, payload, true))`.

    Attributes:
        channel: the channel of the namespace.
        payload: names the keys.
        prefix: the beginning of the payload of one key.
        setting: the name of the transaction's setting that the trigger reads.
    """

    channel: str
    payload: str
    prefix: str
    setting: str


@runtime_checkable
class SupportsNotifications(Protocol):
    """A backend that learns of a change from the transaction that makes it, once it is committed.

    So its writers set no fences. The reports of its feed come after the commits.
    """

    def notification(self, keys: Sequence[str], token: str) -> Notification:
        """Return how the transaction of the writer with this token announces these keys."""

    def announce(self, key: str, token: str) -> None:
        """Note, before the commit, that the writer's transaction itself notifies of `key`.

        The writer then publishes, withdraws, or calls `abandon`. It does not fence the key.
        """

    async def abandon(self, key: str, token: str) -> None:
        """End a write after a commit that failed: nobody knows whether it took effect.

        Raises:
            CacheUnavailable: other processes could not be notified yet.
        """


@runtime_checkable
class SupportsTiers(Protocol):
    """A backend of two tiers: a local one that `peek` reads, and the remote one behind it."""

    @property
    def tiers(self) -> tuple[str, str]:
        """Their names: local, remote."""


@runtime_checkable
class SupportsHealth(Protocol):
    """A backend behind a circuit breaker."""

    def condition(self) -> Health:
        """Return the present health."""


@dataclass(frozen=True, slots=True)
class Health:
    """The health of a backend's store.

    Attributes:
        available: False while the cache is skipped.
        state: "closed" (in use) or "open" (skipped).
        age: seconds in that state.
        reason: why the store is not in use, for people; empty while it is.
        pending: the number of keys with operations to replay; these keys are not read meanwhile.
            None: all keys.
        openings: how often the store came to be skipped.
    """

    available: bool
    state: Literal["closed", "open"]
    age: float
    reason: str
    pending: int | None
    openings: int = 0

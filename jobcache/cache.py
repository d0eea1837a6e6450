"""`JobCache`: what is done with cells. Read-through, write-through, invalidation; no storage.

A read          get -> an entry: serve it
                    -> nothing: lease, load, publish
                    -> a fence, or somebody's lease: wait briefly for the entry, then load, publish
                    -> the cache is away: load
A write         fence -> the caller's transaction commits -> publish -> acknowledge

Why each step is there, and which schedule goes stale without it, is in `docs/coherence.md`.

Rejected: to delete the key after the commit and let readers refill it. A reader that loaded before
the commit stores the old row after the delete, and a writer that dies between commit and delete
leaves the old entry behind.
"""

from __future__ import annotations

import asyncio
import secrets
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from jobcache._engine.clock import WallClock
from jobcache._engine.fetching import Fetcher
from jobcache._engine.loading import Loads
from jobcache._engine.owner_loop import OwnerLoop
from jobcache._engine.publishing import Publisher
from jobcache._engine.reading import Reads
from jobcache._engine.shadow_reads import Shadow
from jobcache._engine.watchers import PollIntervals, Readers, Watchers
from jobcache._engine.writing import WriteCoordinator
from jobcache.errors import CacheError
from jobcache.lifetimes import Lifetimes
from jobcache.observability.statistics import Statistics
from jobcache.protocol.backend import (
    CacheBackend,
    FeedStatus,
    Health,
    SupportsBodyCheck,
    SupportsChangeFeed,
    SupportsHealth,
    SupportsLeaseTime,
    SupportsNamespaceOwner,
    SupportsPurgeAll,
    SupportsSize,
    SupportsStart,
    check_key,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable
    from contextlib import AbstractAsyncContextManager

    from jobcache._engine.watchers import Later
    from jobcache._engine.writing import Write
    from jobcache.models import Load, LoadMany, ReadResult, ReadResults

T = TypeVar("T")

_LEASE_MARGIN = 5.0
"""Seconds that a lease outlives the longest load, for the steps before and after it."""


def _any_body(key: str, body: bytes) -> None:
    """Accept any body that could be read."""


class JobCache:
    """Serves documents from a backend and keeps it coherent with their source.

    One instance belongs to one event loop, the one that uses it first. Whatever fails in the cache
    costs a load, never an answer.

    Args:
        backend: where entries live.
        lifetimes: how long, by status.
        statistics: counted into; a new one if None.
        load_timeout: seconds that a load may take. Then it is cancelled, and fails with
            `LoadTimeout`, a `SourceUnavailable`. Leases last a little longer, so whatever is loaded
            in time can be stored. None: no limit, and what a slow load brings may not be stored.
        check_body: called with the key and the body, without its encoding, of each entry that comes
            from a store outside this process, when it is first seen there and up to 1 MiB. If it
            raises an exception, the entry is removed and loaded again.
        shadow_rate: the part of the hits of `read` that is compared with the source afterwards, at
            the cost of a load each; see `shadow`.
        clock_ms: wall-clock time in milliseconds since the epoch; None: the system's.
        token: makes unique tokens of ASCII letters and digits.
        sleep: waits for the given seconds.
        poll_intervals: how often keys are read that somebody waits for.
        later: calls a function after so many seconds; None: by the running loop's clock.

    Attributes:
        reads: the steps of a read, for callers that answer a hit without a task.
        writes: the steps of a write, for callers that take them one by one, as `sync` does.
    """

    def __init__(
        self,
        backend: CacheBackend,
        *,
        lifetimes: Lifetimes | None = None,
        statistics: Statistics | None = None,
        load_timeout: float | None = 30.0,
        check_body: Callable[[str, bytes], object] | None = None,
        shadow_rate: float = 0.0,
        clock_ms: Callable[[], int] | None = None,
        token: Callable[[], str] = lambda: secrets.token_hex(8),
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        poll_intervals: PollIntervals | None = None,
        later: Later | None = None,
    ) -> None:
        self.backend = backend
        self.lifetimes = Lifetimes() if lifetimes is None else lifetimes
        self.statistics = Statistics() if statistics is None else statistics
        self._owner = OwnerLoop()
        self._clock = WallClock(clock_ms)
        self._loads = Loads(load_timeout)
        if load_timeout is not None and isinstance(backend, SupportsLeaseTime):
            backend.set_lease_time(load_timeout + _LEASE_MARGIN)
        if isinstance(backend, SupportsBodyCheck):
            backend.set_body_check(_any_body if check_body is None else check_body)
        self._shadow = Shadow(
            backend,
            self.statistics,
            shadow_rate,
            self._clock.is_fresh,
            load=partial(self._loads.run, ()),
            sleep=sleep,
        )
        self._publisher = Publisher(backend, self.statistics, token)
        self.reads = Reads(
            backend,
            statistics=self.statistics,
            clock=self._clock,
            shadow=self._shadow,
            loads=self._loads,
            fetcher=Fetcher(
                backend,
                statistics=self.statistics,
                clock=self._clock,
                lifetimes=self.lifetimes,
                loads=self._loads,
                publisher=self._publisher,
                token=token,
                sleep=sleep,
            ),
            owner=self._owner,
        )
        self._watchers = Watchers(
            backend,
            Readers(self.reads.peek, self.reads.lookup, self.reads.read_bound),
            PollIntervals() if poll_intervals is None else poll_intervals,
            later,
        )
        self.writes = WriteCoordinator(
            backend=backend,
            publisher=self._publisher,
            lifetimes=self.lifetimes,
            statistics=self.statistics,
            clock_ms=self._clock.now_ms,
            token=token,
            written=self._watchers.written,
            bind=self._owner.bind,
        )

    # --- reading ---

    async def read(self, key: str, load: Load, *, min_version: int = 0) -> ReadResult:
        """The document at `key`, from the cache or else from its source.

        Never older than any version that was acknowledged, or returned by another read, before
        this one began (what that means for each backend is in `docs/promises.md`).

        Args:
            key: callers who use the same key must bring equivalent loaders.
            load: reads the document from the source of truth (a primary, in a snapshot that
                begins when it is called); None if it does not exist.
            min_version: the caller has seen this version, and is to be given nothing older from the
                cache. If the source itself has nothing as new, its answer stands.

        Raises:
            SourceUnavailable: a load was needed, and the source is away, or `LoadTimeout`.
            InvalidDocument: the key cannot be used, or `load` returned no document.
            RecursiveLoad: this is a part of a load that would wait for itself.
            WrongLoop: this is another event loop than the one that used the cache first.
            Exception: whatever else `load` raised.
        """
        if self._owner.loop is not asyncio.get_running_loop() or type(key) is not str:
            self._owner.bind()
            check_key(key)
        result = self.reads.peek(key, load, min_version)
        if result is None:
            result = await self.reads.read(key, load, min_version)
        return result

    async def read_many(self, keys: Iterable[str], load_many: LoadMany) -> ReadResults:
        """As `read`, for several keys: one look at the cache, one load for all that it lacks.

        Args:
            keys: duplicates count once.
            load_many: given the keys that are lacking, returns their documents; one that it
                leaves out does not exist.

        Returns:
            An answer for every key, in the order of `keys`. One key that cannot be used, or for
            which `load_many` returned no document, spares the others: it is left out, and to look
            it up raises `InvalidDocument`.

        Raises:
            Exception: as `read`, for all keys together.
        """
        self._owner.bind()
        return await self.reads.read_many(keys, load_many)

    def peek(self, key: str, load: Load, min_version: int = 0) -> ReadResult | None:
        """As `read`, where no waiting is needed: an entry of this process, without a task switch.

        None, and not counted, where there is none to be served; `read` then finds out more.
        """
        return self.reads.peek(key, load, min_version)

    def ask(
        self, key: str, load: Load, min_version: int, then: Callable[[ReadResult | None], object]
    ) -> bool:
        """As `peek`, where one look at a store elsewhere is needed, and no task for it.

        Args:
            key: as for `read`.
            load: as for `read`.
            min_version: as for `read`.
            then: called in a later turn of the loop with a hit; with None where there is none to be
                served, and `read` is to find out more. It must not raise.

        Returns:
            False, and `then` is not called, where there is no such store, or it is set aside.
        """
        return self.reads.ask(key, load, min_version, then)

    # --- waiting ---

    async def wait_for_newer(
        self,
        key: str,
        load: Load,
        version: int,
        timeout: float,  # noqa: ASYNC109 - one that ends with a value, and none of whose cost is a task
    ) -> ReadResult | None:
        """The document at `key`, as soon as there is a newer one than `version`.

        Woken by the process itself and by the backend's feed, and sure of neither: a newer version
        is found within seconds even if nothing tells of it (`PollIntervals`), unless the source is
        away. Costs a future and a timer; what it takes to look is shared by all who wait for `key`.

        Args:
            key: as for `read`.
            load: as for `read`.
            version: what the caller has; 0 if it has nothing.
            timeout: seconds until it is told that there is none; with 0 it only looks.

        Returns:
            As from `read`, newer than `version`, and as new as a read that began with this call;
            None when the time is up, or when `cancel_waiters` has been called.

        Raises:
            SourceUnavailable: the first look needed a load, and the source is away. If it goes
                away later, the caller waits for it to come back, as long as its time is not up.
            Exception: whatever else `load` raised, then or later.
        """
        self._owner.bind()
        return await self._watchers.wait_for_newer(key, load, version, timeout)

    def cancel_waiters(self) -> None:
        """Tell all who wait that there is nothing newer, and have nobody wait from now on."""
        self._watchers.stop()

    def waiting(self) -> tuple[int, int]:
        """How many callers of `wait_for_newer` wait, and for how many keys."""
        return self._watchers.waiters, len(self._watchers)

    # --- writing ---

    def write(
        self, transaction: AbstractAsyncContextManager[T], *keys: str
    ) -> AbstractAsyncContextManager[Write[T]]:
        """Wrap the caller's own transaction, so that the cache never hides what it commits.

            async with cache.write(engine.begin(), key) as write:
                row = (await write.transaction.execute(UPDATE_RETURNING)).one()
                write.publish(key, document_of(row))
            # committed, and published: now acknowledge

        The transaction begins, the keys are fenced, the block runs, the transaction commits, and
        what the block published is handed over; readers get it from the cache at once. If the
        block raises, the transaction is rolled back and the fences are withdrawn, which leaves
        the keys empty. So it is best to fence late, with `Write.fence` once the row is changed:
        what is refused, or meets a database that is away, then costs the cache nothing. If the
        commit itself fails nobody knows whether it happened: the fences stay until they expire,
        and until then readers ask the source. A backend that is away holds nobody up.

        The transaction must raise a version by the row's lock (`UPDATE … SET version = version +
        1 … RETURNING version`), so that versions grow in commit order.

        Args:
            transaction: commits when left normally, rolls back when left by an exception.
            keys: what it will change, where that is known beforehand; else `Write.fence`.

        Raises:
            WriteMisuse: a key was fenced, but never published. Nothing is committed then.
            Exception: whatever the block or the commit raised.
        """
        return self.writes.through(transaction, keys)

    # --- the rest ---

    async def start(self, source_id: str = "") -> None:
        """Find out how the backend's store is, so that the first reads need not. Not required.

        Args:
            source_id: the identity of the source, such as a random id kept in the database; see
                `CacheSettings.source_id`, which it replaces.

        Raises:
            NamespaceConflict: the store belongs to another source.
        """
        self._owner.bind()
        if source_id and isinstance(self.backend, SupportsNamespaceOwner):
            self.backend.identify(source_id)
        if isinstance(self.backend, SupportsStart):
            await self.backend.start()

    async def invalidate(self, *keys: str) -> int:
        """Drop these keys' entries and leases; the next read of each asks the source.

        Not needed for coherence, where writes go through `write`: it is for operators, and for
        changes made behind the cache's back.

        Returns:
            How many keys held something that was dropped.

        Raises:
            CacheUnavailable: the backend is away. Behind a guard, the keys are remembered and
                dropped before it is used again.
        """
        self._owner.bind()
        for key in keys:
            check_key(key)
        try:
            return await self.backend.purge(keys)
        finally:
            self._watchers.written(keys)

    async def invalidate_all(self) -> int:
        """As `invalidate`, for every key of the backend's namespace.

        Raises:
            CacheUnavailable: as for `invalidate`.
            CacheError: the backend cannot list its keys.
        """
        self._owner.bind()
        if not isinstance(self.backend, SupportsPurgeAll):
            raise CacheError(f"the {self.backend.name} backend cannot list its keys")
        try:
            return await self.backend.purge_all()
        finally:
            self._watchers.anything()

    def condition(self) -> Health:
        """How the backend's store is; always in use where nothing watches it."""
        if isinstance(self.backend, SupportsHealth):
            return self.backend.condition()
        return Health(available=True, state="closed", age=0.0, reason="", pending=0)

    def feed(self) -> FeedStatus | None:
        """How the feed of changes is; None where there is none, for all is in this process."""
        feed = self.backend.feed() if isinstance(self.backend, SupportsChangeFeed) else None
        return None if feed is None else feed.condition()

    def tier_hits(self) -> dict[str, int]:
        """Hits by the tier that answered; one tier, if the backend has no others."""
        return self.reads.tier_hits()

    def size(self) -> tuple[int, int] | None:
        """How many cells this process holds, and about how many bytes; None if it holds none."""
        return self.backend.size() if isinstance(self.backend, SupportsSize) else None

    async def aclose(self) -> None:
        """End waits and loads, let publishes finish, close the backend. Safe to call twice.

        Raises:
            WrongLoop: the cache belongs to another event loop.
        """
        if self._owner.closed:
            return
        self._owner.bind()
        self._owner.close()
        await self._watchers.aclose()
        await self.reads.aclose()
        await self._shadow.aclose()
        await self._loads.aclose()
        await self._publisher.join()
        await self.backend.aclose()

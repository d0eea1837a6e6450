"""`JobCache`: read through a cache, write through it, and wait for newer versions.

Rejected: deleting the key after the commit and letting readers refill it. A reader that loaded
before the commit stores the old row after the delete; and a writer that dies between the commit and
the delete leaves the old entry behind.
"""

from __future__ import annotations

import asyncio
import secrets
from functools import partial
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, overload

from jobcache._concurrency.tasks import ShieldedTasks
from jobcache._engine.cached import CachedCalls, CachedFunction, require_coroutine_function
from jobcache._engine.cell_changes import CellChanges
from jobcache._engine.clock import WallClock
from jobcache._engine.debug_lines import LoggedReads, LoggedValues, reads_are_logged
from jobcache._engine.fetching import Fetcher
from jobcache._engine.following import followed_read, followed_write
from jobcache._engine.loading import Loads
from jobcache._engine.measuring import measure
from jobcache._engine.options import split
from jobcache._engine.owner_loop import OwnerLoop
from jobcache._engine.publishing import Publisher
from jobcache._engine.reading import Reads
from jobcache._engine.shadow_reads import Shadow
from jobcache._engine.storing import Storing, seconds, sorted_tags, tag_keys
from jobcache._engine.values import Values
from jobcache._engine.watchers import PollIntervals, Readers, Watchers
from jobcache._engine.writing import WriteCoordinator
from jobcache.backends.registry import make_backend
from jobcache.errors import CacheError
from jobcache.lifetimes import Lifetimes
from jobcache.models import CacheInfo, CacheSize, WaiterCount
from jobcache.observability.statistics import Statistics
from jobcache.protocol.capabilities import (
    Health,
    SupportsBodyCheck,
    SupportsChangeFeed,
    SupportsFutureGet,
    SupportsHealth,
    SupportsLeaseTime,
    SupportsNamespaceOwner,
    SupportsPurgeAll,
    SupportsSize,
    SupportsStart,
)
from jobcache.protocol.key import check_key
from jobcache.resilience.batched_gets import BatchedGets
from jobcache.serializers import serializer_of
from jobcache.settings import CacheSettings

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable
    from contextlib import AbstractAsyncContextManager
    from datetime import timedelta
    from typing import Self, Unpack

    from jobcache._engine.options import URLOptions
    from jobcache._engine.watchers import CallLater
    from jobcache._engine.writing import Write
    from jobcache.models import Load, LoadMany, ReadResult, ReadResults
    from jobcache.observability.instrumentation import Instrumentation
    from jobcache.observability.metrics import Measurements
    from jobcache.protocol.backend import CacheBackend
    from jobcache.serializers import Serializer

P = ParamSpec("P")
T = TypeVar("T")

_LEASE_MARGIN = 5.0
"""Seconds that a lease outlives the longest load, for the steps before and after it."""


def _any_body(key: str, body: bytes) -> None:
    """Accept every body."""


class JobCache:
    """Answers reads from a backend, and keeps it coherent with the source of truth.

        async with JobCache.from_url("redis://127.0.0.1:6379/0") as cache:
            result = await cache.read("job:7", load)

    If the cache fails, a read costs a load and is still answered. An instance belongs to one event
    loop: the first one that uses it. Hits and misses are logged if the logger `jobcache` has the
    level DEBUG when the cache is made.

    Args:
        backend: where entries are stored.
        lifetimes: for how long entries are served and kept, by the status of their documents.
        statistics: the counters; None: new ones.
        load_timeout: seconds that a load may take. Then it is cancelled, and fails with
            `LoadTimeout`, a `SourceUnavailable`. Leases last a little longer, so that the result of
            every load that ends in time can be stored. None: no limit; but the result of a slow
            load may not be stored.
        check_body: called with the key and the decoded body of each document that comes from a
            store outside this process, when its entry is first seen here. If it raises an
            exception, the entry is removed and loaded again. Not called for bodies above 1 MiB, and
            for values without a version, which their serializer reads.
        shadow_rate: the part of the hits, from 0 to 1, that is compared with the source afterwards.
            Each comparison costs a load.
        clock_ms: wall-clock time in milliseconds since the epoch; None: the system's.
        token: makes unique tokens of ASCII letters and digits.
        sleep: waits for the given seconds.
        poll_intervals: how often keys are read for callers that wait for newer versions.
        later: calls a function after so many seconds; None: uses the running loop's clock.
        instrumentation: follows reads, loads and writes, such as
            `jobcache.observability.opentelemetry.OpenTelemetry`.

    Attributes:
        backend: as given.
        lifetimes: as given.
        statistics: the counters and histograms.
        instrumentation: as given.
        reads: the steps of a read, for callers that answer a hit without a task.
        values: the steps of reading a value without a version.
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
        later: CallLater | None = None,
        instrumentation: Instrumentation | None = None,
    ) -> None:
        self.backend = backend
        self.instrumentation = instrumentation
        self.lifetimes = Lifetimes() if lifetimes is None else lifetimes
        self.statistics = Statistics() if statistics is None else statistics
        self._owner = OwnerLoop()
        self._shielded = ShieldedTasks()
        self._closing: asyncio.Task[None] | None = None
        self._clock = WallClock(clock_ms)
        self._loads = Loads(load_timeout, instrumentation)
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
        gets = BatchedGets(backend) if isinstance(backend, SupportsFutureGet) else None
        changes = CellChanges(backend)
        self._publisher = Publisher(backend, self.statistics, changes, token)
        fetcher = Fetcher(
            backend,
            statistics=self.statistics,
            clock=self._clock,
            lifetimes=self.lifetimes,
            loads=self._loads,
            publisher=self._publisher,
            changes=changes,
            token=token,
            sleep=sleep,
            gets=gets,
        )
        logged = reads_are_logged()
        self.values = (LoggedValues if logged else Values)(
            backend,
            statistics=self.statistics,
            clock=self._clock,
            lifetimes=self.lifetimes,
            loads=self._loads,
            fetcher=fetcher,
            publisher=self._publisher,
            token=token,
            instrumentation=instrumentation,
        )
        self.reads = (LoggedReads if logged else Reads)(
            backend,
            statistics=self.statistics,
            clock=self._clock,
            shadow=self._shadow,
            loads=self._loads,
            fetcher=fetcher,
            owner=self._owner,
            gets=gets,
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
            notify_written=self._watchers.notify_written,
            bind=self._owner.bind,
        )
        if instrumentation is not None:
            # Not a condition in `read`: it is on the path of every hit.
            self.read = followed_read(instrumentation, self.read)  # type: ignore[method-assign]

    @classmethod
    def from_url(cls, url: str, **options: Unpack[URLOptions]) -> Self:
        """Return a cache on the store that a URL names. Connects to nothing yet.

            memory://                     this process
            redis://host:6379/0           Redis or Valkey; also rediss://, valkey://, unix://,
                                          redis+sentinel:// and redis+cluster://
            tiered+redis://host:6379/0    memory before Redis
            null://                       nowhere: every read is a load

        Args:
            url: the URL of the store; `CacheSettings.from_url` lists all schemes.
            options: settings of the store (`prefix`, `max_entries`, `max_bytes`, `source_id`; see
                `CacheSettings`), and the arguments of `JobCache`.

        Raises:
            SettingsError: the URL is wrong, or the library that the store needs is not installed.
        """
        store, cache = split(options)
        return cls(make_backend(CacheSettings.from_url(url, **store)), **cache)

    @property
    def in_use(self) -> bool:
        """True once an event loop has used the cache, until the cache is closed."""
        return self._owner.loop is not None

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    # --- reading ---

    async def read(self, key: str, load: Load, *, min_version: int = 0) -> ReadResult:
        """Return the document at `key`, from the cache or from its source.

        The result is never older than a version that was acknowledged, or returned by another read,
        before this read began. `docs/promises.md` says what that means for each backend.

        Args:
            key: the key, up to 4,096 bytes in UTF-8. All callers who use a key must bring
                equivalent loaders, because loads are shared.
            load: reads the document from the source of truth (a primary, in a snapshot that begins
                when the loader is called), and returns None if there is none.
            min_version: the version that the caller has seen. The cache returns nothing older. If
                the source itself has only older versions, its answer is returned.

        Raises:
            SourceUnavailable: a load was needed, and the source is away, or took too long
                (`LoadTimeout`).
            InvalidDocument: the key cannot be used (`InvalidKey`), or `load` returned no document.
            RecursiveLoad: this read is a part of a load that would wait for itself.
            WrongLoop: the cache belongs to another event loop.
            CacheClosed: the cache is closed.
            Exception: any other exception that `load` raised.
        """
        if not self._owner.runs_here() or type(key) is not str:
            self._owner.bind()
            check_key(key)
        result = self.reads.peek(key, load, min_version)
        if result is None:
            result = await self.reads.read(key, load, min_version)
        return result

    async def read_many(self, keys: Iterable[str], load_many: LoadMany) -> ReadResults:
        """Return the documents at `keys`, with one request to the store and at most one load.

        Args:
            keys: the keys, and not one string; duplicates count once.
            load_many: called with the keys that the cache lacks; returns their documents by key. A
                key that it leaves out has no document.

        Returns:
            A result for each key, in the order of `keys`. A key that cannot be used, or for which
            `load_many` returned no document, does not affect the other keys: it has no result, and
            looking it up raises `InvalidDocument`.

        Raises:
            Exception: as `read`, for all keys together.
        """
        self._owner.bind()
        return await self.reads.read_many(keys, load_many)

    def peek(self, key: str, load: Load, min_version: int = 0) -> ReadResult | None:
        """Return the document at `key` if it is a hit in this process, without waiting.

        Return None, and count nothing, if there is no such hit: then call `read`.

        Args:
            key: as for `read`.
            load: as for `read`; called by shadow reads only.
            min_version: as for `read`.
        """
        return self.reads.peek(key, load, min_version)

    async def get_or_load(
        self,
        key: str,
        load: Callable[[], Awaitable[T]],
        *,
        ttl: float | timedelta,
        tags: Iterable[str] = (),
        serializer: Serializer[T] | None = None,
        cache_none: bool = False,
        bypass: bool = False,
    ) -> T:
        """Return the value at `key`, from the cache or from `load`, for data without a version.

            report = await cache.get_or_load("report:7", load_report, ttl=60)
            ...
            await cache.invalidate("report:7")     # after the data has changed

        The result is never older than a value that another read returned, or than the data at an
        `invalidate` that returned, before this read began. A change that nobody announces is seen
        once the time to live is over. Concurrent calls share a load. Another process waits for it
        for a quarter of a second. Then it loads, too, and the value that was stored first is
        returned.

        Args:
            key: as for `read`. Use a key either here or with `read` and `write`; what the other has
                stored there is loaded again.
            load: returns the value. If it raises, nothing is cached. If it raises
                `SourceUnavailable`, an entry past its time to live is served while there is one.
            ttl: seconds, or a `timedelta`, for which the value is served; up to the `jitter` of
                `lifetimes` less. 0: nothing is stored.
            tags: names of groups that the key belongs to; see `invalidate_tags`. All callers who
                use a key must give the same.
            serializer: stores the value. None: as JSON; models of pydantic and structs of msgspec
                are recognised by the return annotation of `load`.
            cache_none: whether None is stored, too.
            bypass: call `load` in any case, for this caller alone. A cached value, which may be
                older than the result, is removed.

        Returns:
            The value as the cache gives it back, on a hit and otherwise. It is shared with other
            callers: the dictionaries and lists of JSON are read-only (`copy.deepcopy` makes a
            normal copy), and models are shared only if they are frozen.

        Raises:
            InvalidDocument: the value cannot be stored, or would come back changed.
            Exception: as for `read`, and any exception that `load` raised.
        """
        if not self._owner.runs_here():
            self._owner.bind()
        storing: Storing[T] = Storing(
            serializer_of(load) if serializer is None else serializer,
            seconds(ttl),
            sorted_tags(tags),
            cache_none,
        )
        return await self.values.get(key, load, storing, bypass=bypass)

    def cached(
        self,
        key: str,
        *,
        ttl: float | timedelta,
        tags: Iterable[str] = (),
        ignore: Collection[str] = (),
        serializer: Serializer[Any] | None = None,
        cache_none: bool = False,
    ) -> Callable[[Callable[P, Coroutine[Any, Any, T]]], CachedFunction[P, T]]:
        """Return a decorator that caches the results of an async function or method.

            @cache.cached("report:{report_id}", ttl=60)
            async def report(report_id: int) -> dict[str, Any]:
                ...

            await report(7)
            await report.invalidate(7)     # after the data has changed
            await report.bypass(7)         # calls the function in any case

        Args:
            key: the template of the key, with parameters in braces. Each of them needs an
                annotation with one type: str, int, bool, UUID, date, datetime, an enumeration, or
                one of these or None. A parameter that is not in the template is refused, because
                callers with different values would share a result; except the object of a method,
                requests and database sessions, which must not change the result either.
            ttl: as for `get_or_load`.
            tags: as for `get_or_load`; they may have parameters, too.
            ignore: names of further parameters that do not change the result.
            serializer: as for `get_or_load`.
            cache_none: as for `get_or_load`.

        Raises (from the decorator):
            TypeError: the key does not fit the function, or JSON would change its results.
            ValueError: `ttl` is no lifetime.
        """

        def decorate(function: Callable[P, Coroutine[Any, Any, T]]) -> CachedFunction[P, T]:
            require_coroutine_function(function)
            calls: CachedCalls[T] = CachedCalls(
                function,
                key=key,
                ttl=ttl,
                tags=tags,
                ignore=ignore,
                serializer=serializer,
                cache_none=cache_none,
            )
            return CachedFunction(
                function,
                calls,
                values=self.values,
                owner=self._owner,
                invalidate=self.invalidate,
            )

        return decorate

    # --- waiting ---

    async def wait_for_newer(
        self,
        key: str,
        load: Load,
        version: int,
        timeout: float,  # noqa: ASYNC109 - it ends with a value, and costs no task
    ) -> ReadResult | None:
        """Return the document at `key` as soon as it is newer than `version`.

        The caller is woken by writes of this process and by the change feed of the backend. Both
        can fail to notify it, so the key is also read every few seconds (`PollIntervals`). A waiter
        costs a future and a timer; all waiters of a key share the reads.

        Args:
            key: as for `read`.
            load: as for `read`.
            version: the version that the caller has; 0 if it has none.
            timeout: seconds to wait; 0: read once.

        Returns:
            The document, newer than `version` and as new as the result of a read that began with
            this call; None if the time is up or `cancel_waiters` was called.

        Raises:
            SourceUnavailable: the first read needed a load, and the source is away. If the source
                goes away later, the caller waits on until its time is up.
            Exception: any other exception that `load` raised, at any time.
        """
        self._owner.bind()
        return await self._watchers.wait_for_newer(key, load, version, timeout)

    def cancel_waiters(self) -> None:
        """End all calls of `wait_for_newer` with None, and all later ones at once."""
        self._watchers.stop()

    # --- writing ---

    @overload
    def write(self, *keys: str) -> AbstractAsyncContextManager[Write[None]]: ...
    @overload
    def write(
        self, transaction: AbstractAsyncContextManager[T], *keys: str
    ) -> AbstractAsyncContextManager[Write[T]]: ...
    def write(
        self, transaction: AbstractAsyncContextManager[Any] | str | None = None, *keys: str
    ) -> AbstractAsyncContextManager[Write[Any]]:
        """Wrap a transaction, so that the cache never hides the committed changes.

            async with cache.write(engine.begin()) as write:
                row = (await write.transaction.execute(UPDATE_RETURNING)).one()
                await write.fence(key)
                write.publish(key, document_of(row))
            # committed and published: now acknowledge

        The steps: the transaction begins; `keys` are fenced; the block runs; the transaction
        commits; what the block published is stored. The next read is a hit.

        - If the block raises, the transaction is rolled back and the fences are withdrawn, which
          leaves the keys empty. So fence late, with `Write.fence` after the row was changed: then
          a refused change costs the cache nothing.
        - If the commit itself fails, nobody knows whether it happened. The fences stay until they
          expire; until then readers ask the source.
        - If the backend is away, the write goes on without it.

        The transaction must raise the version under the lock of the row (`UPDATE … SET version =
        version + 1 … RETURNING version`), so that versions grow in commit order.

        A block that commits its change itself, such as a single statement, needs no transaction.
        Its keys are fenced before the change. If the block raises, it may have committed, so the
        fences stay until they expire.

            async with cache.write(key) as write:
                row = await pool.fetchrow(UPDATE_RETURNING)
                write.publish(key, document_of(row))

        Args:
            transaction: commits when it is left normally, rolls back when it is left by an
                exception. Leave it out if the block commits its change itself.
            keys: the keys that will change, if they are known beforehand; else use `Write.fence`.

        Raises:
            WriteMisuse: a key was fenced but never published. The transaction is rolled back.
            Exception: any exception that the block or the commit raised.
        """
        if transaction is None or isinstance(transaction, str):
            keys = (transaction, *keys) if transaction is not None else keys
            writing = self.writes.unwrapped(keys)
        else:
            writing = self.writes.through(transaction, keys)
        if self.instrumentation is not None:
            return followed_write(self.instrumentation, writing)
        return writing

    async def invalidate(self, *keys: str) -> int:
        """Remove the entries and leases of these keys. Fences stay.

        The next read of each key asks the source. Changes made through `write` do not need this; it
        is for values without a version (`get_or_load`), for operators, and for changes made without
        the cache. Call it after the change is committed. Atomic for each key; it continues if the
        caller is cancelled.

        Returns:
            The number of keys that held an entry or a lease.

        Raises:
            CacheUnavailable: the backend is away. A guarded backend remembers the keys, and removes
                them before it is used again.
        """
        self._owner.bind()
        for key in keys:
            check_key(key)
        try:
            # Shielded: a client that goes away after the commit must not leave the entries behind.
            return await self._shielded.run(self.backend.purge(keys))
        finally:
            self._watchers.notify_written(keys)

    async def invalidate_tags(self, *tags: str) -> int:
        """Invalidate all values with one of these tags, wherever they are stored.

        It takes one operation for each tag, and not for each key: no value with that tag is
        accepted any more. The values themselves stay until they expire or are replaced.

        Returns:
            The number of tags that had values.

        Raises:
            InvalidKey: a tag cannot be used.
            CacheUnavailable: as for `invalidate`.
        """
        return await self.invalidate(*tag_keys(sorted_tags(tags)))

    async def invalidate_all(self) -> int:
        """Remove every cell of the backend's namespace, fences included.

        Returns:
            The number of cells that were removed.

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
            self._watchers.check_all()

    # --- the rest ---

    async def start(self, source_id: str = "") -> None:
        """Connect to the store, so that the first read need not. A store that is away is no error.

        Args:
            source_id: the identity of the source, such as a random id kept in the database; it
                replaces `CacheSettings.source_id`.

        Raises:
            NamespaceConflict: the store belongs to another source.
        """
        self._owner.bind()
        if source_id and isinstance(self.backend, SupportsNamespaceOwner):
            self.backend.identify(source_id)
        if isinstance(self.backend, SupportsStart):
            await self.backend.start()

    def info(self) -> CacheInfo:
        """Return the state of the cache and its counters, for operators and dashboards."""
        backend = self.backend
        health = Health(available=True, state="closed", age=0.0, reason="", pending=0)
        feed = backend.feed() if isinstance(backend, SupportsChangeFeed) else None
        return CacheInfo(
            backend=backend.name,
            health=backend.condition() if isinstance(backend, SupportsHealth) else health,
            size=CacheSize(*backend.size()) if isinstance(backend, SupportsSize) else None,
            feed=None if feed is None else feed.condition(),
            waiting=WaiterCount(self._watchers.waiters, len(self._watchers)),
            counters=self.statistics.counters(),
            tier_hits=self.reads.tier_hits(),
            latency_us=self.statistics.latency_us(),
        )

    def measure(self) -> Measurements:
        """Return what the metrics in `jobcache.observability.metrics` are now.

        This is what collectors read; it takes less than a millisecond.
        """
        waiting = WaiterCount(self._watchers.waiters, len(self._watchers))
        return measure(self.backend, self.statistics, self.reads.tier_hits(), waiting)

    async def aclose(self) -> None:
        """End all waits and loads, finish publishing, and close the backend. Safe to call twice.

        It continues if the caller is cancelled. A later call waits for the end, too.

        Raises:
            WrongLoop: the cache belongs to another event loop.
        """
        if self._closing is None:
            self._owner.bind()
            self._owner.close()
            self._closing = asyncio.create_task(self._close())
        if not self._closing.cancelled():  # by the end of its event loop
            await asyncio.shield(self._closing)

    async def _close(self) -> None:
        await self._watchers.aclose()
        await self.reads.aclose()
        await self.values.aclose()
        await self._shadow.aclose()
        await self._loads.aclose()
        await self._publisher.join()
        await self._shielded.join()
        await self.backend.aclose()

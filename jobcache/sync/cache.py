"""`JobCache` for synchronous code: workers of Celery or RQ, Django, scripts.

    with JobCache.from_url("redis://127.0.0.1:6379/0") as cache:
        result = cache.read("job:7", load)

The methods are those of the asynchronous cache. They run on an event loop in a thread of this
process, where probes and shared loads go on between calls. A load is called in the thread that
called the cache, and a transaction never leaves its thread. Any number of threads may use one
cache, and share equal reads.

After a fork, the child creates a loop, a backend and connections of its own at its first call. A
copied or unpickled cache has the same settings, but no entries and no statistics.
"""

from __future__ import annotations

import time
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar, overload

from jobcache._engine.cached import CachedCalls
from jobcache._engine.loading import as_part_of_this_load
from jobcache._engine.options import split
from jobcache._engine.storing import Storing, seconds, sorted_tags
from jobcache._threads import refuse_eventlet
from jobcache.backends.registry import make_backend
from jobcache.cache import JobCache as AsyncJobCache
from jobcache.errors import CacheClosed
from jobcache.serializers import serializer_of
from jobcache.settings import CacheSettings
from jobcache.sync._cached import SyncCachedFunction, require_plain_function
from jobcache.sync._documentation import documented_as
from jobcache.sync._loop_thread import CallingThread, LoopThread, forks
from jobcache.sync._writing import BlockingWriteSteps, Write, WriteBlock, through, unwrapped

if TYPE_CHECKING:
    from collections.abc import (
        Awaitable,
        Callable,
        Collection,
        Coroutine,
        Iterable,
        Mapping,
        Sequence,
    )
    from contextlib import AbstractContextManager
    from datetime import timedelta
    from types import TracebackType
    from typing import Self, Unpack

    from jobcache._engine.options import CacheOptions, URLOptions
    from jobcache.lifetimes import Lifetimes
    from jobcache.models import ReadResult, ReadResults
    from jobcache.observability.statistics import Statistics
    from jobcache.protocol.backend import CacheBackend
    from jobcache.protocol.document import Document
    from jobcache.serializers import Serializer

P = ParamSpec("P")
T = TypeVar("T")


def _made_from(
    method: Callable[Concatenate[AsyncJobCache, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[JobCache, P], T]:
    @wraps(method)
    def call(self: JobCache, /, *arguments: P.args, **options: P.kwargs) -> T:
        return self._here().call(lambda cache, _: method(cache, *arguments, **options))

    return call


def _at_once(
    method: Callable[Concatenate[AsyncJobCache, P], T],
) -> Callable[Concatenate[AsyncJobCache, P], Coroutine[Any, Any, T]]:
    @wraps(method)
    async def call(cache: AsyncJobCache, /, *arguments: P.args, **options: P.kwargs) -> T:
        return method(cache, *arguments, **options)

    return call


class JobCache:
    """Answers reads from a backend and keeps it coherent, for threads.

    Nothing is started before the first call, so a process may fork before that.

    A signal handler that raises (Ctrl-C, the time limit of a task) ends the call at once; a load
    that the call shared with others goes on. A write that is interrupted within its block rolls
    back. If it is interrupted after its commit, it is published all the same, or else its fence
    stays until it expires.

    Nothing can interrupt a load in its thread. When `load_timeout` is over, the other callers who
    share the load get `LoadTimeout` at once, and its own thread once the loader returns. So set the
    timeout of the driver below it. A signal handler that raises ends the load, if it is in the main
    thread.

    Args:
        backend: settings; or a function that makes a backend, called once in each process that uses
            the cache, in the thread of the loop.
        options: the arguments of `jobcache.JobCache`. `shadow_rate` and `load_timeout` default to
            those of the settings. A shadow read calls the loader in a thread of its own, because
            the reader does not wait for it.

    Raises:
        UnsupportedRuntime: eventlet has patched this process. Later calls raise it, too, if
            eventlet patches the process after that. gevent is supported.
    """

    def __init__(
        self, backend: CacheSettings | Callable[[], CacheBackend], **options: Unpack[CacheOptions]
    ) -> None:
        refuse_eventlet()
        if isinstance(backend, CacheSettings):
            options.setdefault("shadow_rate", backend.shadow_rate)
            options.setdefault("load_timeout", backend.load_timeout)
            self._make: Callable[[], CacheBackend] = partial(make_backend, backend)
        else:
            self._make = backend
        self._options = options
        # By the number of forks. Those of parent processes are kept and not used: closing their
        # connections here would affect the parent.
        self._loop_threads: dict[int, LoopThread[AsyncJobCache]] = {}
        self._closed = False

    @classmethod
    @documented_as(AsyncJobCache.from_url)
    def from_url(  # noqa: D102 - documented by the decorator
        cls, url: str, **options: Unpack[URLOptions]
    ) -> Self:
        store, cache = split(options)
        return cls(CacheSettings.from_url(url, **store), **cache)

    def _here(self) -> LoopThread[AsyncJobCache]:
        """Return the loop thread of this process. Takes no lock: a fork could leave it locked."""
        if self._closed:
            raise CacheClosed("the cache is closed")
        loop_thread = self._loop_threads.get(forks.count)
        if loop_thread is None:
            made = LoopThread("jobcache", self._make_cache, AsyncJobCache.aclose)
            loop_thread = self._loop_threads.setdefault(forks.count, made)
        return loop_thread

    def _make_cache(self) -> AsyncJobCache:
        return AsyncJobCache(self._make(), **self._options)

    def __getstate__(self) -> dict[str, Any]:
        """Return the settings, for `copy` and `pickle`."""
        options = {name: it for name, it in self._options.items() if name != "statistics"}
        return vars(self) | {"_options": options, "_loop_threads": {}, "_closed": False}

    @documented_as(AsyncJobCache.read)
    def read(
        self, key: str, load: Callable[[], Document | None], *, min_version: int = 0
    ) -> ReadResult:
        """Calls `load` in this thread, if a load is needed.

        If several threads read a key at once, one of them calls its loader. If that thread is
        interrupted, another one does.
        """

        def work(cache: AsyncJobCache, caller: CallingThread) -> Awaitable[ReadResult]:
            # Only a shadow read calls the loader after the call has returned.
            def load_there() -> Awaitable[Document | None]:
                return caller.ask(as_part_of_this_load(load), afterwards=True)

            return cache.read(key, load_there, min_version=min_version)

        return self._here().call(work)

    @documented_as(AsyncJobCache.read_many)
    def read_many(
        self,
        keys: Iterable[str],
        load_many: Callable[[Sequence[str]], Mapping[str, Document]],
    ) -> ReadResults:
        """Calls `load_many` in this thread, if a load is needed."""
        # Iterated in the caller's thread. A text is passed on, to be refused.
        wanted = keys if isinstance(keys, str) else list(keys)

        def work(cache: AsyncJobCache, caller: CallingThread) -> Awaitable[ReadResults]:
            def load_there(some: Sequence[str]) -> Awaitable[Mapping[str, Document]]:
                return caller.ask(as_part_of_this_load(partial(load_many, some)))

            return cache.read_many(wanted, load_there)

        return self._here().call(work)

    @documented_as(AsyncJobCache.get_or_load)
    def get_or_load(
        self,
        key: str,
        load: Callable[[], T],
        *,
        ttl: float | timedelta,
        tags: Iterable[str] = (),
        serializer: Serializer[T] | None = None,
        cache_none: bool = False,
        bypass: bool = False,
    ) -> T:
        """Calls `load` in this thread, if a load is needed."""
        storing: Storing[T] = Storing(
            serializer_of(load) if serializer is None else serializer,
            seconds(ttl),
            sorted_tags(tags),
            cache_none,
        )
        return self._value(key, load, storing, bypass=bypass)

    def _value(self, key: str, load: Callable[[], T], storing: Storing[T], *, bypass: bool) -> T:
        def work(cache: AsyncJobCache, caller: CallingThread) -> Awaitable[T]:
            def load_there() -> Awaitable[T]:
                return caller.ask(as_part_of_this_load(load))

            return cache.values.get(key, load_there, storing, bypass=bypass)

        return self._here().call(work)

    @documented_as(AsyncJobCache.cached)
    def cached(
        self,
        key: str,
        *,
        ttl: float | timedelta,
        tags: Iterable[str] = (),
        ignore: Collection[str] = (),
        serializer: Serializer[Any] | None = None,
        cache_none: bool = False,
    ) -> Callable[[Callable[P, T]], SyncCachedFunction[P, T]]:
        """For functions that are not async."""

        def decorate(function: Callable[P, T]) -> SyncCachedFunction[P, T]:
            require_plain_function(function)
            calls: CachedCalls[T] = CachedCalls(
                function,
                key=key,
                ttl=ttl,
                tags=tags,
                ignore=ignore,
                serializer=serializer,
                cache_none=cache_none,
            )
            return SyncCachedFunction(
                function, calls, value=self._value, invalidate=self.invalidate
            )

        return decorate

    @overload
    def write(self, *keys: str) -> AbstractContextManager[Write[None]]: ...
    @overload
    def write(
        self, transaction: AbstractContextManager[T], *keys: str
    ) -> AbstractContextManager[Write[T]]: ...
    @documented_as(AsyncJobCache.write)
    def write(
        self, transaction: AbstractContextManager[Any] | str | None = None, *keys: str
    ) -> AbstractContextManager[Write[Any]]:
        """The transaction begins, commits and rolls back in this thread.

        If the transaction is Django's `atomic()` within another atomic block (as with
        `ATOMIC_REQUESTS`), the documents are published when the outermost block commits; until then
        the keys stay fenced. If that block rolls back, the fences stay until they expire, and
        readers ask the source until then.

        If this process is forked within the block, the write belongs to the parent: the child
        leaves the block without touching the transaction.
        """
        loop_thread = self._here()
        if transaction is None or isinstance(transaction, str):
            keys = (transaction, *keys) if transaction is not None else keys
            return WriteBlock(loop_thread, unwrapped(loop_thread, keys))
        return WriteBlock(loop_thread, through(loop_thread, transaction, keys))

    @documented_as(AsyncJobCache.wait_for_newer)
    def wait_for_newer(
        self, key: str, load: Callable[[], Document | None], version: int, timeout: float
    ) -> ReadResult | None:
        """Calls `load` in this thread, if a load is needed, while the thread waits."""
        until = time.monotonic() + timeout

        def work(cache: AsyncJobCache, caller: CallingThread) -> Awaitable[ReadResult | None]:
            # `CallerLeft` repeats this function: then only the rest of the time is left.
            left = until - time.monotonic()

            def load_there() -> Awaitable[Document | None]:
                return caller.ask(as_part_of_this_load(load))

            return cache.wait_for_newer(key, load_there, version, left)

        return self._here().call(work)

    start = _made_from(AsyncJobCache.start)
    invalidate = _made_from(AsyncJobCache.invalidate)
    invalidate_tags = _made_from(AsyncJobCache.invalidate_tags)
    invalidate_all = _made_from(AsyncJobCache.invalidate_all)
    info = _made_from(_at_once(AsyncJobCache.info))
    measure = _made_from(_at_once(AsyncJobCache.measure))
    cancel_waiters = _made_from(_at_once(AsyncJobCache.cancel_waiters))

    @property
    def lifetimes(self) -> Lifetimes:
        """How long entries live."""
        return self._here().call(_lifetimes)

    @property
    def statistics(self) -> Statistics:
        """The counters and histograms of this process.

        If the caller has given a `Statistics`, a forked child continues with its copy.
        """
        return self._here().call(_statistics)

    def close(self) -> None:
        """End all waits and loads in this process, finish publishing, and close the backend.

        Calls that wait in other threads, and all later calls, raise `CacheClosed`; calls of
        `wait_for_newer` return None. A write may still commit at the end of its block. Safe to call
        twice. The exit of the interpreter closes the cache, too, and waits at most a few seconds.
        """
        self._closed = True
        loop_thread = self._loop_threads.get(forks.count)
        if loop_thread is not None:
            loop_thread.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


async def _lifetimes(cache: AsyncJobCache, _: CallingThread) -> Lifetimes:
    return cache.lifetimes


async def _statistics(cache: AsyncJobCache, _: CallingThread) -> Statistics:
    return cache.statistics


def begin_write(cache: JobCache) -> BlockingWriteSteps:
    """Return the steps of a new write, for callers that take them one by one."""
    return BlockingWriteSteps(cache._here())  # noqa: SLF001 - no method of users, as in the asynchronous cache

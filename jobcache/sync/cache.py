"""`JobCache` for synchronous code: workers of Celery or RQ, Django, scripts.

    with JobCache.from_url("redis://127.0.0.1:6379/0") as cache:
        result = cache.read("job:7", load)

The methods are those of the asynchronous cache. They run on an event loop in a thread of this
process, where probes and shared loads go on between calls. A load is called in the thread that
called the cache, and a transaction never leaves its thread. Any number of threads may use one
cache, and share equal reads.

After a fork, the child creates a loop, a backend and connections of its own at its first call. A
copied or unpickled cache has the same settings, but no entries and no statistics.

Rejected: giving the transaction to the asynchronous write, which would have the caller's thread
enter and leave it. If a signal interrupts the thread in between, the thread that drops the last
reference ends the transaction, and drivers refuse that.
"""

from __future__ import annotations

import inspect
import re
import time
from contextlib import contextmanager, suppress
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeVar, overload

from jobcache._engine.cached import CachedCalls
from jobcache._engine.loading import as_part_of_this_load
from jobcache._engine.options import split
from jobcache._engine.transactions import Enclosing, check_autocommit
from jobcache._engine.values import Storing, seconds, sorted_tags
from jobcache._engine.writing import Write as AsyncWrite
from jobcache._engine.writing import WriteSteps
from jobcache._threads import refuse_eventlet
from jobcache.backends.registry import make_backend
from jobcache.cache import JobCache as AsyncJobCache
from jobcache.errors import CacheClosed, WriteMisuse
from jobcache.serializers import serializer_of
from jobcache.settings import CacheSettings
from jobcache.sync._cached import SyncCachedFunction, require_plain_function
from jobcache.sync._loop_thread import CallingThread, LoopThread, forks
from jobcache.throttle import ThreadedThrottle as Throttle

if TYPE_CHECKING:
    from collections.abc import (
        Awaitable,
        Callable,
        Collection,
        Coroutine,
        Iterable,
        Iterator,
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

__all__ = ["CacheClosed", "JobCache", "Throttle", "Write"]

P = ParamSpec("P")
T = TypeVar("T")


def _documented_as(source: Callable[..., object]) -> Callable[[T], T]:
    """Append the docstring of the asynchronous method or class to that of the decorated one."""

    def document(method: T) -> T:
        added = re.sub(r"\b(async|await) ", "", inspect.getdoc(source) or "")
        method.__doc__ = "\n\n".join(filter(None, (inspect.getdoc(method), added)))
        return method

    return document


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
    @_documented_as(AsyncJobCache.from_url)
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

    @_documented_as(AsyncJobCache.read)
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

    @_documented_as(AsyncJobCache.read_many)
    def read_many(
        self,
        keys: Iterable[str],
        load_many: Callable[[Sequence[str]], Mapping[str, Document]],
    ) -> ReadResults:
        """Calls `load_many` in this thread, if a load is needed."""
        wanted = list(keys)  # iterated in the caller's thread

        def work(cache: AsyncJobCache, caller: CallingThread) -> Awaitable[ReadResults]:
            def load_there(some: Sequence[str]) -> Awaitable[Mapping[str, Document]]:
                return caller.ask(as_part_of_this_load(partial(load_many, some)))

            return cache.read_many(wanted, load_there)

        return self._here().call(work)

    @_documented_as(AsyncJobCache.get_or_load)
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

    @_documented_as(AsyncJobCache.cached)
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
    @_documented_as(AsyncJobCache.write)
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
            return _Writing(loop_thread, _unwrapped(loop_thread, keys))
        return _Writing(loop_thread, _through(loop_thread, transaction, keys))

    @_documented_as(AsyncJobCache.wait_for_newer)
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


class BlockingWriteSteps:
    """The steps of one write, around a transaction of this thread.

    They are those of `jobcache._engine.writing.WriteSteps`. If the cache is closed meanwhile, the
    fences stay until they expire, as if the process had died.

    Args:
        loop_thread: of this process.
    """

    def __init__(self, loop_thread: LoopThread[AsyncJobCache]) -> None:
        self._loop_thread = loop_thread
        self._steps = loop_thread.call(_begin)
        self.record = self._steps.record
        self.check = self._steps.check

    @_documented_as(WriteSteps.fence)
    def fence(self, keys: Iterable[str]) -> None:
        self._loop_thread.call(lambda _, __: self._steps.fence(keys))

    @_documented_as(WriteSteps.withdraw)
    def withdraw(self) -> None:
        with suppress(CacheClosed):
            self._loop_thread.call(lambda _, __: self._steps.withdraw())

    @_documented_as(WriteSteps.publish)
    def publish(self) -> None:
        with suppress(CacheClosed):
            self._loop_thread.call(lambda _, __: self._steps.publish())


def begin_write(cache: JobCache) -> BlockingWriteSteps:
    """Return the steps of a new write, for callers that take them one by one."""
    return BlockingWriteSteps(cache._here())  # noqa: SLF001 - no method of users, as in the asynchronous cache


@_documented_as(AsyncWrite)
class Write(Generic[T]):
    """A write of the synchronous cache, in its block."""

    def __init__(self, transaction: T, steps: BlockingWriteSteps) -> None:
        self.transaction = transaction
        self._steps = steps

    @_documented_as(AsyncWrite.fence)
    def fence(self, *keys: str) -> None:  # noqa: D102 - documented by the decorator
        self._steps.fence(keys)

    @_documented_as(AsyncWrite.publish)
    def publish(self, key: str, document: Document) -> None:  # noqa: D102 - documented by the decorator
        self._steps.record(key, document)

    @_documented_as(AsyncWrite.outdate)
    def outdate(self, key: str, version: int) -> None:  # noqa: D102 - documented by the decorator
        self._steps.record(key, version)


@contextmanager
def _through(
    loop_thread: LoopThread[AsyncJobCache],
    transaction: AbstractContextManager[T],
    keys: Sequence[str],
) -> Iterator[Write[T]]:
    """Wrap a transaction of a thread, in the steps of `WriteCoordinator.through`."""
    steps = BlockingWriteSteps(loop_thread)
    enclosing = Enclosing(transaction)
    reached_commit = False
    try:
        with transaction as entered:
            on_commit = enclosing.entered(entered)
            steps.fence(keys)
            yield Write(entered, steps)
            steps.check()
            enclosing.leaving()
            if on_commit is not None:
                on_commit(steps.publish)
            reached_commit = True
    finally:
        if not reached_commit:
            steps.withdraw()
    if reached_commit and on_commit is None:
        enclosing.left()
        steps.publish()


@contextmanager
def _unwrapped(
    loop_thread: LoopThread[AsyncJobCache], keys: Sequence[str]
) -> Iterator[Write[None]]:
    """Fence keys around a block of a thread, in the steps of `WriteCoordinator.unwrapped`."""
    check_autocommit()
    steps = BlockingWriteSteps(loop_thread)
    try:
        steps.fence(keys)
    except BaseException:
        steps.withdraw()
        raise
    yield Write(None, steps)
    steps.check()
    steps.publish()


async def _begin(cache: AsyncJobCache, _: CallingThread) -> WriteSteps:
    return cache.writes.begin()


class _Writing(Generic[T]):
    """The block of a write, which a forked child leaves without ending it."""

    def __init__(
        self, loop_thread: LoopThread[AsyncJobCache], block: AbstractContextManager[Write[T]]
    ) -> None:
        self._loop_thread = loop_thread
        self._block = block

    def __enter__(self) -> Write[T]:
        return self._block.__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        if self._loop_thread.here:
            return self._block.__exit__(kind, error, trace)
        self._loop_thread.abandoned.append(
            self._block
        )  # kept, because its finalizer would end the transaction
        if kind is None:
            raise WriteMisuse("a fork within the block left with two processes at its end")
        return False

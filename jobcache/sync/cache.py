"""`jobcache` for synchronous code: workers of Celery or RQ, Django, scripts.

    cache = JobCache(CacheSettings(backend="redis"))
    answer = cache.read(progress_key(7), load)

The methods are the asynchronous ones, run on an event loop in a thread of this process (see
`loop_thread`), on which probes and shared loads go on between calls. `load` is called in the thread
that has called the cache, and the transaction never leaves it. Any number of threads may use one
cache; equal reads of theirs are shared.

Rejected: to hand the transaction to the asynchronous write, which enters and leaves it by errands.
What a signal leaves half entered is then ended by whichever thread lets go of it last, and drivers
refuse that.

After a fork the child has a loop, a backend and connections of its own, made at its first call. A
copy or an unpickled cache has the same settings and nothing else: no entries, no statistics.
"""

from __future__ import annotations

import inspect
import re
import time
from contextlib import contextmanager, suppress
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeVar

from jobcache._engine.loading import as_part_of_this_load
from jobcache._engine.options import split
from jobcache._engine.transactions import Enclosing
from jobcache._engine.writing import Write as AsyncWrite
from jobcache._threads import refuse_eventlet
from jobcache.backends.registry import make_backend
from jobcache.cache import JobCache as AsyncJobCache
from jobcache.errors import CacheClosed, WriteMisuse
from jobcache.settings import CacheSettings
from jobcache.sync._loop_thread import CallingThread, LoopThread, forks
from jobcache.throttle import ThreadedThrottle as Throttle

if TYPE_CHECKING:
    from collections.abc import (
        Awaitable,
        Callable,
        Coroutine,
        Iterable,
        Iterator,
        Mapping,
        Sequence,
    )
    from contextlib import AbstractContextManager
    from types import TracebackType
    from typing import Self, Unpack

    from jobcache._engine.options import CacheOptions, URLOptions
    from jobcache._engine.writing import WriteSteps
    from jobcache.lifetimes import Lifetimes
    from jobcache.models import ReadResult, ReadResults
    from jobcache.observability.statistics import Statistics
    from jobcache.protocol.backend import CacheBackend, Document

__all__ = ["CacheClosed", "JobCache", "Throttle", "Write"]

P = ParamSpec("P")
T = TypeVar("T")


def _told_as(source: Callable[..., object]) -> Callable[[T], T]:
    """Give a method or class the documentation of the asynchronous one, after its own line."""

    def tell(method: T) -> T:
        told = re.sub(r"\b(async|await) ", "", inspect.getdoc(source) or "")
        method.__doc__ = "\n\n".join(filter(None, (inspect.getdoc(method), told)))
        return method

    return tell


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
    """The synchronous form of `jobcache.JobCache`.

    Interrupted (by a signal's handler: Ctrl-C, a task's time limit), a call ends at once, and what
    it shared with others goes on. A write that is interrupted within its block rolls back; after
    its commit it is published all the same, or else its fence stays until it expires.

    Args:
        backend: settings, or what makes a backend: called once in each process that uses the cache,
            in the loop's thread.
        options: see `jobcache.JobCache`. `shadow_rate` is the settings' unless it is given; what is
            compared is loaded in a thread of its own, as the reader has gone on by then. A load
            that cannot be called there is not compared.

    Raises:
        UnsupportedRuntime: eventlet has patched this process; also raised by later calls, if it is
            patched after that. gevent is supported.
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
        # Those of the processes before this one are kept, unused: to let go of a connection would
        # be felt by the process that it belongs to.
        self._bridges: dict[int, LoopThread[AsyncJobCache]] = {}
        self._closed = False

    @classmethod
    @_told_as(AsyncJobCache.from_url)
    def from_url(  # noqa: D102 - it has the asynchronous one's
        cls, url: str, **options: Unpack[URLOptions]
    ) -> Self:
        store, cache = split(options)
        return cls(CacheSettings.from_url(url, **store), **cache)

    def _here(self) -> LoopThread[AsyncJobCache]:
        """This process's bridge. Takes no lock, which a fork could have found taken."""
        if self._closed:
            raise CacheClosed("the cache is closed")
        loop_thread = self._bridges.get(forks.count)
        if loop_thread is None:
            made = LoopThread("jobcache", self._settle, AsyncJobCache.aclose)
            loop_thread = self._bridges.setdefault(forks.count, made)
        return loop_thread

    def _settle(self) -> AsyncJobCache:
        return AsyncJobCache(self._make(), **self._options)

    def __getstate__(self) -> dict[str, Any]:
        """Return the settings, for `copy` and `pickle`."""
        options = {name: it for name, it in self._options.items() if name != "statistics"}
        return vars(self) | {"_options": options, "_bridges": {}, "_closed": False}

    @_told_as(AsyncJobCache.read)
    def read(
        self, key: str, load: Callable[[], Document | None], *, min_version: int = 0
    ) -> ReadResult:
        """Calls `load`, if at all, in this thread.

        Of equal calls that come together only one calls its own; if it is interrupted, another.
        """

        def work(cache: AsyncJobCache, caller: CallingThread) -> Awaitable[ReadResult]:
            # A hit has returned when it is compared, which is all that may ask afterwards.
            def load_there() -> Awaitable[Document | None]:
                return caller.ask(as_part_of_this_load(load), afterwards=True)

            return cache.read(key, load_there, min_version=min_version)

        return self._here().call(work)

    @_told_as(AsyncJobCache.read_many)
    def read_many(
        self,
        keys: Iterable[str],
        load_many: Callable[[Sequence[str]], Mapping[str, Document]],
    ) -> ReadResults:
        """Calls `load_many`, if at all, in this thread."""
        wanted = list(keys)  # an iterable of the caller's is not the loop's to go through

        def work(cache: AsyncJobCache, caller: CallingThread) -> Awaitable[ReadResults]:
            def load_there(some: Sequence[str]) -> Awaitable[Mapping[str, Document]]:
                return caller.ask(as_part_of_this_load(partial(load_many, some)))

            return cache.read_many(wanted, load_there)

        return self._here().call(work)

    @_told_as(AsyncJobCache.write)
    def write(
        self, transaction: AbstractContextManager[T], *keys: str
    ) -> AbstractContextManager[Write[T]]:
        """The transaction does not leave this thread.

        If it is Django's `atomic()` within another atomic block (`ATOMIC_REQUESTS`, for one), the
        keys stay fenced when the block ends, and are handed over when the outermost one commits. If
        that rolls back, the fences stay until they expire, and readers ask the source until then.

        If this process is forked within the block, the write is the parent's: the child leaves the
        block without touching the transaction.
        """
        return _Writing(self._here(), transaction, keys)

    @_told_as(AsyncJobCache.wait_for_newer)
    def wait_for_newer(
        self, key: str, load: Callable[[], Document | None], version: int, timeout: float
    ) -> ReadResult | None:
        """Calls `load`, if at all, in this thread, which waits."""
        until = time.monotonic() + timeout

        def work(cache: AsyncJobCache, caller: CallingThread) -> Awaitable[ReadResult | None]:
            # Begun anew, it has only the rest of its time.
            left = until - time.monotonic()

            def load_there() -> Awaitable[Document | None]:
                return caller.ask(as_part_of_this_load(load))

            return cache.wait_for_newer(key, load_there, version, left)

        return self._here().call(work)

    start = _made_from(AsyncJobCache.start)
    invalidate = _made_from(AsyncJobCache.invalidate)
    invalidate_all = _made_from(AsyncJobCache.invalidate_all)
    info = _made_from(_at_once(AsyncJobCache.info))
    cancel_waiters = _made_from(_at_once(AsyncJobCache.cancel_waiters))

    @property
    def lifetimes(self) -> Lifetimes:
        """How long entries live."""
        return self._here().call(_lifetimes)

    @property
    def statistics(self) -> Statistics:
        """What has been done in this process.

        If an object of the caller's is counted into, a forked child goes on from its copy.
        """
        return self._here().call(_statistics)

    def close(self) -> None:
        """End what goes on in this process, let publishes under way finish, close the backend.

        Calls that still wait in other threads raise `CacheClosed`, as all later ones do; waits for
        a newer version end with None. A write in its block may commit all the same. Safe to call
        twice. At an interpreter's exit the same is done, for some seconds at most.
        """
        self._closed = True
        loop_thread = self._bridges.get(forks.count)
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


@_told_as(AsyncWrite)
class Write(Generic[T]):
    """The synchronous form of `jobcache.Write`."""

    def __init__(
        self, transaction: T, steps: WriteSteps, loop_thread: LoopThread[AsyncJobCache]
    ) -> None:
        self.transaction = transaction
        self._steps = steps
        self._loop_thread = loop_thread

    @_told_as(AsyncWrite.fence)
    def fence(self, *keys: str) -> None:  # noqa: D102 - it has the asynchronous one's
        self._loop_thread.call(lambda _, __: self._steps.fence(keys))

    @_told_as(AsyncWrite.publish)
    def publish(self, key: str, document: Document) -> None:  # noqa: D102 - the same
        self._steps.record(key, document)

    @_told_as(AsyncWrite.outdate)
    def outdate(self, key: str, version: int) -> None:  # noqa: D102 - the same
        self._steps.record(key, version)


@contextmanager
def _through(
    loop_thread: LoopThread[AsyncJobCache],
    transaction: AbstractContextManager[T],
    keys: Sequence[str],
) -> Iterator[Write[T]]:
    """As `WriteCoordinator.through`, in a thread.

    Once the cache is closed, fences stay until they expire, as if the process had died.
    """
    steps = loop_thread.call(_begin)
    enclosing = Enclosing(transaction)
    reached_commit = False

    def publish() -> None:
        with suppress(CacheClosed):
            loop_thread.call(lambda _, __: steps.publish())

    try:
        with transaction as entered:
            on_commit = enclosing.entered(entered)
            loop_thread.call(lambda _, __: steps.fence(keys))
            yield Write(entered, steps, loop_thread)
            steps.check()
            enclosing.leaving()
            if on_commit is not None:
                on_commit(publish)
            reached_commit = True
    finally:
        if not reached_commit:
            with suppress(CacheClosed):
                loop_thread.call(lambda _, __: steps.withdraw())
    if reached_commit and on_commit is None:
        enclosing.left()
        publish()


async def _begin(cache: AsyncJobCache, _: CallingThread) -> WriteSteps:
    return cache.writes.begin()


class _Writing(Generic[T]):
    """A write's block: `_through`, unless a fork left it."""

    def __init__(
        self,
        loop_thread: LoopThread[AsyncJobCache],
        transaction: AbstractContextManager[T],
        keys: Sequence[str],
    ) -> None:
        self._loop_thread = loop_thread
        self._block = _through(loop_thread, transaction, keys)

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
        self._loop_thread.abandoned.append(self._block)  # or its end would end the transaction
        if kind is None:
            raise WriteMisuse("a fork within the block left with two processes at its end")
        return False

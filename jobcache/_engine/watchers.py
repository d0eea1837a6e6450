"""Waiters: callers that have a version of a document and wait for a newer one.

All waiters of a key share one *watch*, and its checks: at most one check of a key runs at a time. A
waiter costs a future and a timer, a watch costs one timer more. A task runs only during a check.

    the feed reports a change   look the cell up. A newer entry answers the waiters. A fence or a
                                lease means that a newer version is on its way, which the feed will
                                report, too; if it does not, read as any caller does
    it reports a commit         as backend "postgres" does: nothing is on its way, so read at once
    this process has written    the same; but nothing is on its way any more, so read at once
    no report                   read every few seconds while the feed is live, because a report may
                                be lost; more often while it is not

A waiter registers first and reads then, so that no version falls between the two:

    A reads v1; W commits v2, and there is no waiter to notify; A registers, and waits for v3

A check may return any version newer than the waiter's. Versions that were acknowledged before the
waiter came were returned by its own read.

A report that comes during a check causes another check, because the first one may have looked
before the change.

Rejected: giving waiters the documents that a write of this process has published, without a lookup.
A waiter that came meanwhile may be behind a newer version, which another process has acknowledged.
Also rejected: a condition variable, or a task, for each waiter. Thousands of tasks would wake up to
find that the change was of another key.
"""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from jobcache._engine.loading import be_independent
from jobcache.errors import SourceUnavailable
from jobcache.loaders import LoaderLeft, bound_to_caller
from jobcache.protocol.capabilities import (
    SupportsChangeFeed,
    SupportsHealth,
    SupportsNotifications,
    SupportsPeek,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence

    from jobcache.models import Load, ReadResult
    from jobcache.protocol.backend import CacheBackend

    CallLater = Callable[[float, Callable[[], object]], "Timer"]


class Timer(Protocol):
    """A call that is scheduled."""

    def cancel(self) -> object:
        """Cancel the call."""


@dataclass(frozen=True, kw_only=True)
class PollIntervals:
    """How often a key is read while callers wait for a newer version. All times in seconds.

    Attributes:
        with_feed: the longest time between two checks while changes are reported.
        without_feed: the time between two checks while changes are not reported, if few keys are
            watched.
        checks_per_second: the most checks of all keys together while changes are not reported,
            because each may be a load. With more keys each key is checked less often, but at least
            every `with_feed` seconds.
        after_report: the time after which a key is read if a report was not followed by an entry.
        random: numbers in [0, 1), which spread checks over time.
    """

    with_feed: float = 5.0
    without_feed: float = 1.0
    checks_per_second: float = 200.0
    after_report: float = 0.25
    random: Callable[[], float] = random.random


@dataclass(frozen=True, slots=True)
class Readers:
    """Three ways to read a key, each with more effort. Arguments: key, loader, lowest version.

    Attributes:
        peek: returns a hit of this process, without waiting.
        lookup: returns a hit of the store, without a load.
        read: reads as `JobCache.read` does.
    """

    peek: Callable[[str, Load, int], ReadResult | None]
    lookup: Callable[[str, Load, int], Awaitable[ReadResult | None]]
    read: Callable[[str, Load, int], Awaitable[ReadResult]]


class Waiter:
    """A caller that has a version and waits for a newer one. Made by `Watchers.registered`.

    Attributes:
        version: the version that the caller has.
        future: the newer document; None if the time is up.
    """

    __slots__ = ("future", "version")

    def __init__(self, version: int) -> None:
        self.version = version
        self.future: asyncio.Future[ReadResult | None] = asyncio.get_running_loop().create_future()

    def resolve(self, result: ReadResult | None) -> None:
        """Set the result, unless the waiter has one."""
        if not self.future.done():
            self.future.set_result(result)

    def fail(self, error: Exception) -> None:
        """Set an error as the result, unless the waiter has one."""
        if not self.future.done():
            self.future.set_exception(error)


class _Watch:
    """The waiters of one key, and what will check it next."""

    __slots__ = ("again", "check", "key", "load", "timer", "waiters")

    def __init__(self, key: str, load: Load) -> None:
        self.key = key
        self.load = load
        self.waiters: set[Waiter] = set()
        self.timer: Timer | None = None
        self.check: asyncio.Task[None] | None = None
        # During a check: None, or another check is to follow, which may load (True) or not.
        self.again: bool | None = None

    @property
    def min_version(self) -> int:
        return max(waiter.version for waiter in self.waiters)


class Watchers:
    """The waiters of one `JobCache`.

    Args:
        backend: its change feed reports changes, if it has one.
        readers: read a key in a check.
        intervals: how often keys are checked.
        later: calls a function after so many seconds; None: uses the running loop's clock.

    Attributes:
        checks: the number of checks so far.
    """

    def __init__(
        self,
        backend: CacheBackend,
        readers: Readers,
        intervals: PollIntervals,
        later: CallLater | None = None,
    ) -> None:
        self.checks = 0
        self._readers = readers
        self._intervals = intervals
        self._call_later = later
        self._watches: dict[str, _Watch] = {}
        self._running: set[asyncio.Task[None]] = set()
        self._stopped = False
        self._backend = backend
        self._feed = backend.feed() if isinstance(backend, SupportsChangeFeed) else None
        # Its reports come after the commits: nothing is on its way, so a check may load at once.
        self._committed = isinstance(backend, SupportsNotifications)
        # Without a feed, a backend with `peek` is in this process, and so are all its writers.
        self._local = self._feed is None and isinstance(backend, SupportsPeek)
        if self._feed is not None:
            self._feed.listen(self)

    # --- waiters ---

    async def wait_for_newer(
        self,
        key: str,
        load: Load,
        version: int,
        timeout: float,  # noqa: ASYNC109 - it ends with a value, and costs no task
    ) -> ReadResult | None:
        """Return the document at `key` once it is newer than `version`; see `JobCache`."""
        until, left = time.monotonic() + timeout, timeout
        async with bound_to_caller(load) as bound_load:
            while True:
                with self.registered(key, bound_load, version, left) as waiter:
                    result = await self._readers.read(key, bound_load, version)
                    if result.entry.version > version:
                        return result
                    try:
                        return await waiter.future
                    except LoaderLeft:  # a check used the load of a caller who has gone
                        left = until - time.monotonic()

    @contextmanager
    def registered(self, key: str, load: Load, version: int, timeout: float) -> Iterator[Waiter]:
        """Register a waiter while the block runs. Resolve it with None after `timeout` seconds."""
        waiter = Waiter(version)
        if self._stopped or not timeout > 0:
            waiter.resolve(None)
            yield waiter
            return
        if self._feed is not None:
            self._feed.start()
        watch = self._watches.get(key)
        if watch is None:
            watch = self._watches[key] = _Watch(key, load)
            self._arm(watch, self._interval())
        watch.load = load
        watch.waiters.add(waiter)
        timer = self._later(timeout, lambda: waiter.resolve(None))
        try:
            yield waiter
        finally:
            timer.cancel()
            if waiter.future.done() and not waiter.future.cancelled():
                waiter.future.exception()  # retrieved; nobody may wait for it
            watch.waiters.discard(waiter)
            self._drop_if_unwatched(watch)

    def __len__(self) -> int:
        """Return the number of watched keys."""
        return len(self._watches)

    @property
    def waiters(self) -> int:
        """The number of waiters."""
        return sum(len(watch.waiters) for watch in self._watches.values())

    def _drop_if_unwatched(self, watch: _Watch) -> None:
        if not watch.waiters and self._watches.get(watch.key) is watch:
            del self._watches[watch.key]
            self._disarm(watch)
            if watch.check is not None:
                watch.check.cancel()

    # --- notifications ---

    def notify_written(self, keys: Iterable[str]) -> None:
        """Check keys that this process has changed; the change is complete."""
        for key in keys:
            watch = self._watches.get(key)
            if watch is None:
                continue
            result = self._readers.peek(key, watch.load, watch.min_version)
            if result is None or not self._resolve(watch, result):
                self._check(watch, may_load=True)

    def changed(self, keys: Sequence[str]) -> None:
        """Check keys that the feed has reported."""
        if self._watches:
            for key in keys:
                watch = self._watches.get(key)
                if watch is not None:
                    self._check(watch, may_load=self._committed)

    def interrupted(self) -> None:
        """Check every watched key: the feed reports nothing from now on."""
        self.check_all()

    def resumed(self) -> None:
        """Check every watched key: the feed may have missed changes."""
        self.check_all()

    def check_all(self) -> None:
        """Check every watched key soon, spread over time."""
        spread = self._interval_without_feed()
        for watch in self._watches.values():
            if watch.check is None:
                self._arm(watch, spread * self._intervals.random())
            else:
                watch.again = True

    # --- checks ---

    def _check(self, watch: _Watch, *, may_load: bool) -> None:
        """Start a check, or have one follow the check that runs."""
        if watch.check is not None:
            watch.again = may_load or watch.again is True
            return
        self._disarm(watch)
        watch.check = asyncio.create_task(self._run(watch, may_load=may_load))
        self._running.add(watch.check)
        watch.check.add_done_callback(self._running.discard)

    async def _run(self, watch: _Watch, *, may_load: bool) -> None:
        be_independent()  # of the load in which this check was started
        self.checks += 1
        result: ReadResult | None = None
        try:
            read = self._readers.read if may_load else self._readers.lookup
            result = await read(watch.key, watch.load, watch.min_version)
        except SourceUnavailable:
            may_load = True  # the next check comes at the usual time
        except Exception as error:  # noqa: BLE001 - the waiters handle it
            for waiter in watch.waiters:
                waiter.fail(error)
        watch.check = None
        if result is not None:
            self._resolve(watch, result)
        self._schedule_next(watch, expecting=not may_load and result is None)

    def _schedule_next(self, watch: _Watch, *, expecting: bool) -> None:
        """Check again now if a report came during the last check, else later.

        Args:
            watch: what was checked.
            expecting: whether a report was not followed by an entry, so that one is on its way.
        """
        again, watch.again = watch.again, None
        if self._watches.get(watch.key) is not watch:
            return
        if again is not None:
            self._check(watch, may_load=again)
        else:
            self._arm(watch, self._intervals.after_report if expecting else self._interval())

    def _resolve(self, watch: _Watch, result: ReadResult) -> bool:
        """Resolve the waiters that have an older version; return whether there were any."""
        served = [each for each in watch.waiters if each.version < result.entry.version]
        for waiter in served:
            waiter.resolve(result)
        watch.waiters.difference_update(served)
        self._drop_if_unwatched(watch)
        return bool(served)

    # --- intervals ---

    def _interval(self) -> float:
        """Return the seconds until the next regular check of a key."""
        live = self._local or (self._feed is not None and self._feed.live)
        with_feed = live and self._in_use()
        longest = self._intervals.with_feed if with_feed else self._interval_without_feed()
        return longest * (1 - 0.3 * self._intervals.random())

    def _interval_without_feed(self) -> float:
        intervals = self._intervals
        at_rate = len(self._watches) / intervals.checks_per_second
        return min(intervals.with_feed, max(intervals.without_feed, at_rate))

    def _in_use(self) -> bool:
        return not isinstance(self._backend, SupportsHealth) or self._backend.condition().available

    def _arm(self, watch: _Watch, seconds: float) -> None:
        """Start a check after so many seconds, in place of the one that is scheduled."""
        self._disarm(watch)
        watch.timer = self._later(seconds, lambda: self._check(watch, may_load=True))

    def _disarm(self, watch: _Watch) -> None:
        if watch.timer is not None:
            watch.timer.cancel()
            watch.timer = None

    def _later(self, seconds: float, call: Callable[[], object]) -> Timer:
        if self._call_later is not None:
            return self._call_later(seconds, call)
        return asyncio.get_running_loop().call_later(seconds, call)

    # --- the end ---

    def stop(self) -> None:
        """Resolve all waiters with None, and all later ones at once."""
        self._stopped = True
        for watch in self._watches.values():
            self._disarm(watch)
            if watch.check is not None:
                watch.check.cancel()
            for waiter in watch.waiters:
                waiter.resolve(None)
        self._watches.clear()

    async def aclose(self) -> None:
        """Stop, and wait until all running checks have ended."""
        self.stop()
        if self._running:
            await asyncio.wait(self._running)

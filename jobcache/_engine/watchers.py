"""Waiters: callers who hold a version of a document, and are told when there is a newer one.

Who waits for the same key shares one watch, and with it one check at a time, however many they
are. A waiter costs a future and a timer, a watch one timer more; a task runs only while a check
does.

    the feed tells of a change    look at the cell: a newer entry answers the waiters. No entry is
                                  a fence or a lease: something newer is on its way, and will be
                                  told, too. If it is not, read as anybody does
    this process has written      the same, but that nothing is on its way: read at once
    nothing tells of anything     read every so often: seldom where a report may have been lost,
                                  more often where nothing reports (no feed, or it is cut)

A waiter registers first and reads then, so nothing falls between the two:

    A reads v1; W commits v2, and there is nobody to tell; A registers, and waits for v3

What a check finds need be no newer than the check: waiters are answered with what is newer than
they hold, and what was acknowledged before they came they have read themselves.

A report that comes while a check runs asks for another one: that one may have looked before.

Rejected: to hand the waiters what a write of this process has published, without a look. A waiter
who came in between may be behind a newer version by then, which another process has acknowledged.
And a condition variable, or a task, for each waiter: thousands of tasks woken to find out that it
was another's turn.
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
from jobcache.loaders import LoaderLeft, attended
from jobcache.protocol.backend import SupportsChangeFeed, SupportsHealth, SupportsPeek

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence

    from jobcache.models import Load, ReadResult
    from jobcache.protocol.backend import CacheBackend

    Later = Callable[[float, Callable[[], object]], "Timer"]


class Timer(Protocol):
    """Something that will be called."""

    def cancel(self) -> object:
        """Not any more."""


@dataclass(frozen=True, kw_only=True)
class PollIntervals:
    """How often a key is read that somebody waits for. All times in seconds.

    Attributes:
        told: at most between two checks where changes are told: one may be lost all the same.
        untold: about as much where they are not, as long as few keys are waited for.
        most: checks a second for all keys together where changes are not told, for each may be a
            load; with more keys each is checked less often, but never less than `told` says.
        settle: after a report of what is no entry, until it is no longer waited for.
        random: numbers in [0, 1), which keep checks from coming all together.
    """

    told: float = 5.0
    untold: float = 1.0
    most: float = 200.0
    settle: float = 0.25
    random: Callable[[], float] = random.random


@dataclass(frozen=True, slots=True)
class Readers:
    """What a check does, in steps that ask more and more; key, loader and version go in.

    Attributes:
        peek: the entry that is at hand in this very turn, if it would be served.
        lookup: the entry that the cache holds, if it would be served; asks no source.
        read: as `JobCache.read`.
    """

    peek: Callable[[str, Load, int], ReadResult | None]
    lookup: Callable[[str, Load, int], Awaitable[ReadResult | None]]
    read: Callable[[str, Load, int], Awaitable[ReadResult]]


class Waiter:
    """Somebody who has a version, and wants a newer one. Made by `Watchers.registered`."""

    __slots__ = ("answered", "version")

    def __init__(self, version: int) -> None:
        self.version = version
        self.answered: asyncio.Future[ReadResult | None] = (
            asyncio.get_running_loop().create_future()
        )

    def answer(self, answer: ReadResult | None) -> None:
        """Tell it, unless it has been told."""
        if not self.answered.done():
            self.answered.set_result(answer)

    def fail(self, error: Exception) -> None:
        """Tell it why it will not be told."""
        if not self.answered.done():
            self.answered.set_exception(error)


class _Watch:
    __slots__ = ("again", "check", "key", "load", "timer", "waiters")

    def __init__(self, key: str, load: Load) -> None:
        self.key = key
        self.load = load
        self.waiters: set[Waiter] = set()
        self.timer: Timer | None = None
        self.check: asyncio.Task[None] | None = None
        self.again: bool | None = None  # while a check runs: is another asked for, and a whole one?

    @property
    def min_version(self) -> int:
        return max(waiter.version for waiter in self.waiters)


class Watchers:
    """The waiters of one `JobCache`.

    Args:
        backend: whose changes are told, if it can tell.
        looks: what checks do.
        times: how often.
        later: calls a function after so many seconds; None: by the running loop's clock.

    Attributes:
        checks: how many have been made.
    """

    def __init__(
        self,
        backend: CacheBackend,
        looks: Readers,
        times: PollIntervals,
        later: Later | None = None,
    ) -> None:
        self.checks = 0
        self._readers = looks
        self._times = times
        self._call_later = later
        self._watches: dict[str, _Watch] = {}
        self._running: set[asyncio.Task[None]] = set()
        self._stopped = False
        self._backend = backend
        self._feed = backend.feed() if isinstance(backend, SupportsChangeFeed) else None
        # Cells that can be peeked at, and that no feed reports on, are this process's own.
        self._alone = self._feed is None and isinstance(backend, SupportsPeek)
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
        async with attended(load) as attended_load:
            while True:
                with self.registered(key, attended_load, version, left) as waiter:
                    result = await self._readers.read(key, attended_load, version)
                    if result.entry.version > version:
                        return result
                    try:
                        return await waiter.answered
                    except LoaderLeft:  # a check used the load of a caller who has gone
                        left = until - time.monotonic()

    @contextmanager
    def registered(self, key: str, load: Load, version: int, timeout: float) -> Iterator[Waiter]:
        """A waiter, for as long as the block runs: it is answered, or with None in `timeout` s."""
        waiter = Waiter(version)
        if self._stopped or not timeout > 0:
            waiter.answer(None)
            yield waiter
            return
        if self._feed is not None:
            self._feed.start()
        watch = self._watches.get(key)
        if watch is None:
            watch = self._watches[key] = _Watch(key, load)
            self._arm(watch, self._pause())
        watch.load = load
        watch.waiters.add(waiter)
        timer = self._later(timeout, lambda: waiter.answer(None))
        try:
            yield waiter
        finally:
            timer.cancel()
            if waiter.answered.done() and not waiter.answered.cancelled():
                waiter.answered.exception()  # seen, though its own read may have failed first
            watch.waiters.discard(waiter)
            self._drop_if_unwatched(watch)

    def __len__(self) -> int:
        """How many keys are waited for."""
        return len(self._watches)

    @property
    def waiters(self) -> int:
        """How many wait."""
        return sum(len(watch.waiters) for watch in self._watches.values())

    def _drop_if_unwatched(self, watch: _Watch) -> None:
        if not watch.waiters and self._watches.get(watch.key) is watch:
            del self._watches[watch.key]
            self._disarm(watch)
            if watch.check is not None:
                watch.check.cancel()

    # --- what tells of changes ---

    def notify_written(self, keys: Iterable[str]) -> None:
        """This process has made changes; nothing of them is on its way any more."""
        for key in keys:
            watch = self._watches.get(key)
            if watch is None:
                continue
            answer = self._readers.peek(key, watch.load, watch.min_version)
            if answer is None or not self._hand_out(watch, answer):
                self._check(watch, whole=True)

    def changed(self, keys: Sequence[str]) -> None:
        """See `ChangeListener`."""
        if self._watches:
            for key in keys:
                watch = self._watches.get(key)
                if watch is not None:
                    self._check(watch, whole=False)

    def interrupted(self) -> None:
        """See `ChangeListener`."""
        self.check_all()

    def resumed(self) -> None:
        """See `ChangeListener`."""
        self.check_all()

    def check_all(self) -> None:
        """Whatever is waited for may have changed: check it all soon, but not all at once."""
        spread = self._spread()
        for watch in self._watches.values():
            if watch.check is None:
                self._arm(watch, spread * self._times.random())
            else:
                watch.again = True

    # --- checks ---

    def _check(self, watch: _Watch, *, whole: bool) -> None:
        if watch.check is not None:
            watch.again = whole or watch.again is True
            return
        self._disarm(watch)
        watch.check = asyncio.create_task(self._run(watch, whole=whole))
        self._running.add(watch.check)
        watch.check.add_done_callback(self._running.discard)

    async def _run(self, watch: _Watch, *, whole: bool) -> None:
        be_independent()  # of a load in which this check was asked for
        self.checks += 1
        answer: ReadResult | None = None
        try:
            if whole:
                answer = await self._readers.read(watch.key, watch.load, watch.min_version)
            else:
                answer = await self._readers.lookup(watch.key, watch.load, watch.min_version)
        except SourceUnavailable:
            whole = True  # to be asked again, at the usual time
        except Exception as error:  # noqa: BLE001 - it is the waiters' to handle
            for waiter in watch.waiters:
                waiter.fail(error)
        watch.check = None
        if answer is not None:
            self._hand_out(watch, answer)
        self._go_on(watch, settled=whole or answer is not None)

    def _go_on(self, watch: _Watch, *, settled: bool) -> None:
        """After a check: another one now, if it was asked for meanwhile, or later."""
        again, watch.again = watch.again, None
        if self._watches.get(watch.key) is not watch:
            return
        if again is not None:
            self._check(watch, whole=again)
        else:
            self._arm(watch, self._pause() if settled else self._times.settle)

    def _hand_out(self, watch: _Watch, answer: ReadResult) -> bool:
        """Answer those who have less; False if nobody has."""
        served = [each for each in watch.waiters if each.version < answer.entry.version]
        for waiter in served:
            waiter.answer(answer)
        watch.waiters.difference_update(served)
        self._drop_if_unwatched(watch)
        return bool(served)

    # --- times ---

    def _pause(self) -> float:
        told = (self._alone or (self._feed is not None and self._feed.live)) and self._in_use()
        longest = self._times.told if told else self._spread()
        return longest * (1 - 0.3 * self._times.random())

    def _spread(self) -> float:
        times = self._times
        return min(times.told, max(times.untold, len(self._watches) / times.most))

    def _in_use(self) -> bool:
        return not isinstance(self._backend, SupportsHealth) or self._backend.condition().available

    def _arm(self, watch: _Watch, seconds: float) -> None:
        self._disarm(watch)
        watch.timer = self._later(seconds, lambda: self._check(watch, whole=True))

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
        """Answer all who wait with None, now, and from now on all who would wait."""
        self._stopped = True
        for watch in self._watches.values():
            self._disarm(watch)
            if watch.check is not None:
                watch.check.cancel()
            for waiter in watch.waiters:
                waiter.answer(None)
        self._watches.clear()

    async def aclose(self) -> None:
        """As `stop`; checks under way have ended then."""
        self.stop()
        if self._running:
            await asyncio.wait(self._running)

"""Write-through: fence, the caller's transaction commits, publish, and only then acknowledge."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from jobcache._concurrency.batching import gather_all
from jobcache._engine.publishing import version_only
from jobcache._engine.transactions import Enclosing
from jobcache.errors import CacheError, InvalidDocument, WriteMisuse
from jobcache.protocol.backend import VERSION_LIMIT, Document, Entry, check_key

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
    from contextlib import AbstractAsyncContextManager

    from jobcache._engine.publishing import Publisher
    from jobcache.lifetimes import Lifetimes
    from jobcache.observability.statistics import Statistics
    from jobcache.protocol.backend import CacheBackend

    # What a write made of a key: a document, or only its version where the body is not at hand.
    _Result = Document | int

T = TypeVar("T")


class WriteSteps:
    """One write, in its steps, around a transaction that somebody else begins and ends.

        fence, before the commit; record what comes of each key; check; the commit; publish
        withdraw, if it has certainly not come to the commit

    Made by `WriteCoordinator.begin`.
    """

    def __init__(self, writes: WriteCoordinator, token: str) -> None:
        self._writes = writes
        self._token = token
        self._results: dict[str, _Result | None] = {}
        self._unsure: set[str] = set()

    async def fence(self, keys: Iterable[str]) -> None:
        """Let nothing older than the commit to come be served, or kept, under these keys."""
        await gather_all([self._fence(key) for key in keys])

    async def _fence(self, key: str) -> None:
        check_key(key)
        # Noted first: an attempt that fails or is cancelled may have put the fence up.
        self._results.setdefault(key, None)
        self._writes.statistics.fences += 1
        try:
            await self._writes.backend.fence(key, self._token)
        except CacheError:
            self._writes.statistics.errors += 1
            self._unsure.add(key)

    def record(self, key: str, result: _Result) -> None:
        """Note what `key` will be once the transaction has committed."""
        if key not in self._results:
            raise WriteMisuse(f"{key} is offered but was never fenced")
        version = result.version if isinstance(result, Document) else result
        if type(version) is not int:
            kind = type(version).__name__
            raise InvalidDocument(f"{key} is offered a {kind}, and not a document or a version")
        if not 0 < version < VERSION_LIMIT:
            raise WriteMisuse(f"{key} is offered as version {version}")
        self._results[key] = result

    def check(self) -> None:
        """The last step before the commit: nothing that was fenced has been forgotten."""
        forgotten = [key for key, result in self._results.items() if result is None]
        if forgotten:
            raise WriteMisuse(f"fenced, but never offered: {', '.join(forgotten)}")

    async def withdraw(self) -> None:
        """It will not commit: take the fences away. Goes on if the caller is cancelled."""
        await self._writes.publisher.publish_shielded(self._token, dict.fromkeys(self._results))

    async def publish(self) -> None:
        """It has committed: publish what was recorded. Goes on if the caller is cancelled."""
        try:
            # A client that goes away between commit and publish does not leave the fences up.
            await self._writes.publisher.publish_shielded(self._token, self._committed())
        finally:
            self._writes.written(self._results)

    def _committed(self) -> dict[str, Entry]:
        now_ms = self._writes.clock_ms()
        entries: dict[str, Entry] = {}
        for key, result in self._results.items():
            if isinstance(result, Document):
                entry = self._writes.lifetimes.entry(result, now_ms)
                # A fence that may arrive late, followed by its publish, would store what others
                # have overtaken; see `guard`.
                entries[key] = version_only(entry) if key in self._unsure else entry
            elif result is not None:
                entries[key] = Entry(result, "", "", None, b"", "identity", now_ms, 0, 0)
        return entries


class Write(Generic[T]):
    """The inside of `JobCache.write`: fence what will change, then say what it became.

    Attributes:
        transaction: what entering the caller's transaction returned.
    """

    def __init__(self, transaction: T, steps: WriteSteps) -> None:
        self.transaction = transaction
        self._steps = steps

    async def fence(self, *keys: str) -> None:
        """Fence more keys, such as those known only once a row has been inserted.

        Must come before the commit, so within the block.
        """
        await self._steps.fence(keys)

    def publish(self, key: str, document: Document) -> None:
        """Say what `key` is, once the transaction has committed.

        Raises:
            WriteMisuse: `key` is not fenced, or the version is not a committed one.
        """
        self._steps.record(key, document)

    def outdate(self, key: str, version: int) -> None:
        """Say that `key` has changed to `version`, whose body is not at hand: it is left empty.

        Raises:
            WriteMisuse: as for `publish`.
        """
        self._steps.record(key, version)


@dataclass(frozen=True, kw_only=True)
class WriteCoordinator:
    """The writes of one `JobCache`; see there.

    Attributes:
        backend: what is fenced.
        publisher: how committed versions are handed over.
        lifetimes: how long they live.
        statistics: counted into.
        clock_ms: wall-clock time in milliseconds since the epoch.
        token: makes unique tokens.
        written: told of keys once they have changed, before the write is acknowledged.
        bind: raises an error if the running event loop is not the cache's.
    """

    backend: CacheBackend
    publisher: Publisher
    lifetimes: Lifetimes
    statistics: Statistics
    clock_ms: Callable[[], int]
    token: Callable[[], str]
    written: Callable[[Iterable[str]], None]
    bind: Callable[[], None]

    def begin(self) -> WriteSteps:
        """A write, of which nothing has been done."""
        self.bind()
        return WriteSteps(self, self.token())

    @asynccontextmanager
    async def through(
        self, transaction: AbstractAsyncContextManager[T], keys: Sequence[str]
    ) -> AsyncGenerator[Write[T], None]:
        """See `JobCache.write`."""
        steps = self.begin()
        enclosing = Enclosing(transaction)
        reached_commit = False
        try:
            async with transaction as entered:
                enclosing.entered(entered)
                if keys:
                    await steps.fence(keys)
                yield Write(entered, steps)
                steps.check()
                enclosing.leaving()
                reached_commit = True
        finally:
            if not reached_commit:
                await steps.withdraw()
        if reached_commit:
            enclosing.left()
            await steps.publish()

"""Write-through: fence, the caller's transaction commits, publish; then the caller acknowledges.

W1 fences key k; its transaction commits version 2; W1 publishes version 2
a reader between the fence and the publish finds no entry, and asks the source
"""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from jobcache._concurrency.batching import gather_all
from jobcache._engine.publishing import version_only
from jobcache._engine.transactions import Enclosing, check_autocommit
from jobcache.errors import CacheError, InvalidDocument, WriteMisuse
from jobcache.protocol.capabilities import SupportsNotifications
from jobcache.protocol.document import NEWEST, VERSION_LIMIT, Document
from jobcache.protocol.entry import Entry
from jobcache.protocol.key import check_key

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
    from contextlib import AbstractAsyncContextManager

    from jobcache._engine.publishing import Publisher
    from jobcache.lifetimes import Lifetimes
    from jobcache.observability.statistics import Statistics
    from jobcache.protocol.backend import CacheBackend
    from jobcache.protocol.capabilities import Notification

    # The result of a write for one key: a document, or only its version.
    _Result = Document | int

T = TypeVar("T")
logger = logging.getLogger("jobcache")


class WriteSteps:
    """The steps of one write, around a transaction that the caller begins and ends.

        fence; record the result for each key; check; the commit; publish
        withdraw, if it is certain that the transaction was not committed
        abandon, if nobody knows

    Made by `WriteCoordinator.begin`.
    """

    def __init__(self, writes: WriteCoordinator, token: str) -> None:
        self._writes = writes
        self._token = token
        self._results: dict[str, _Result | None] = {}
        self._maybe_unfenced: set[str] = set()

    def notification(self, keys: Iterable[str]) -> Notification | None:
        """Return how the transaction can announce its keys; None if the backend needs fences."""
        backend = self._writes.backend
        if not isinstance(backend, SupportsNotifications):
            return None
        return backend.notification(tuple(keys), self._token)

    async def fence(self, keys: Iterable[str], *, notified: bool = False) -> None:
        """Fence keys: from now on, no version older than the coming commit is served or stored.

        Args:
            keys: the keys.
            notified: whether the transaction sends its `notification`, if it was given one. Then
                the keys need no fence.
        """
        backend = self._writes.backend
        if notified and isinstance(backend, SupportsNotifications):
            for key in keys:
                check_key(key)
                self._results.setdefault(key, None)
                self._writes.statistics.fences += 1
                backend.announce(key, self._token)
                logger.debug("fence %r", key, extra={"key": key, "result": "announced"})
            return
        await gather_all([self._fence(key) for key in keys])

    async def _fence(self, key: str) -> None:
        check_key(key)
        # Recorded first: an attempt that fails or is cancelled may still have set the fence.
        self._results.setdefault(key, None)
        self._writes.statistics.fences += 1
        try:
            await self._writes.backend.fence(key, self._token)
        except CacheError as error:
            self._writes.statistics.errors += 1
            self._maybe_unfenced.add(key)
            logger.debug("fence %r: %s", key, error, extra={"key": key, "result": "failed"})
        else:
            logger.debug("fence %r", key, extra={"key": key, "result": "fenced"})

    def record(self, key: str, result: _Result) -> None:
        """Record the document, or the version, that `key` has once the transaction has committed.

        Raises:
            WriteMisuse: `key` is not fenced, or the version is not one of a committed row.
            InvalidDocument: the result is neither a document nor a version.
        """
        if key not in self._results:
            raise WriteMisuse(f"{key} is published but was never fenced")
        version = result.version if isinstance(result, Document) else result
        if type(version) is not int:
            kind = type(version).__name__
            wanted = "it must be a document or a version"
            instead = "call `delete` if the document is gone" if version is None else wanted
            raise InvalidDocument(f"{key} is published as a {kind}; {instead}")
        if not 0 < version < VERSION_LIMIT:
            raise WriteMisuse(f"{key} is published as version {version}")
        self._results[key] = result

    def check(self) -> None:
        """Check, before the commit, that every fenced key has a result.

        Raises:
            WriteMisuse: a key was fenced but never published.
        """
        forgotten = [key for key, result in self._results.items() if result is None]
        if forgotten:
            raise WriteMisuse(f"fenced but never published: {', '.join(forgotten)}")

    async def withdraw(self) -> None:
        """Remove the fences of a rolled-back transaction, even if the caller is cancelled."""
        await self._writes.publisher.publish_shielded(self._token, dict.fromkeys(self._results))

    async def abandon(self) -> None:
        """End a write of which nobody knows whether it was committed. Fences stay."""
        if isinstance(self._writes.backend, SupportsNotifications):
            await self._writes.publisher.abandon_shielded(
                self._writes.backend, self._token, tuple(self._results)
            )

    async def publish(self) -> None:
        """Publish the results of a committed transaction, even if the caller is cancelled."""
        try:
            # Shielded: a client that goes away after the commit must not leave the fences behind.
            await self._writes.publisher.publish_shielded(self._token, self._committed())
        finally:
            self._writes.notify_written(self._results)

    def _committed(self) -> dict[str, Entry]:
        now_ms = self._writes.clock_ms()
        entries: dict[str, Entry] = {}
        for key, result in self._results.items():
            if isinstance(result, Document):
                entry = self._writes.lifetimes.entry(result, now_ms)
                # A fence that failed may arrive late, after another writer's commit:
                #   W1's fence of v2 is delayed; W2 commits and publishes v3; v3 is evicted
                #   W1's fence arrives, then its publish: v2 would be stored
                entries[key] = version_only(entry) if key in self._maybe_unfenced else entry
            elif result is not None:
                entries[key] = Entry(result, "", "", None, b"", "identity", now_ms, 0, 0)
        return entries


class Write(Generic[T]):
    """A write in its block: fence the keys that will change, then publish their documents.

    Attributes:
        transaction: the value that entering the caller's transaction returned; None without one.
    """

    def __init__(self, transaction: T, steps: WriteSteps) -> None:
        self.transaction = transaction
        self._steps = steps

    def notification(self, *keys: str) -> Notification | None:
        """Return how the transaction can tell all processes of its keys, on backend "postgres".

        A statement of the transaction then calls `pg_notify(channel, payload)`, and `fence` is told
        so. Other backends need fences: the result is None.

        Args:
            keys: the keys; none for a key that only the statement knows, which then calls
                `pg_notify(channel, prefix || key)`.
        """
        return self._steps.notification(keys)

    async def fence(self, *keys: str, notified: bool = False) -> None:
        """Fence keys. Call it within the block, before the commit.

        In a write without a transaction, call it before the change.

        If the backend is away, the write goes on, and publishes only the version of these keys.

        Args:
            keys: the keys.
            notified: whether the transaction has sent the `notification` of these keys. It makes no
                difference if that was None. Without it, backend "postgres" notifies after the
                commit, with one statement more.

        Raises:
            InvalidKey: a key cannot be used.
        """
        await self._steps.fence(keys, notified=notified)

    def publish(self, key: str, document: Document) -> None:
        """Set the document that is stored at `key` once the transaction has committed.

        Raises:
            WriteMisuse: `key` is not fenced, or the document's version is not one of a committed
                row (above 0, below 2**53).
        """
        self._steps.record(key, document)

    def outdate(self, key: str, version: int) -> None:
        """Set only the version of `key`: older entries are removed, and the next read loads it.

        Raises:
            WriteMisuse: as for `publish`.
        """
        self._steps.record(key, version)

    def delete(self, key: str) -> None:
        """Set that the document at `key` is gone: its entry is removed, and the next read loads it.

        To outdate the version of the deleted row would not be enough:

            W0 commits version 6; W1 deletes the row, and outdates 6; W0 publishes version 6

        W0's document must not be stored, whichever version it has.

        Raises:
            WriteMisuse: `key` is not fenced.
        """
        self._steps.record(key, NEWEST)


@dataclass(frozen=True, kw_only=True)
class WriteCoordinator:
    """Makes the writes of one `JobCache`.

    Attributes:
        backend: the backend in which keys are fenced.
        publisher: publishes committed versions.
        lifetimes: of the entries that are published.
        statistics: counted into.
        clock_ms: wall-clock time in milliseconds since the epoch.
        token: makes unique tokens.
        notify_written: called with the keys that have changed, before the write returns.
        bind: raises an error if the running event loop is not the cache's.
    """

    backend: CacheBackend
    publisher: Publisher
    lifetimes: Lifetimes
    statistics: Statistics
    clock_ms: Callable[[], int]
    token: Callable[[], str]
    notify_written: Callable[[Iterable[str]], None]
    bind: Callable[[], None]

    def begin(self) -> WriteSteps:
        """Return the steps of a new write."""
        self.bind()
        return WriteSteps(self, self.token())

    @asynccontextmanager
    async def through(
        self, transaction: AbstractAsyncContextManager[T], keys: Sequence[str]
    ) -> AsyncGenerator[Write[T], None]:
        """Wrap a transaction, as `JobCache.write` documents it."""
        steps = self.begin()
        enclosing = Enclosing(transaction)
        reached_commit = committed = False
        try:
            async with transaction as entered:
                enclosing.entered(entered)
                if keys:
                    await steps.fence(keys)
                yield Write(entered, steps)
                steps.check()
                enclosing.leaving()
                reached_commit = True
            committed = reached_commit
        finally:
            if not reached_commit:
                await steps.withdraw()
            elif not committed:
                await steps.abandon()
        if committed:
            enclosing.left()
            await steps.publish()

    @asynccontextmanager
    async def unwrapped(self, keys: Sequence[str]) -> AsyncGenerator[Write[None], None]:
        """Fence keys around a block that commits its changes itself.

        A block that raises may have committed:

            the block commits version 2, then raises
            if the fence were withdrawn: a reader that has loaded version 1 stores it

        So the fences stay until they expire.
        """
        check_autocommit()
        steps = self.begin()
        try:
            await steps.fence(keys)
        except BaseException:
            await steps.withdraw()  # the block has not begun
            raise
        published = False
        try:
            yield Write(None, steps)
            steps.check()
            published = True
        finally:
            if not published:
                await steps.abandon()
        await steps.publish()

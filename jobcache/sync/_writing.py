"""Writes around a transaction of the caller's thread.

A child that is forked within a write leaves the block without ending the transaction, which belongs
to its parent.

Rejected: giving the transaction to the asynchronous write, which would have the caller's thread
enter and leave it. If a signal interrupts the thread in between, the thread that drops the last
reference ends the transaction, and drivers refuse that.
"""

from __future__ import annotations

from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Generic, TypeVar

from jobcache._engine.transactions import Enclosing, check_autocommit
from jobcache._engine.writing import Write as AsyncWrite
from jobcache._engine.writing import WriteSteps
from jobcache.errors import CacheClosed, WriteMisuse
from jobcache.protocol.document import NEWEST
from jobcache.sync._documentation import documented_as

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from contextlib import AbstractContextManager
    from types import TracebackType

    from jobcache.cache import JobCache as AsyncJobCache
    from jobcache.protocol.capabilities import Notification
    from jobcache.protocol.document import Document
    from jobcache.sync._loop_thread import CallingThread, LoopThread

T = TypeVar("T")


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
        self.notification = self._steps.notification
        self.record = self._steps.record
        self.check = self._steps.check

    @documented_as(WriteSteps.fence)
    def fence(self, keys: Iterable[str], *, notified: bool = False) -> None:
        self._loop_thread.call(lambda _, __: self._steps.fence(keys, notified=notified))

    @documented_as(WriteSteps.abandon)
    def abandon(self) -> None:
        with suppress(CacheClosed):
            self._loop_thread.call(lambda _, __: self._steps.abandon())

    @documented_as(WriteSteps.withdraw)
    def withdraw(self) -> None:
        with suppress(CacheClosed):
            self._loop_thread.call(lambda _, __: self._steps.withdraw())

    @documented_as(WriteSteps.publish)
    def publish(self) -> None:
        with suppress(CacheClosed):
            self._loop_thread.call(lambda _, __: self._steps.publish())


@documented_as(AsyncWrite)
class Write(Generic[T]):
    """A write of the synchronous cache, in its block."""

    def __init__(self, transaction: T, steps: BlockingWriteSteps) -> None:
        self.transaction = transaction
        self._steps = steps

    @documented_as(AsyncWrite.notification)
    def notification(self, *keys: str) -> Notification | None:
        return self._steps.notification(keys)

    @documented_as(AsyncWrite.fence)
    def fence(self, *keys: str, notified: bool = False) -> None:
        self._steps.fence(keys, notified=notified)

    @documented_as(AsyncWrite.publish)
    def publish(self, key: str, document: Document) -> None:
        self._steps.record(key, document)

    @documented_as(AsyncWrite.outdate)
    def outdate(self, key: str, version: int) -> None:
        self._steps.record(key, version)

    @documented_as(AsyncWrite.delete)
    def delete(self, key: str) -> None:
        self._steps.record(key, NEWEST)


@contextmanager
def through(
    loop_thread: LoopThread[AsyncJobCache],
    transaction: AbstractContextManager[T],
    keys: Sequence[str],
) -> Iterator[Write[T]]:
    """Wrap a transaction of a thread, in the steps of `WriteCoordinator.through`."""
    steps = BlockingWriteSteps(loop_thread)
    enclosing = Enclosing(transaction)
    reached_commit = committed = False
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
        committed = reached_commit
    finally:
        if not reached_commit:
            steps.withdraw()
        elif not committed:
            steps.abandon()
    if committed and on_commit is None:
        enclosing.left()
        steps.publish()


@contextmanager
def unwrapped(loop_thread: LoopThread[AsyncJobCache], keys: Sequence[str]) -> Iterator[Write[None]]:
    """Fence keys around a block of a thread, in the steps of `WriteCoordinator.unwrapped`."""
    check_autocommit()
    steps = BlockingWriteSteps(loop_thread)
    try:
        steps.fence(keys)
    except BaseException:
        steps.withdraw()
        raise
    published = False
    try:
        yield Write(None, steps)
        steps.check()
        published = True
    finally:
        if not published:
            steps.abandon()
    steps.publish()


async def _begin(cache: AsyncJobCache, _: CallingThread) -> WriteSteps:
    return cache.writes.begin()


class WriteBlock(Generic[T]):
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

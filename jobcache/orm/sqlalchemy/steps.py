"""The steps of a write, for sessions: each step returns when it is done.

SQLAlchemy calls the events of an `AsyncSession` in a greenlet, which can wait for a coroutine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from sqlalchemy.util import await_
from sqlalchemy.util.concurrency import in_greenlet

from jobcache.cache import JobCache as AsyncJobCache
from jobcache.errors import WriteMisuse
from jobcache.sync.cache import begin_write as begin_in_thread

if TYPE_CHECKING:
    from collections.abc import Iterable

    from jobcache._engine.writing import WriteSteps as AsyncWriteSteps
    from jobcache.protocol.capabilities import Notification
    from jobcache.protocol.document import Document
    from jobcache.sync.cache import JobCache as SyncJobCache


class SessionWriteSteps(Protocol):
    """The steps of a write, as `jobcache._engine.writing.WriteSteps` defines them."""

    def notification(self, keys: Iterable[str]) -> Notification | None:
        """Return how the transaction announces its keys; None if the backend needs fences."""

    def fence(self, keys: Iterable[str], *, notified: bool = False) -> None:
        """Fence keys, unless the transaction has announced them."""

    def record(self, key: str, result: Document | int) -> None:
        """Record the document, or the version, that a key has once the transaction commits."""

    def withdraw(self) -> None:
        """Remove the fences of a transaction that was not committed."""

    def abandon(self) -> None:
        """End a write of which nobody knows whether it was committed."""

    def publish(self) -> None:
        """Publish the results of a committed transaction."""


class _AwaitedSteps:
    """The steps of an asynchronous cache, in a greenlet of SQLAlchemy."""

    def __init__(self, steps: AsyncWriteSteps) -> None:
        self._steps = steps
        self.record = steps.record
        self.notification = steps.notification

    def fence(self, keys: Iterable[str], *, notified: bool = False) -> None:
        await_(self._steps.fence(keys, notified=notified))

    def abandon(self) -> None:
        await_(self._steps.abandon())

    def withdraw(self) -> None:
        await_(self._steps.withdraw())

    def publish(self) -> None:
        await_(self._steps.publish())


def begin_write(cache: AsyncJobCache | SyncJobCache) -> SessionWriteSteps:
    """Return the steps of a new write.

    Raises:
        WriteMisuse: the session and the cache are not both synchronous, or both asynchronous.
        WrongLoop: an asynchronous cache belongs to another event loop.
        CacheClosed: the cache is closed.
    """
    if isinstance(cache, AsyncJobCache):
        if not in_greenlet():
            raise WriteMisuse(
                "jobcache.JobCache needs an AsyncSession; give a Session a jobcache.sync.JobCache"
            )
        return _AwaitedSteps(cache.writes.begin())
    if in_greenlet():
        raise WriteMisuse(
            "jobcache.sync.JobCache would block the event loop; give an AsyncSession a"
            " jobcache.JobCache"
        )
    return begin_in_thread(cache)

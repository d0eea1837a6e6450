"""Every process of the service is registered with its database, by a lock that dies with it.

The `memory` backend is correct only while no other process changes the database. So a process that
uses it holds the lock alone, and every other process shares it:

    A, memory, alone                B starts, with any backend
    holds the lock alone            asks for a share, and waits
    sees that B asks
    stops using its memory, shares
                                    has its share, and begins to write
    ...
    tries to hold it alone again    ends
    waits, and uses its memory

A process writes only while it holds the lock, alone or shared.

Rejected: a row with an expiry. It needs a clock that is never wrong, and each hit would have to
look at that clock.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from app.db.errors import DatabaseUnavailable
from app.db.postgres_lock import PostgresLock
from app.db.process_lock import Hold
from app.db.sqlite_lock import SqliteLock

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

    from app.db.database import Database
    from app.db.process_lock import ProcessLock
    from jobcache.backends.memory import MemoryBackend

logger = logging.getLogger("app")

_INTERVAL = 0.5
"""Seconds between two checks whether another process asks for a share."""
_ALONE_AGAIN = 12.0
"""Seconds between two attempts to hold the lock alone, and from success to the use of memory. A
write of a process that has just lost its lock, with its connection, has ended by then."""
_CHECK_SHARE = 5.0
"""The same if the lock is shared: then only the connection is checked."""
_PATIENCE = 30.0
"""Seconds that a process waits at its start for a share."""
_PATIENCE_LATER = 10.0
"""The same, of a process whose lock was lost."""
_WARN_AFTER = 2.0
"""Seconds after which the log says that a process waits for a share: a process that runs gives one
within `_INTERVAL`."""
_RETRY = 0.1
_RELEASED_WITHIN = 1.0
"""Seconds for the server to release the lock of a connection that was lost."""

OTHER_PROCESS = (
    "another process uses the same database, and the memory backend is for one process;"
    " use redis, tiered or memcached, so that both cache"
)
POOLER = (
    "the database is behind a pooler, which cannot keep the lock that the memory backend needs;"
    " use redis, tiered or memcached"
)
RECONNECTING = "the connection that held the lock was lost"


class Registration:
    """Keeps this process registered, and its memory cache unused while another process is there.

    Args:
        database: which processes share. After `start` its transactions wait for the registration.
        memory: the memory backend of this process; None if it has another backend.
    """

    def __init__(self, database: Database, memory: MemoryBackend | None) -> None:
        self._database = database
        self._memory = memory
        self._lock: ProcessLock = (
            SqliteLock(str(database.connections.url.database))
            if database.is_sqlite
            else PostgresLock(database.connections, self._on_loss)
        )
        self._hold = Hold.NONE
        self._changing = asyncio.Lock()
        self._lost = asyncio.Event()
        self._try_at = 0.0
        self._use_at: float | None = None
        self._alone = False  # memory is in use, or would be but for a lost connection
        self._watching: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Register, and keep registered.

        Raises:
            DatabaseUnavailable: the database is away, or a process that uses it alone makes no
                room: it hangs, or is stopped.
        """
        async with self._changing:
            await self._register(_PATIENCE)
        self._database.permission = self
        self._watching = asyncio.create_task(self._watch())

    async def wait(self) -> None:
        """Return once this process is registered; it is, but for moments.

        Raises:
            DatabaseUnavailable: it cannot be, now.
        """
        if self._hold is Hold.NONE:
            async with self._changing:
                if self._hold is Hold.NONE:
                    await self._register(_PATIENCE_LATER)

    async def join(self, connection: AsyncConnection) -> None:
        """Hold the lock in a transaction too, where a process cannot hold it."""
        await self._lock.join(connection)

    async def aclose(self) -> None:
        """End the registration; nothing may be written any more."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait([self._watching])
            self._watching = None
        await self._lock.aclose()
        self._hold = Hold.NONE

    async def _register(self, patience: float) -> None:
        if self._memory is not None and await self._held_alone(self._memory):
            self._hold = Hold.ALONE
            if self._alone:
                # Another process may have come and gone while nothing was held.
                self._memory.resume()
                self._memory.reset()
            elif self._memory.suspended:
                # Processes that were there may have lost their share with their connection.
                self._use_at = time.monotonic() + _ALONE_AGAIN
            self._alone = not self._memory.suspended
            return
        self._stop_memory()
        warning = asyncio.get_running_loop().call_later(
            _WARN_AFTER,
            logger.warning,
            "a process that uses the memory backend on this database does not answer;"
            " waiting up to %g s for it",
            patience,
        )
        try:
            self._hold = await self._lock.share(patience)
        finally:
            warning.cancel()
        if self._hold is Hold.NONE:
            raise DatabaseUnavailable(
                "a process that uses the memory backend on this database does not answer;"
                " end it, or wait until it has ended"
            )

    async def _held_alone(self, memory: MemoryBackend) -> bool:
        if await self._lock.try_alone() is Hold.ALONE:
            return True
        if not self._alone:
            return False
        # The server may be about to release what our own lost connection held.
        memory.suspend(RECONNECTING)
        give_up_at = time.monotonic() + _RELEASED_WITHIN
        while time.monotonic() < give_up_at:
            await asyncio.sleep(_RETRY)
            if await self._lock.try_alone() is Hold.ALONE:
                return True
        return False

    async def _watch(self) -> None:
        interval = _CHECK_SHARE if self._memory is None else _INTERVAL
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(interval):
                    await self._lost.wait()
            self._lost.clear()
            try:
                await self._check_lock()
            except DatabaseUnavailable:
                self._hold = Hold.NONE
                await asyncio.sleep(_RETRY)
                self._lost.set()  # try again at once
            except Exception:
                logger.exception("looking after the lock of the database failed")

    async def _check_lock(self) -> None:
        async with self._changing:
            if self._hold is Hold.NONE:
                await self._register(_PATIENCE_LATER)
            elif await self._lock.check() and self._hold is Hold.ALONE:
                self._stop_memory()
                self._hold = Hold.NONE  # writes wait; nobody may come in between unnoticed
                self._hold = await self._lock.share(_PATIENCE)
            elif self._hold is Hold.SHARED and self._memory is not None:
                await self._try_again()
            elif self._use_at is not None and time.monotonic() >= self._use_at:
                self._use_memory()

    async def _try_again(self) -> None:
        if time.monotonic() < self._try_at:
            return
        self._try_at = time.monotonic() + _ALONE_AGAIN
        self._hold = await self._lock.try_alone()
        if self._hold is Hold.ALONE:
            self._use_at = time.monotonic() + _ALONE_AGAIN

    def _stop_memory(self) -> None:
        self._use_at, self._alone = None, False
        self._try_at = time.monotonic() + _ALONE_AGAIN
        if self._memory is None:
            return
        reconnecting = self._memory.condition().reason == RECONNECTING
        reason = POOLER if self._database.connections.pooled else OTHER_PROCESS
        if self._memory.suspend(reason) or reconnecting:
            logger.warning("the memory cache is not used, as with the null backend: %s", reason)

    def _use_memory(self) -> None:
        self._use_at, self._alone = None, True
        if self._memory is not None and self._memory.resume():
            logger.warning("the memory cache is used again: no other process uses the database")

    def _on_loss(self) -> None:
        self._hold = Hold.NONE
        self._lost.set()

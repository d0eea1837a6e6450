"""Every process of the service is registered with its database, by a lock that dies with it.

The `memory` backend is right only while no other process changes the database. So a process that
uses it holds the lock alone, and every other process shares it:

    A, memory, alone                B starts, with whatever backend
    holds the lock alone            asks for a share, and waits
    sees that B asks
    stops using its memory, shares
                                    has its share, and begins to write
    ...
    tries to hold it alone again    ends
    waits, and uses its memory

A process writes only while it holds the lock, in either way. The operating system or the server
releases it when the process ends, however that happens, so the next process need not wait. A
process that is stopped (SIGSTOP) keeps it.

Rejected: a row with an expiry. It would need a clock that is never wrong, and a look at that clock
before every hit.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import time
from contextlib import suppress
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import unquote, urlsplit

from app.db.database import PROCESSES_KEY, PROCESSES_LOCK, DatabaseUnavailable
from app.db.errors import Failure, classify

if TYPE_CHECKING:
    from collections.abc import Callable

    from app.db.database import Database, Session
    from jobcache.backends.memory import MemoryBackend

logger = logging.getLogger("app")

_INTERVAL = 0.5
"""Seconds between two looks whether another process asks for a share."""
_ALONE_AGAIN = 12.0
"""Seconds between two attempts to hold the lock alone, and from success to the use of memory. A
write of a process that has just lost its lock, with its connection, has ended by then."""
_LOOKS_AT_SHARE = 5.0
"""The same, where there is nothing to give up: only whether the connection is still there."""
_ANSWERS_WITHIN = 10.0
"""Seconds for the server to answer; then the lock, with its connection, is taken to be lost."""
_PATIENCE = 30.0
"""Seconds that a process waits at its start for a share."""
_RETRY = 0.1
_RELEASED_WITHIN = 1.0
"""Seconds for the server to release the lock of a connection that was lost."""

OTHER_PROCESS = (
    "another process uses the same database, and the memory backend is for one process;"
    " take redis or tiered to have both cache"
)
POOLER = (
    "a pooler stands before the database, which cannot keep the lock that the memory backend needs;"
    " take redis or tiered"
)
RECONNECTING = "the connection that held the lock was lost"


class Hold(Enum):
    """How a process holds the lock."""

    NONE = "none"
    SHARED = "shared"
    ALONE = "alone"


class ProcessLock(Protocol):
    """A lock on a database, shared by several processes or held by one alone."""

    async def try_alone(self) -> Hold:
        """Try to hold it alone. Returns how it is held now.

        Raises:
            DatabaseUnavailable: it is not held any more.
        """

    async def share(self, seconds: float) -> Hold:
        """Share it, from whatever hold; ask a process that holds it alone, and wait for so long.

        Raises:
            DatabaseUnavailable: as for `try_alone`.
        """

    async def check(self) -> bool:
        """Find out whether it is still held, and return whether another process asks for a share.

        Raises:
            DatabaseUnavailable: as for `try_alone`.
        """

    async def aclose(self) -> None:
        """Release it."""


_SHARE = "BEGIN", "SELECT * FROM sqlite_master"  # a reader holds a share until its transaction ends


class SqliteLock:
    """The lock of an SQLite database: SQLite's own, on an empty database beside it.

    Whoever asks for a share touches the file, and the holder sees a new modification time. The
    file stays: to remove it would leave two processes with locks on two files of one name.
    """

    def __init__(self, database: str) -> None:
        path = unquote(urlsplit(database).path) if database.startswith("file:") else database
        # The same file for every path and every symbolic link to the database.
        self.path = Path(os.path.realpath(path) + ".lock")
        self._connection: sqlite3.Connection | None = None
        self._touched = 0

    async def try_alone(self) -> Hold:
        """See `ProcessLock`."""
        if self._take("BEGIN EXCLUSIVE"):
            # Afterwards, for the attempt makes the file. Who asks does so again and again.
            self._touched = self._modified()
            return Hold.ALONE
        # The attempt has cost the share, and another process may be faster.
        return Hold.SHARED if self._take(*_SHARE) else Hold.NONE

    async def share(self, seconds: float) -> Hold:
        """See `ProcessLock`."""
        give_up_at = time.monotonic() + seconds
        while not self._take(*_SHARE):
            if time.monotonic() > give_up_at:
                return Hold.NONE
            with suppress(OSError):
                os.utime(self.path)
            await asyncio.sleep(0.02)
        return Hold.SHARED

    async def check(self) -> bool:
        """See `ProcessLock`."""
        return self._modified() != self._touched

    async def aclose(self) -> None:
        """See `ProcessLock`."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _take(self, *statements: str) -> bool:
        # In the event loop: the lock is there or not, and nothing is waited for.
        try:
            if self._connection is None:
                self._connection = sqlite3.connect(
                    self.path, timeout=0, isolation_level=None, check_same_thread=False
                )
            self._connection.rollback()
            # Nothing is ever written, and no journal is left when the process is killed.
            for statement in ("PRAGMA journal_mode=MEMORY", *statements):
                self._connection.execute(statement).fetchall()
        except sqlite3.Error as error:
            if self._connection is not None:
                self._connection.rollback()
            # Who may read the file only can share the lock.
            if error.sqlite_errorcode & 0xFF in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_READONLY}:
                return False
            raise DatabaseUnavailable(f"{self.path}: {error}") from error
        return True

    def _modified(self) -> int:
        try:
            return self.path.stat().st_mtime_ns
        except OSError:
            return 0


_ASKED = f"""
SELECT EXISTS (
    SELECT FROM pg_locks
    WHERE locktype = 'advisory' AND classid = {PROCESSES_LOCK} AND objid = 'jobs'::regclass::oid
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
        AND NOT granted
)
"""  # noqa: S608 - a number


class PostgresLock:
    """The lock of a PostgreSQL database: an advisory lock of a session of its own.

    Behind a pooler there is no such session. The lock is then shared within each transaction that
    writes (`Database.transaction` does it), and cannot be held alone.

    Args:
        database: whose pool has a connection to spare for it.
        lost: called, in the event loop, when the connection is lost.
    """

    def __init__(self, database: Database, lost: Callable[[], None]) -> None:
        self._database = database
        self._lost = lost
        self._session: Session | None = None
        self._broken = False
        self._hold = Hold.NONE

    async def try_alone(self) -> Hold:
        """See `ProcessLock`."""
        await self._connect()
        if self._session is None:
            return Hold.SHARED
        if await self._ask(f"SELECT pg_try_advisory_lock({PROCESSES_KEY})"):
            if self._hold is Hold.SHARED:
                await self._ask(f"SELECT pg_advisory_unlock_shared({PROCESSES_KEY})")
            self._hold = Hold.ALONE
        return self._hold

    async def share(self, seconds: float) -> Hold:
        """See `ProcessLock`."""
        await self._connect()
        if self._session is None:
            return Hold.SHARED
        if self._hold is not Hold.SHARED:
            try:
                # Granted at once to the holder itself.
                await self._ask(f"SELECT pg_advisory_lock_shared({PROCESSES_KEY})", seconds)
            except DatabaseUnavailable as error:
                if isinstance(error.__cause__, TimeoutError):
                    return Hold.NONE
                raise
            if self._hold is Hold.ALONE:
                await self._ask(f"SELECT pg_advisory_unlock({PROCESSES_KEY})")
            self._hold = Hold.SHARED
        return self._hold

    async def check(self) -> bool:
        """See `ProcessLock`."""
        if self._session is None:
            if self._database.pooled:
                return False
            raise DatabaseUnavailable("the connection that held the lock is lost")
        asked = await self._ask(_ASKED if self._hold is Hold.ALONE else "SELECT false")
        return bool(asked)

    async def aclose(self) -> None:
        """See `ProcessLock`."""
        session, self._session, self._hold = self._session, None, Hold.NONE
        if session is not None:
            await self._database.close_session(session)

    async def _connect(self) -> None:
        if self._broken:
            self._broken = False
            await self.aclose()
        if self._session is not None:
            return
        session = await self._database.open_session(self._on_termination)
        if self._database.pooled:
            await self._database.close_session(session)
            return
        self._session = session
        # The server notices within seconds then that this host has died, and frees the lock.
        for name, value in (("idle", 5), ("interval", 2), ("count", 3)):
            await self._ask(f"SELECT set_config('tcp_keepalives_{name}', '{value}', false)")

    async def _ask(self, statement: str, seconds: float = _ANSWERS_WITHIN) -> object:
        if self._session is None:
            raise DatabaseUnavailable("the connection that held the lock is lost")
        try:
            async with asyncio.timeout(seconds):
                return await self._session.driver.fetchval(statement)
        except BaseException as error:
            await self.aclose()  # whatever it may still do, it does not hold the lock
            if isinstance(error, Exception) and classify(error) is not Failure.BUG:
                raise DatabaseUnavailable(f"{type(error).__name__}: {error}") from error
            raise

    def _on_termination(self, connection: object) -> None:
        if self._session is not None and self._session.driver is connection:
            self._broken, self._hold = True, Hold.NONE
            self._lost()


class Registration:
    """Keeps this process registered, and its memory out of use while another process is there.

    Args:
        database: which processes share. From `start` on, writes through it wait for this.
        memory: the backend of this process, if it is that; else None.
    """

    def __init__(self, database: Database, memory: MemoryBackend | None) -> None:
        self._database = database
        self._memory = memory
        self._lock: ProcessLock = (
            SqliteLock(str(database.url.database))
            if database.is_sqlite
            else PostgresLock(database, self._on_loss)
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
        self._database.registration = self
        self._watching = asyncio.create_task(self._watch())

    async def wait(self) -> None:
        """Return once this process is registered; it is, but for moments.

        Raises:
            DatabaseUnavailable: it cannot be, now.
        """
        if self._hold is Hold.NONE:
            async with self._changing:
                if self._hold is Hold.NONE:
                    await self._register(_ANSWERS_WITHIN)

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
        self._hold = await self._lock.share(patience)
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
        interval = _LOOKS_AT_SHARE if self._memory is None else _INTERVAL
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(interval):
                    await self._lost.wait()
            self._lost.clear()
            try:
                await self._look()
            except DatabaseUnavailable:
                self._hold = Hold.NONE
                await asyncio.sleep(_RETRY)
                self._lost.set()  # try again at once
            except Exception:
                logger.exception("looking after the lock of the database failed")

    async def _look(self) -> None:
        async with self._changing:
            if self._hold is Hold.NONE:
                await self._register(_ANSWERS_WITHIN)
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
        reason = POOLER if self._database.pooled else OTHER_PROCESS
        if self._memory.suspend(reason) or reconnecting:
            logger.warning("the memory cache is not used, as with the null backend: %s", reason)

    def _use_memory(self) -> None:
        self._use_at, self._alone = None, True
        if self._memory is not None and self._memory.resume():
            logger.warning("the memory cache is used again: no other process uses the database")

    def _on_loss(self) -> None:
        self._hold = Hold.NONE
        self._lost.set()

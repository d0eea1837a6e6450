"""The process lock of an SQLite database."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from app.db.errors import DatabaseUnavailable
from app.db.process_lock import Hold

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

_SHARE = "BEGIN", "SELECT * FROM sqlite_master"  # a reader holds a share until its transaction ends


class SqliteLock:
    """SQLite's own lock, on an empty database beside the real one.

    A process that asks for a share touches the file, and the holder sees a new modification time.
    The file is never removed: two processes could then lock two files of the same name.

    Args:
        database: the path of the database, or its URI.
    """

    def __init__(self, database: str) -> None:
        path = unquote(urlsplit(database).path) if database.startswith("file:") else database
        # The same file for every path and every symbolic link to the database.
        self.path = Path(os.path.realpath(path) + ".lock")
        self._connection: sqlite3.Connection | None = None
        self._touched = 0

    async def try_alone(self) -> Hold:
        """Try to hold the lock alone; return how it is held now."""
        if self._take("BEGIN EXCLUSIVE"):
            # Only now: the attempt makes the file. No request is missed, for a process that asks
            # for a share touches the file again and again.
            self._touched = self._modified()
            return Hold.ALONE
        # The attempt has cost the share, and another process may be faster.
        return Hold.SHARED if self._take(*_SHARE) else Hold.NONE

    async def share(self, seconds: float) -> Hold:
        """Share the lock; wait for a process that holds it alone."""
        give_up_at = time.monotonic() + seconds
        while not self._take(*_SHARE):
            if time.monotonic() > give_up_at:
                return Hold.NONE
            with suppress(OSError):
                os.utime(self.path)
            await asyncio.sleep(0.02)
        return Hold.SHARED

    async def check(self) -> bool:
        """Return whether another process asks for a share; raise if the lock is lost."""
        return self._modified() != self._touched

    async def join(self, connection: AsyncConnection) -> None:
        """Do nothing: the process holds the lock."""

    async def aclose(self) -> None:
        """Release the lock."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _take(self, *statements: str) -> bool:
        # Not in a thread: SQLite grants or refuses the lock at once.
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
            # A process that may only read the file can share the lock.
            if error.sqlite_errorcode & 0xFF in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_READONLY}:
                return False
            raise DatabaseUnavailable(f"{self.path}: {error}") from error
        return True

    def _modified(self) -> int:
        try:
            return self.path.stat().st_mtime_ns
        except OSError:
            return 0

"""The process lock of a PostgreSQL database."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from sqlalchemy import text

from app.db.driver_errors import Failure, classify
from app.db.errors import DatabaseUnavailable, translating
from app.db.limits import within
from app.db.process_lock import Hold

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.ext.asyncio import AsyncConnection

    from app.db.connections import Connections, Session

_LOCK = 7_262_638  # any number, the same in every process
LOCK_KEY = f"{_LOCK}, 'jobs'::regclass::oid::int4"
"""The advisory lock of this database, and of the schema of its tables."""
_ANSWERS_WITHIN = 10.0
"""Seconds for the server to answer; then the lock, with its connection, is taken to be lost."""
_CONNECTS_WITHIN = 5.0
_SHARE = text(f"SELECT pg_advisory_xact_lock_shared({LOCK_KEY})")
_ASKED = f"""
SELECT EXISTS (
    SELECT FROM pg_locks
    WHERE locktype = 'advisory' AND classid = {_LOCK} AND objid = 'jobs'::regclass::oid
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
        AND NOT granted
)
"""  # noqa: S608 - a number


class PostgresLock:
    """An advisory lock of a session of its own.

    Behind a pooler there is no such session. The lock is then shared within each transaction, and
    cannot be held alone.

    Args:
        connections: a pool with a connection to spare for the lock.
        on_loss: called, in the event loop, when that connection is lost.
    """

    def __init__(self, connections: Connections, on_loss: Callable[[], None]) -> None:
        self._connections = connections
        self._on_loss = on_loss
        self._session: Session | None = None
        self._broken = False
        self._hold = Hold.NONE

    async def try_alone(self) -> Hold:
        """Try to hold the lock alone; return how it is held now."""
        await self._connect()
        if self._session is None:
            return Hold.SHARED
        if await self._ask(f"SELECT pg_try_advisory_lock({LOCK_KEY})"):
            if self._hold is Hold.SHARED:
                await self._ask(f"SELECT pg_advisory_unlock_shared({LOCK_KEY})")
            self._hold = Hold.ALONE
        return self._hold

    async def share(self, seconds: float) -> Hold:
        """Share the lock; wait for a process that holds it alone."""
        await self._connect()
        if self._session is None:
            return Hold.SHARED
        if self._hold is not Hold.SHARED:
            try:
                # Granted at once to the holder itself.
                await self._ask(f"SELECT pg_advisory_lock_shared({LOCK_KEY})", seconds)
            except DatabaseUnavailable as error:
                if isinstance(error.__cause__, TimeoutError):
                    return Hold.NONE
                raise
            if self._hold is Hold.ALONE:
                await self._ask(f"SELECT pg_advisory_unlock({LOCK_KEY})")
            self._hold = Hold.SHARED
        return self._hold

    async def check(self) -> bool:
        """Return whether another process asks for a share; raise if the lock is lost."""
        if self._session is None:
            if self._connections.pooled:
                return False
            raise DatabaseUnavailable("the connection that held the lock is lost")
        if not self._connections.is_current(self._session):
            # After a failover the former primary may live on. Others take the lock on the new one.
            await self.aclose()
            raise DatabaseUnavailable("the lock was held on another server")
        asked = await self._ask(_ASKED if self._hold is Hold.ALONE else "SELECT false")
        return bool(asked)

    async def join(self, connection: AsyncConnection) -> None:
        """Share the lock within the transaction: behind a pooler the process cannot hold it."""
        await connection.execute(_SHARE)

    async def aclose(self) -> None:
        """Release the lock."""
        session, self._session, self._hold = self._session, None, Hold.NONE
        if session is not None:
            await self._connections.close_session(session)

    async def _connect(self) -> None:
        if self._broken:
            self._broken = False
            await self.aclose()
        if self._session is not None:
            return
        with translating():
            async with within(_CONNECTS_WITHIN):
                session = await self._connections.open_session(self._on_termination)
        if self._connections.pooled:
            await self._connections.close_session(session)
            return
        self._session = session
        # With these the server notices within seconds that this host has died, and frees the lock.
        for name, value in (("idle", 5), ("interval", 2), ("count", 3)):
            await self._ask(f"SELECT set_config('tcp_keepalives_{name}', '{value}', false)")

    async def _ask(self, statement: str, seconds: float = _ANSWERS_WITHIN) -> object:
        if self._session is None:
            raise DatabaseUnavailable("the connection that held the lock is lost")
        try:
            async with asyncio.timeout(seconds):
                return await self._session.driver.fetchval(statement)
        except BaseException as error:
            await self.aclose()  # the session may be lost, and the lock with it
            if isinstance(error, Exception) and classify(error) is not Failure.BUG:
                raise DatabaseUnavailable(f"{type(error).__name__}: {error}") from error
            raise

    def _on_termination(self, connection: object) -> None:
        if self._session is not None and self._session.driver is connection:
            self._broken, self._hold = True, Hold.NONE
            self._on_loss()

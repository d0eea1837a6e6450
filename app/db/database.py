"""Reads and transactions of the service, with limits and retries."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager, contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from sqlalchemy import delete, false, select

from app.db.connections import Connections
from app.db.driver_errors import Failure, classify, is_write_refused
from app.db.errors import (
    ConnectionDied,
    DatabaseUnavailable,
    NothingChanged,
    explaining,
    may_repeat,
    translating,
)
from app.db.limits import within
from app.db.revisions import check_revision, create_tables, read_revision
from app.db.tables import clients, identity
from app.db.url import scheme_and_host
from jobcache._concurrency.tasks import ShieldedTasks

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
    from contextlib import AbstractAsyncContextManager

    from sqlalchemy.engine import Row
    from sqlalchemy.ext.asyncio import AsyncConnection
    from sqlalchemy.sql.base import Executable

    from app.db.connections import Pooler
    from app.db.outage_logger import OutageLogger

T = TypeVar("T")

_TRY_TO_WRITE = delete(clients).where(false()).returning(clients.c.id)
_WRITES = 10  # at once, at the most; the pool has more connections than that
_LONGEST_WAIT = 10
"""Seconds that a write may wait for SQLite's one lock, in this process and then in the file."""
_LONGEST_READ, _LONGEST_WRITE = 5, 10
"""Seconds that a read or a transaction may take on a server, which may hang: all in all, from the
wait for a connection to the last answer. A limit for each step would be a sum that nobody sees.

A server that hangs costs 2 s more. SQLAlchemy closes the connection of a statement that was cut
off, and waits for so long until asyncpg has had the statement cancelled. To terminate the
connection at once was rejected: the statement would go on in a server that is only slow."""
_REFUSED_FOR = 10
"""Seconds after a refused write in which the service is not ready, unless a write succeeds."""


class WritePermission(Protocol):
    """What each transaction needs: the registration of this process."""

    async def wait(self) -> None:
        """Return once this process may write.

        Raises:
            DatabaseUnavailable: it may not, now.
        """

    async def join(self, connection: AsyncConnection) -> None:
        """Extend the permission to a transaction that has just begun, behind a pooler."""


class Database:
    """One database, SQLite or PostgreSQL.

    Args:
        url: an SQLAlchemy URL with an asyncio driver.
        outage: records for each call whether it failed.
        pool_recycle: seconds after which a connection is replaced instead of used again.
        pooler: "transaction" if a pooler such as PgBouncer stands before PostgreSQL and gives each
            transaction another session; "none"; "auto" finds out.

    Raises:
        SettingsError: an option of the URL cannot be used.

    Attributes:
        connections: the pool.
        is_sqlite: True for SQLite, False for PostgreSQL.
        statements: how many were sent, by verb: "select", "update", and so on.
        purposes: how many were sent, by the purpose that `read` was given.
        shielded: writes run in it. A write that is cancelled half way leaves its connection, and
            in SQLite the one lock there is, in the driver's hands until a time-out.
        permission: what transactions wait for, once there is one.
    """

    def __init__(
        self,
        url: str,
        outage: OutageLogger | None = None,
        *,
        pool_recycle: float = 1800,
        pooler: Pooler = "auto",
    ) -> None:
        self._outage = outage
        self._refused_at: float | None = None  # the last write, if it was refused
        self._address = scheme_and_host(url)
        with explaining(self._address):
            self.connections = Connections(
                url, recycle=pool_recycle, pooler=pooler, sqlite_lock_wait=_LONGEST_WAIT
            )
        self.is_sqlite = self.connections.is_sqlite
        self.statements = self.connections.statements
        self.purposes = self.connections.purposes
        self.shielded = ShieldedTasks()
        self.permission: WritePermission | None = None
        # SQLite lets in one writer at a time and makes the others poll; here they queue. Elsewhere
        # some connections are left to reads: while Redis hangs, each transaction is open for as
        # long as its fence is waited for, and polls would have to wait for them.
        self._writing = asyncio.Semaphore(1 if self.is_sqlite else _WRITES)

    async def prepare_tables(self) -> None:
        """Create the tables if there are none; check the revision of existing ones.

        Safe with several processes that start at once.

        Raises:
            SettingsError: the driver refuses an option of the URL.
            RevisionError: the tables are older or newer than this version of the service.
            DatabaseUnavailable: the database cannot be used.
        """
        found = await self.revision()
        if found is None:
            with explaining(self._address):
                await self._waiting_for_wal(self._create_tables)
            found = await self.revision()
        check_revision(found)

    async def revision(self) -> str | None:
        """Return the revision of the database, as `read_revision` does.

        Raises:
            SettingsError: the driver refuses an option of the URL.
            DatabaseUnavailable: the database cannot be used.
        """
        with explaining(self._address):
            return await self._waiting_for_wal(self._revision)

    async def _revision(self) -> str | None:
        with translating():
            async with self._within(_LONGEST_READ), self.connections.reader.connect() as connection:
                await connection.execution_options(purpose="revision")
                return await connection.run_sync(read_revision)

    async def _waiting_for_wal(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        give_up_at = time.monotonic() + _LONGEST_WAIT
        while True:
            try:
                return await work()
            except DatabaseUnavailable as error:
                # SQLite does not wait for a process that is switching the file to WAL.
                if "database is locked" not in str(error) or time.monotonic() > give_up_at:
                    raise
                await asyncio.sleep(0.02)

    async def _create_tables(self) -> None:
        async with self.transaction() as connection:
            await connection.run_sync(create_tables)

    async def source_id(self) -> str:
        """Return the identity of this database: random, and made with its tables.

        A copy of the database has the same one.
        """
        rows = await self.read(select(identity.c.source_id), "identity")
        return str(rows[0][0])

    async def read(
        self,
        statement: Executable,
        purpose: str,
        **parameters: Any,  # noqa: ANN401 - of columns
    ) -> list[Row[Any]]:
        """Run one SELECT in a snapshot of its own, begun now.

        Args:
            statement: the SELECT.
            purpose: a word to count it under.
            parameters: of the statement.

        Raises:
            DatabaseUnavailable: there was no answer.
        """
        with self._watching(), translating():
            async with self._within(_LONGEST_READ):
                try:
                    return await self._select(statement, purpose, parameters)
                except Exception as error:
                    if not may_repeat(error):
                        raise
                # The pool has discarded all connections of that age, or the stale plan is gone.
                return await self._select(statement, purpose, parameters)

    async def _select(
        self, statement: Executable, purpose: str, parameters: dict[str, Any]
    ) -> list[Row[Any]]:
        # Not an option of the statement: SQLAlchemy would have to compile another statement.
        options = {"purpose": purpose}
        async with self.connections.reader.connect() as connection:
            result = await connection.execute(statement, parameters, execution_options=options)
            return list(result.all())

    async def change(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run `work`, which makes one transaction, to its end, even if the caller is cancelled.

        It runs twice if its connection dies before the commit is sent: most likely the connection
        has been dead since before, and nothing has been changed through it. So the first write
        after the database has come back succeeds, and no write pays for a test of its connection.
        It also runs twice after a deadlock or a plan that a changed table outdated.

        Raises:
            DatabaseUnavailable: as for `transaction`.
            Exception: whatever else `work` raised.
        """
        return await self.shielded.run(self._change(work))

    async def _change(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        with self._watching():
            try:
                return await work()
            except NothingChanged:
                return await work()  # the pool has discarded all connections of that age

    async def write(self, statement: Executable) -> list[Row[Any]]:
        """Run one statement that changes something, in a transaction of its own, to its end.

        Raises:
            DatabaseUnavailable: as for `transaction`.
        """
        return await self.change(partial(self._execute, statement))

    async def _execute(self, statement: Executable) -> list[Row[Any]]:
        async with self.transaction() as connection:
            result = await connection.execute(statement)
            return list(result.all()) if result.returns_rows else []

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        """Open a transaction: committed when the block ends, rolled back when it raises.

        Raises:
            NothingChanged: the connection was lost before the commit was sent, or the server has
                rolled back by itself.
            DatabaseUnavailable: the database went away; whether it had committed is not known.
        """
        committing = False
        try:
            with translating():
                async with self._turn(), self._within(_LONGEST_WRITE):
                    if self.permission is not None:
                        await self.permission.wait()
                    async with self.connections.begin() as connection:
                        if self.permission is not None and self.connections.pooled:
                            await self.permission.join(connection)
                        yield connection
                        committing = True
        except DatabaseUnavailable as error:
            cause = error.__cause__
            if isinstance(cause, Exception):
                if is_write_refused(cause):
                    self._refused_at = time.monotonic()
                if classify(cause) is Failure.RETRY:
                    raise NothingChanged(str(error)) from cause
                if not committing and may_repeat(cause):
                    raise ConnectionDied(str(error)) from cause
            raise
        self._refused_at = None

    async def check(self) -> None:
        """Find out whether the database takes reads and writes. One statement, for `/readyz`.

        Raises:
            DatabaseUnavailable: it does not: it is away, a hot standby, read-only, or it has
                just refused a write for lack of disk space.
        """
        # Deletes nothing, but a read-only server refuses it, and its connections are discarded.
        async with self._turn() if self.is_sqlite else nullcontext():
            await self.read(_TRY_TO_WRITE, "health")
        refused = self._refused_at
        if refused is not None and time.monotonic() - refused < _REFUSED_FOR:
            raise DatabaseUnavailable("the last write was refused")

    async def aclose(self) -> None:
        """Close the connections, once writes under way have ended."""
        await self.shielded.join()
        await self.connections.aclose()

    def _within(self, seconds: float) -> AbstractAsyncContextManager[None]:
        # SQLite has limits of its own, and a thread that cannot be cancelled.
        return nullcontext() if self.is_sqlite else within(seconds)

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Wait until one more write may run."""
        if self._writing.locked():
            # Only then: a limit costs more than the turn itself if it need not be waited for.
            try:
                async with asyncio.timeout(_LONGEST_WAIT):
                    await self._writing.acquire()
            except TimeoutError as error:
                raise DatabaseUnavailable("too many writes are waiting") from error
        else:
            await self._writing.acquire()
        try:
            yield
        finally:
            self._writing.release()

    @contextmanager
    def _watching(self) -> Iterator[None]:
        """Tell the outage logger whether the database did its work."""
        try:
            yield
        except DatabaseUnavailable as error:
            if self._outage is not None:
                self._outage.note(error)
            raise
        if self._outage is not None:
            self._outage.answered()

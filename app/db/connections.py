"""The pool of connections to SQLite or PostgreSQL, and a count of every statement sent."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from sqlalchemy import event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import InvalidatePoolError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.pool import QueuePool
from sqlalchemy.util import await_only

from app.db.driver_errors import Failure, classify
from app.db.url import read_postgres_url

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from sqlalchemy.engine import URL, Dialect, ExceptionContext
    from sqlalchemy.pool import ConnectionPoolEntry

    Options = dict[str, Any]

Pooler: TypeAlias = Literal["auto", "none", "transaction"]
logger = logging.getLogger("app")

_UNPREPARED: Final = {"statement_cache_size": 0, "prepared_statement_cache_size": 0}
_CONNECTIONS: Final = 15
_GENERATION: Final = "generation"  # in what the pool notes of a connection


@dataclass(frozen=True, slots=True)
class Session:
    """A connection that is kept open for the state of its PostgreSQL session.

    Attributes:
        connection: SQLAlchemy's.
        driver: asyncpg's.
        generation: of the pool when it was opened.
    """

    connection: AsyncConnection
    driver: Any
    generation: int


class Connections:
    """A pool of connections to one database.

    Args:
        url: an SQLAlchemy URL with an asyncio driver.
        recycle: seconds after which a connection is replaced instead of used again.
        pooler: as for `Database`.
        sqlite_lock_wait: seconds for which SQLite waits for another process's lock.
        statement_limit: seconds for PostgreSQL to answer a statement; None for no limit.

    Raises:
        ValueError: a parameter of a PostgreSQL URL cannot be used.

    Attributes:
        engine: for transactions; see `begin`.
        reader: the same engine; each statement is a snapshot of its own, without BEGIN and
            ROLLBACK around it.
        is_sqlite: True for SQLite, False for PostgreSQL.
        statements: how many were sent, by verb: "select", "update", and so on.
        purposes: how many were sent, by the execution option "purpose"; "write" without one.
    """

    def __init__(
        self,
        url: str,
        *,
        recycle: float,
        pooler: Pooler,
        sqlite_lock_wait: float,
        statement_limit: float | None = 10,
    ) -> None:
        self.statements: Counter[str] = Counter()
        self.purposes: Counter[str] = Counter()
        self._closing: set[asyncio.Task[None]] = set()
        self._generation = 0  # of the connections that may be used
        self._server: str | None = None  # the one that connections of this generation lead to
        parsed = make_url(url)
        self.is_sqlite = parsed.get_backend_name() == "sqlite"
        arguments: dict[str, Any] = {"timeout": sqlite_lock_wait}
        if not self.is_sqlite:
            address = read_postgres_url(parsed)
            parsed = address.url
            arguments = {"timeout": 5, "command_timeout": statement_limit, **address.arguments}
            if address.pooled:
                pooler = "transaction"
            if address.warning:
                logger.warning(address.warning)
        self._detects_pooler = pooler == "auto"
        self._pooled = pooler != "none"  # until a connection has shown that there is none
        self.engine = create_async_engine(
            parsed,
            connect_args=arguments,
            # All kept: connections beyond a pool's size are opened and closed under load.
            pool_size=_CONNECTIONS + 1,  # for the session of the registration
            max_overflow=0,
            pool_timeout=10,
            pool_recycle=recycle,
            hide_parameters=True,  # an error goes into the log; a client's prompt does not
        )
        self.reader = self.engine.execution_options(isolation_level="AUTOCOMMIT")
        engine = self.engine.sync_engine
        event.listen(engine, "before_cursor_execute", self._count)
        event.listen(engine, "handle_error", _notice_disconnect)
        if self.is_sqlite:
            event.listen(engine, "connect", _prepare_sqlite)
        else:
            event.listen(engine, "do_connect", self._connect)

    def renew(self) -> None:
        """Replace each present connection before its next use: it may lead to another server."""
        if not self._generation:
            # Not before: every use of a connection makes the check, which few services need.
            event.listen(self.engine.sync_engine, "checkout", self._check_generation)
        self._generation += 1

    def _check_generation(self, _: object, record: ConnectionPoolEntry, __: object) -> None:
        if record.info[_GENERATION] != self._generation:
            raise InvalidatePoolError("another server may have taken the place of the first one")

    @property
    def url(self) -> URL:
        """Return the URL of the database."""
        return self.engine.url

    @property
    def pooled(self) -> bool:
        """Return whether a pooler, such as PgBouncer, may give each transaction another session."""
        return not self.is_sqlite and self._pooled

    async def open_session(self, on_end: Callable[[object], None]) -> Session:
        """Open a connection to PostgreSQL that stays with the caller, until `close_session`.

        Args:
            on_end: called with the driver's connection when it has been closed or lost.
        """
        connection = await self.reader.connect()
        driver: Any = (await connection.get_raw_connection()).driver_connection
        driver.add_termination_listener(on_end)
        return Session(connection, driver, self._generation)

    def is_current(self, session: Session) -> bool:
        """Return whether no other server may have taken the place of the session's."""
        return session.generation == self._generation

    @property
    def exhausted(self) -> bool:
        """Return whether all connections are in use."""
        pool = self.engine.sync_engine.pool
        return isinstance(pool, QueuePool) and pool.checkedout() >= pool.size()

    async def close_session(self, session: Session) -> None:
        """Close the connection instead of returning it to the pool, and so end its session."""
        await session.connection.invalidate()
        await session.connection.close()

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[AsyncConnection]:
        """Open a transaction on a connection of the pool.

        After a commit the connection returns to the pool in a task. So the caller can publish what
        was committed meanwhile.
        """
        connection = await self.engine.connect()
        try:
            async with connection.begin():
                yield connection
        except BaseException:
            await connection.__aexit__(None, None, None)  # to its end, unlike `close`
            raise
        closing = asyncio.create_task(connection.close())
        self._closing.add(closing)
        closing.add_done_callback(self._closed)

    def _closed(self, closing: asyncio.Task[None]) -> None:
        self._closing.discard(closing)
        if not closing.cancelled() and (error := closing.exception()) is not None:
            logger.warning("a connection did not return to the pool", exc_info=error)

    async def aclose(self) -> None:
        """Close the connections."""
        while self._closing:
            await asyncio.wait(self._closing)
        await self.engine.dispose()

    def _count(self, *arguments: Any) -> None:  # noqa: ANN401 - SQLAlchemy's signature
        _, _, statement, _, context, _ = arguments
        self.statements[statement.split(None, 1)[0].lower()] += 1
        options = context.execution_options if context is not None else {}
        self.purposes[options.get("purpose", "write")] += 1

    def _connect(
        self, dialect: Dialect, record: ConnectionPoolEntry, _: object, options: Options
    ) -> object:
        """Connect to PostgreSQL, and detect a pooler in front of it, or another server than before.

        A statement that was prepared on one connection of a pooler does not exist on the next, or
        has been prepared by another client. Behind a pooler no statement stays prepared, at a
        small cost for each query.
        """
        record.info[_GENERATION] = self._generation
        pooled = self._pooled
        connection: Any = dialect.connect(**{**options, **(_UNPREPARED if pooled else {})})
        try:
            if self._detects_pooler:
                self._pooled = await_only(_is_pooled(connection.driver_connection))
                if self._pooled is not pooled:
                    connection.close()
                    if self._pooled:
                        logger.info(
                            "a pooler stands before the database: statements are not kept prepared"
                        )
                    unprepared = _UNPREPARED if self._pooled else {}
                    connection = dialect.connect(**{**options, **unprepared})
            if not self._pooled:
                self._note_server(await_only(_server_of(connection.driver_connection)), record)
        except BaseException:
            connection.terminate()
            raise
        return connection

    def _note_server(self, server: str, record: ConnectionPoolEntry) -> None:
        """Have the connections before replaced if a new one leads to another server.

        The former primary may live on after a failover. A load from it would return what the new
        one has changed since. A connection that was begun before the pool was renewed may lead to
        it, too. It is discarded when it is used.
        """
        if record.info[_GENERATION] != self._generation:
            return
        if self._server not in {None, server}:
            self.renew()
            record.info[_GENERATION] = self._generation
        self._server = server


def _prepare_sqlite(connection: Any, _record: Any) -> None:  # noqa: ANN401 - SQLAlchemy's signature
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")  # in WAL, safe against the death of the process
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


async def _is_pooled(connection: Any) -> bool:  # noqa: ANN401 - asyncpg has no types
    """Return whether the process that answers is another one than the one we connected to.

    A pooler has invented the process id that came with the connection. The simple query protocol
    prepares nothing, and asyncpg returns no rows from it, so the answer is their number.
    """
    pid = int(connection.get_server_pid())
    status = await connection.execute(f"SELECT 1 WHERE pg_backend_pid() = {pid}")
    return bool(status != "SELECT 1")


async def _server_of(connection: Any) -> str:  # noqa: ANN401 - asyncpg has no types
    """Return what differs for each server and each of its starts."""
    return str(await connection.fetchval("SELECT pg_postmaster_start_time()::text"))


def _notice_disconnect(context: ExceptionContext) -> None:
    """Tell the pool to discard connections that the driver itself takes to be usable."""
    if classify(context.original_exception) is Failure.DISCONNECTED:
        context.is_disconnect = True

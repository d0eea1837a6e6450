"""The database: engine, tables, connections, and a count of every statement sent.

Times are integers, milliseconds since the epoch, so that both databases reckon with them alike.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import asynccontextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    event,
    text,
)
from sqlalchemy import exc as sqlalchemy_errors
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from jobcache import SourceUnavailable
from jobcache.shelter import Shelter

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sqlalchemy.engine import Row
    from sqlalchemy.sql.base import Executable

metadata = MetaData()
_Id = BigInteger().with_variant(Integer, "sqlite")

clients = Table(
    "clients",
    metadata,
    Column("id", String(64), primary_key=True),
    # of the client's list of jobs: raised by whatever adds or removes one
    Column("version", BigInteger, nullable=False),
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("client_id", String(64), ForeignKey("clients.id"), nullable=False),
    Column("prompt", Text, nullable=False),
    Column("scenes", Integer),
    Column("seconds_per_scene", Float, nullable=False),
    Column("renderer", String(16), nullable=False),
    Column("status", String(16), nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("percent", Float, nullable=False),
    Column("stage", Text, nullable=False),
    Column("message", Text, nullable=False),
    Column("progress_at", BigInteger),
    Column("pace_ms", BigInteger),  # between recent progress reports
    Column("storyboard", Text),
    Column("storyboard_version", BigInteger),
    Column("video_url", Text),
    Column("error", Text),
    Column("created_at", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    Column("idempotency_key", String(255)),
    Column("request_hash", String(64)),
    UniqueConstraint("client_id", "idempotency_key"),
    # Lists run newest first; each of these ends where the page begins.
    Index("jobs_by_client", "client_id", "id"),
    Index("jobs_by_client_and_status", "client_id", "status", "id"),
    Index("jobs_by_status", "status", "id"),
    sqlite_autoincrement=True,  # an id is never given twice, or versions would start anew
)

claims = Table(
    "claims",
    metadata,
    # Which process is at work on which job. Apart from `jobs`, for it is no part of the document.
    Column("job_id", _Id, ForeignKey("jobs.id"), primary_key=True, autoincrement=False),
    Column("runner", String(64), nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Column("attempts", Integer, nullable=False),
)

_AWAY = (
    sqlalchemy_errors.OperationalError,
    sqlalchemy_errors.InterfaceError,
    sqlalchemy_errors.TimeoutError,
    OSError,
    TimeoutError,
)
_TABLES_LOCK = 7_262_637  # any number, the same in every process


class DatabaseUnavailable(SourceUnavailable):
    """The database cannot be reached, or did not answer in time."""


class Database:
    """Connections to one database, SQLite or PostgreSQL.

    Args:
        url: an SQLAlchemy URL with an asyncio driver.

    Attributes:
        statements: how many were sent, by verb: "select", "update", and so on.
        purposes: how many were sent, by what for, as `read` was told.
        shelter: writes run in it. A write that is cancelled half way leaves its connection, and
            in SQLite the one lock there is, in the driver's hands until a time-out.
    """

    def __init__(self, url: str) -> None:
        self.statements: Counter[str] = Counter()
        self.purposes: Counter[str] = Counter()
        self.shelter = Shelter()
        self.is_sqlite = make_url(url).get_backend_name() == "sqlite"
        if self.is_sqlite:
            options: dict[str, Any] = {"connect_args": {"timeout": 10}}
        else:
            options = {"connect_args": {"timeout": 5, "command_timeout": 10}}
        self._engine = create_async_engine(
            url, pool_size=10, max_overflow=10, pool_timeout=10, **options
        )
        # One statement is a snapshot of its own; no BEGIN and ROLLBACK around it.
        self._reader = self._engine.execution_options(isolation_level="AUTOCOMMIT")
        # SQLite lets in one writer at a time and makes the others poll; here they queue.
        self._writing = asyncio.Lock() if self.is_sqlite else nullcontext()
        event.listen(self._engine.sync_engine, "before_cursor_execute", self._count)
        if self.is_sqlite:
            event.listen(self._engine.sync_engine, "connect", _prepare_sqlite)

    def _count(self, *arguments: Any) -> None:  # noqa: ANN401 - SQLAlchemy's signature
        _, _, statement, _, context, _ = arguments
        self.statements[statement.split(None, 1)[0].lower()] += 1
        options = context.execution_options if context is not None else {}
        self.purposes[options.get("purpose", "write")] += 1

    async def create_tables(self) -> None:
        """Make what is missing; safe with several processes starting at once."""
        async with self.transaction() as connection:
            if not self.is_sqlite:
                await connection.execute(text(f"SELECT pg_advisory_xact_lock({_TABLES_LOCK})"))
            await connection.run_sync(_create_all)

    async def read(self, statement: Executable, purpose: str) -> list[Row[Any]]:
        """Run one SELECT in a snapshot of its own, begun now.

        Args:
            statement: what to select.
            purpose: a word to count it under.

        Raises:
            DatabaseUnavailable: there was no answer.
        """
        labelled = statement.execution_options(purpose=purpose)
        try:
            return await self._select(labelled)
        except sqlalchemy_errors.DBAPIError as error:
            if not error.connection_invalidated:
                raise _translated(error) from error
        except _AWAY as error:
            raise DatabaseUnavailable(_brief(error)) from error
        # The pool's connections died since they were last used; it has noticed by now.
        try:
            return await self._select(labelled)
        except (sqlalchemy_errors.DBAPIError, *_AWAY) as error:
            raise _translated(error) from error

    async def _select(self, statement: Executable) -> list[Row[Any]]:
        async with self._reader.connect() as connection:
            return list((await connection.execute(statement)).all())

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        """A transaction: committed when the block ends, rolled back when it raises.

        Raises:
            DatabaseUnavailable: the database went away; whether it had committed is not known.
        """
        try:
            async with self._writing, self._engine.begin() as connection:
                yield connection
        except (sqlalchemy_errors.DBAPIError, *_AWAY) as error:
            raise _translated(error) from error

    async def write(self, statement: Executable) -> list[Row[Any]]:
        """Run one statement that changes something, in a transaction of its own, to its end.

        Raises:
            DatabaseUnavailable: as for `transaction`.
        """
        return await self.shelter.run(self._execute(statement))

    async def _execute(self, statement: Executable) -> list[Row[Any]]:
        async with self.transaction() as connection:
            result = await connection.execute(statement)
            return list(result.all()) if result.returns_rows else []

    async def aclose(self) -> None:
        """Close the connections, once writes under way have ended."""
        await self.shelter.settle()
        await self._engine.dispose()


def _prepare_sqlite(connection: Any, _record: Any) -> None:  # noqa: ANN401 - SQLAlchemy's signature
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")  # in WAL, safe against the death of the process
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _create_all(connection: Connection) -> None:
    metadata.create_all(connection)


def _translated(error: BaseException) -> BaseException:
    away = isinstance(error, _AWAY) or (
        isinstance(error, sqlalchemy_errors.DBAPIError) and error.connection_invalidated
    )
    return DatabaseUnavailable(_brief(error)) if away else error


def _brief(error: BaseException) -> str:
    cause = getattr(error, "orig", None) or error
    return f"{type(cause).__name__}: {cause}".splitlines()[0]

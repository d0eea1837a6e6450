"""The database: engine, tables, connections, and a count of every statement sent.

Times are integers, milliseconds since the epoch, so that both databases reckon with them alike.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections import Counter
from contextlib import asynccontextmanager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, TypeVar

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
    and_,
    delete,
    event,
    false,
    literal_column,
    or_,
    select,
    text,
)
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.util import await_only

from app.db.errors import Failure, classify, driver_error, is_write_refused
from app.db.url import read_postgres_url
from jobcache import SourceUnavailable
from jobcache._concurrency.tasks import ShieldedTasks

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator

    from sqlalchemy.engine import URL, Dialect, ExceptionContext, Row
    from sqlalchemy.sql.base import Executable

    from app.db.outage_logger import OutageLogger

    Options = dict[str, Any]

T = TypeVar("T")
Pooler: TypeAlias = Literal["auto", "none", "transaction"]
logger = logging.getLogger("app")

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

RUNNABLE = or_(
    jobs.c.status.in_([literal_column("'pending'"), literal_column("'storyboarding'")]),
    and_(
        jobs.c.status == literal_column("'rendering'"),
        jobs.c.renderer != literal_column("'external'"),
    ),
)
"""Jobs that are the service's to move along. Spelt out, for a planner that meets a parameter cannot
know that the index below is enough; and that index is as small as what is to be done."""
Index("jobs_to_move", jobs.c.id, sqlite_where=RUNNABLE, postgresql_where=RUNNABLE)

identity = Table(
    "service_identity",
    metadata,
    # One row. What shares a store with other services tells by it which database it belongs to.
    Column("source_id", String(32), primary_key=True),
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

_UNPREPARED = {"statement_cache_size": 0, "prepared_statement_cache_size": 0}
_TRY_TO_WRITE = delete(clients).where(false()).returning(clients.c.id)
_TABLES_LOCK = 7_262_637  # any number, the same in every process
PROCESSES_LOCK = 7_262_638
PROCESSES_KEY = f"{PROCESSES_LOCK}, 'jobs'::regclass::oid::int4"
"""Of the advisory lock of `app.db.registration`: of this database, and the schema of its tables."""
_SHARE = text(f"SELECT pg_advisory_xact_lock_shared({PROCESSES_KEY})")
_CONNECTIONS = 15
_WRITES = 10  # of them, at the most
_LONGEST_WAIT = 10
"""Seconds that a write may wait for SQLite's one lock, in this process and then in the file."""
_LONGEST_READ, _LONGEST_WRITE = 5, 10
"""Seconds that a read or a transaction may take on a server, which may hang: all in all, from the
wait for a connection to the last answer. A limit for each step would be a sum that nobody sees."""
_REFUSED_FOR = 10
"""Seconds after a refused write in which the service is not ready, unless a write succeeds."""


class DatabaseUnavailable(SourceUnavailable):
    """The database cannot be reached, did not answer in time, or refuses to work for now."""


class NothingChanged(DatabaseUnavailable):
    """The database is sure to have changed nothing, and another attempt is likely to succeed."""


class ConnectionDied(NothingChanged):
    """The connection was lost before a commit was asked for."""


@dataclass(frozen=True, slots=True)
class Session:
    """A connection that is kept, to hold what a session of PostgreSQL holds.

    Attributes:
        connection: SQLAlchemy's.
        driver: asyncpg's.
    """

    connection: AsyncConnection
    driver: Any


class WritePermission(Protocol):
    """What a write needs first: the registration of this process, see `app.db.registration`."""

    async def wait(self) -> None:
        """Return once this process may write."""


class Database:
    """Connections to one database, SQLite or PostgreSQL.

    Args:
        url: an SQLAlchemy URL with an asyncio driver.
        outage: is told what fails and what does not, once the tables are there.
        pool_recycle: seconds after which a connection is replaced instead of used again.
        pooler: "transaction" if a pooler such as PgBouncer stands before PostgreSQL and gives each
            transaction another session; "none"; "auto" finds out.

    Raises:
        ValueError: a parameter of a PostgreSQL URL cannot be used.

    Attributes:
        statements: how many were sent, by verb: "select", "update", and so on.
        purposes: how many were sent, by what for, as `read` was told.
        shielded: writes run in it. A write that is cancelled half way leaves its connection, and
            in SQLite the one lock there is, in the driver's hands until a time-out.
        registration: what writes wait for, once there is one.
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
        self.statements: Counter[str] = Counter()
        self.purposes: Counter[str] = Counter()
        self.shielded = ShieldedTasks()
        self.registration: WritePermission | None = None
        self.is_sqlite = make_url(url).get_backend_name() == "sqlite"
        parsed = make_url(url)
        arguments: dict[str, Any] = {"timeout": _LONGEST_WAIT}
        if not self.is_sqlite:
            address = read_postgres_url(parsed)
            parsed = address.url
            arguments = {"timeout": 5, "command_timeout": 10, **address.arguments}
            if address.pooled:
                pooler = "transaction"
            if address.warning:
                logger.warning(address.warning)
        self._detects_pooler = pooler == "auto"
        self._pooled = pooler != "none"  # until a connection has shown that there is none
        self._engine = create_async_engine(
            parsed,
            connect_args=arguments,
            # All kept: connections beyond a pool's size are opened and closed under load.
            pool_size=_CONNECTIONS + 1,  # for the session of the registration
            max_overflow=0,
            pool_timeout=10,
            pool_recycle=pool_recycle,
            hide_parameters=True,  # an error goes into the log; a client's prompt does not
        )
        # One statement is a snapshot of its own; no BEGIN and ROLLBACK around it.
        self._reader = self._engine.execution_options(isolation_level="AUTOCOMMIT")
        # SQLite lets in one writer at a time and makes the others poll; here they queue. Elsewhere
        # some connections are left to reads: while Redis hangs, each transaction is open for as
        # long as its fence is waited for, and polls would have to wait for them.
        self._writing = asyncio.Semaphore(1 if self.is_sqlite else _WRITES)
        event.listen(self._engine.sync_engine, "before_cursor_execute", self._count)
        event.listen(self._engine.sync_engine, "handle_error", _notice_disconnect)
        if self.is_sqlite:
            event.listen(self._engine.sync_engine, "connect", _prepare_sqlite)
        else:
            event.listen(self._engine.sync_engine, "do_connect", self._connect)

    def _count(self, *arguments: Any) -> None:  # noqa: ANN401 - SQLAlchemy's signature
        _, _, statement, _, context, _ = arguments
        self.statements[statement.split(None, 1)[0].lower()] += 1
        options = context.execution_options if context is not None else {}
        self.purposes[options.get("purpose", "write")] += 1

    @property
    def pooled(self) -> bool:
        """Whether a pooler, such as PgBouncer, may give each transaction another session."""
        return not self.is_sqlite and self._pooled

    def _connect(self, dialect: Dialect, _record: object, _: object, options: Options) -> object:
        """Connect to PostgreSQL, and find out whether a pooler stands before it.

        A statement that was prepared on one connection of a pooler is not there on the next, or
        has been prepared by somebody else. So none is kept then, which costs each query a little.
        """
        pooled = self._pooled
        connection: Any = dialect.connect(**{**options, **(_UNPREPARED if pooled else {})})
        if not self._detects_pooler:
            return connection
        try:
            self._pooled = await_only(_is_pooled(connection.driver_connection))
        except BaseException:
            connection.terminate()
            raise
        if self._pooled is pooled:
            return connection
        connection.close()
        if self._pooled:
            logger.info("a pooler stands before the database: statements are not kept prepared")
        return dialect.connect(**{**options, **(_UNPREPARED if self._pooled else {})})

    async def create_tables(self) -> None:
        """Make what is missing; safe with several processes starting at once."""
        give_up_at = time.monotonic() + _LONGEST_WAIT
        while True:
            try:
                await self._create_tables()
            except DatabaseUnavailable as error:
                # SQLite does not wait for a process that is switching the file to WAL.
                if "database is locked" not in str(error) or time.monotonic() > give_up_at:
                    raise
                await asyncio.sleep(0.02)
            else:
                return

    async def _create_tables(self) -> None:
        # One process looks what is missing, and makes it, while the others wait:
        #   A: no table "clients"   B: no table "clients"   A: creates it   B: it already exists
        async with self.transaction() as connection:
            if self.is_sqlite:
                # The driver would begin a transaction before an INSERT, but not before this.
                await connection.execute(text("BEGIN IMMEDIATE"))
            else:
                await connection.execute(text(f"SELECT pg_advisory_xact_lock({_TABLES_LOCK})"))
            await connection.run_sync(_create_all)
            if (await connection.execute(select(identity.c.source_id))).first() is None:
                await connection.execute(identity.insert().values(source_id=uuid.uuid4().hex))

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
            statement: what to select.
            purpose: a word to count it under.
            parameters: of the statement.

        Raises:
            DatabaseUnavailable: there was no answer.
        """
        with self._watching(), _translating():
            async with self._within(_LONGEST_READ):
                try:
                    return await self._select(statement, purpose, parameters)
                except Exception as error:
                    if not _may_repeat(error):
                        raise
                # The pool has discarded all connections of that age, or the stale plan is gone.
                return await self._select(statement, purpose, parameters)

    async def _select(
        self, statement: Executable, purpose: str, parameters: dict[str, Any]
    ) -> list[Row[Any]]:
        # Not an option of the statement: that would be another one, to be looked through anew.
        options = {"purpose": purpose}
        async with self._reader.connect() as connection:
            result = await connection.execute(statement, parameters, execution_options=options)
            return list(result.all())

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        """A transaction: committed when the block ends, rolled back when it raises.

        Raises:
            NothingChanged: the connection was lost before the commit was asked for, or the
                server has rolled back by itself.
            DatabaseUnavailable: the database went away; whether it had committed is not known.
        """
        committing = False
        try:
            with _translating():
                async with self._turn(), self._within(_LONGEST_WRITE):
                    if self.registration is not None:
                        await self.registration.wait()
                    async with self._engine.begin() as connection:
                        if self.registration is not None and self.pooled:
                            await connection.execute(_SHARE)
                        yield connection
                        committing = True
        except DatabaseUnavailable as error:
            cause = error.__cause__
            if isinstance(cause, Exception):
                if is_write_refused(cause):
                    self._refused_at = time.monotonic()
                if classify(cause) is Failure.RETRY:
                    raise NothingChanged(str(error)) from cause
                if not committing and _may_repeat(cause):
                    raise ConnectionDied(str(error)) from cause
            raise
        self._refused_at = None

    async def change(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run `work`, which makes one transaction, to its end, whatever becomes of the caller.

        Twice, if its connection dies before the commit is asked for: most likely it has been dead
        since before, and nothing has been changed through it. So the first write after the
        database has come back succeeds, and no write pays for looking at its connection first.
        Also twice after a deadlock or a plan that a changed table outdated.

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

    @asynccontextmanager
    async def _within(self, seconds: float) -> AsyncIterator[None]:
        if self.is_sqlite:  # has limits of its own, and a thread that cannot be cancelled
            yield
            return
        try:
            # The connection is thrown away then: what it may still bring is for nobody.
            async with asyncio.timeout(seconds) as limit:
                yield
        except TimeoutError as error:
            if not limit.expired():
                raise  # a limit of the driver's
            raise DatabaseUnavailable(f"no answer within {seconds:g} s") from error

    @contextmanager
    def _watching(self) -> Iterator[None]:
        try:
            yield
        except DatabaseUnavailable as error:
            if self._outage is not None:
                self._outage.note(error)
            raise
        if self._outage is not None:
            self._outage.answered()

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        try:
            # A limit costs more than the turn itself where it is there to be had.
            limit = _LONGEST_WAIT if self._writing.locked() else None
            async with asyncio.timeout(limit):
                await self._writing.acquire()
        except TimeoutError as error:
            raise DatabaseUnavailable("too many writes are waiting") from error
        try:
            yield
        finally:
            self._writing.release()

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

    @property
    def url(self) -> URL:
        """The address, as SQLAlchemy has it."""
        return self._engine.url

    async def open_session(self, on_end: Callable[[object], None]) -> Session:
        """Open a connection to PostgreSQL that stays with the caller, until `close_session`.

        Args:
            on_end: called with the driver's connection when it has been closed or lost.

        Raises:
            DatabaseUnavailable: there is none to be had.
        """
        with _translating():
            async with self._within(_LONGEST_READ):
                connection = await self._reader.connect()
            driver: Any = (await connection.get_raw_connection()).driver_connection
            driver.add_termination_listener(on_end)
            return Session(connection, driver)

    async def close_session(self, session: Session) -> None:
        """Close it, not only give it back: with it goes what it holds."""
        await session.connection.invalidate()
        await session.connection.close()

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
        await self._engine.dispose()


def _prepare_sqlite(connection: Any, _record: Any) -> None:  # noqa: ANN401 - SQLAlchemy's signature
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")  # in WAL, safe against the death of the process
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


async def _is_pooled(connection: Any) -> bool:  # noqa: ANN401 - asyncpg has no types
    """Return whether the process that answers is another one than the one we connected to.

    A pooler has invented the process id that came with the connection. Asked in the simple query
    protocol, which prepares nothing; that returns no rows, so the answer is their number.
    """
    pid = int(connection.get_server_pid())
    status = await connection.execute(f"SELECT 1 WHERE pg_backend_pid() = {pid}")
    return bool(status != "SELECT 1")


def _create_all(connection: Connection) -> None:
    metadata.create_all(connection)
    for table in metadata.sorted_tables:
        for index in table.indexes:
            index.create(connection, checkfirst=True)  # one that an older version did not have


def _notice_disconnect(context: ExceptionContext) -> None:
    """Tell the pool to discard connections that the driver itself takes to be usable."""
    if classify(context.original_exception) is Failure.DISCONNECTED:
        context.is_disconnect = True


@contextmanager
def _translating() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if classify(error) is Failure.BUG:
            raise
        raise DatabaseUnavailable(_brief(error)) from error


def _may_repeat(error: Exception) -> bool:
    """Return whether a statement that failed so may be sent again, unless it was a COMMIT."""
    died: bool = getattr(error, "connection_invalidated", False)
    return died or classify(error) is Failure.RETRY


def _brief(error: BaseException) -> str:
    cause = driver_error(error)
    return f"{type(cause).__name__}: {cause}".splitlines()[0]

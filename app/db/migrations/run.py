"""Upgrade and downgrade of a database, while other processes may use it.

On PostgreSQL each revision is a transaction. It waits for the lock of a table for a moment only,
because all later readers and writers of the table would wait behind it:

    A reads "jobs" for minutes    upgrade: ALTER TABLE jobs, waits for A    polls: wait for upgrade

It gives up instead, lets the others pass, and tries again. On SQLite all revisions are one
transaction, during which others read, and wait to write.
"""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import text

from app.db.connections import Connections
from app.db.database import Database
from app.db.driver_errors import driver_error
from app.db.errors import DatabaseUnavailable, RevisionError, explaining
from app.db.revisions import BASE, HEAD, check_revision, read_revision
from app.db.url import scheme_and_host
from jobcache import SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy import Connection
    from sqlalchemy.ext.asyncio import AsyncConnection

    from app.db.connections import Pooler

logger = logging.getLogger("app")

_FOLDER: Final = Path(__file__).parent
VERSIONS: Final = _FOLDER / "versions"
_MIGRATING: Final = 7_262_639
"""The advisory lock of the process that migrates: any number, the same in every process."""
_SESSION: Final = {
    "lock_timeout": "500ms",
    "statement_timeout": "0",  # an index of a large table takes minutes
    "idle_in_transaction_session_timeout": "0",
}
_PATIENCE = 60.0
"""Seconds to try to lock a table."""
_PAUSE = 0.2
_SQLITE_LOCK_WAIT = 30.0
_LOCK_STATES = {"55P03", "40P01"}  # lock timeout, deadlock: the revision is undone


class Migrations:
    """Migrations of one database.

    Args:
        url: as for `Database`.
        pooler: as for `Database`.
        folders: with the revisions; those of the service, and in tests some more.
    """

    def __init__(
        self, url: str, *, pooler: Pooler = "auto", folders: Sequence[Path] = (VERSIONS,)
    ) -> None:
        self._url = url
        self._pooler = pooler
        self._address = scheme_and_host(url)
        self._config = Config()
        self._set("path_separator", "newline")
        self._set("script_location", str(_FOLDER))
        self._set("version_locations", "\n".join(map(str, folders)))
        self._scripts = ScriptDirectory.from_config(self._config)

    def _set(self, option: str, value: str) -> None:
        self._config.set_main_option(option, value.replace("%", "%%"))

    @property
    def head(self) -> str:
        """Return the newest revision."""
        return self._scripts.get_current_head() or BASE

    def history(self) -> list[str]:
        """Return a line for each revision, the newest first."""
        return [
            f"{each.revision}{' (head)' if each.is_head else ''}  {each.doc}"
            for each in self._scripts.walk_revisions()
        ]

    async def current(self) -> str | None:
        """Return the revision of the database, as `read_revision` does.

        Raises:
            SettingsError: an option of the URL cannot be used.
            DatabaseUnavailable: the database cannot be used.
        """
        database = Database(self._url, pooler=self._pooler)
        try:
            return await database.revision()
        finally:
            await database.aclose()

    async def upgrade(self, to: str = "head") -> None:
        """Create the tables if there are none; otherwise apply the revisions that are missing.

        Other processes that upgrade or downgrade the database wait meanwhile. After a failure,
        revisions that were completed stay applied, and another call continues.

        Raises:
            SettingsError: an option of the URL cannot be used, or names a pooler.
            RevisionError: the database is newer than the newest revision here, its tables are
                not those of the service, or there is no revision `to`.
            DatabaseUnavailable: the database cannot be used, or does not let a table be locked.
        """
        database = Database(self._url, pooler=self._pooler)
        try:
            found = await database.revision()
            if found is None and to == "head":
                await database.prepare_tables()
                found = HEAD
        finally:
            await database.aclose()
        if found != (self.head if to == "head" else to):
            await self._migrate(lambda: command.upgrade(self._config, to))

    async def downgrade(self, to: str) -> None:
        """Undo revisions, the newest first.

        Args:
            to: a revision; "-1" for one less; "base" for tables without a revision. They keep
                their data, and an upgrade adopts them again.

        Raises:
            SettingsError, RevisionError, DatabaseUnavailable: as for `upgrade`.
        """
        await self._migrate(lambda: command.downgrade(self._config, to))

    async def execute(self, statements: Sequence[str]) -> None:
        """Execute statements of PostgreSQL in one transaction, at the newest revision.

        Raises:
            SettingsError, RevisionError, DatabaseUnavailable: as for `upgrade`.
        """

        def apply() -> None:
            connection: Connection = self._config.attributes["connection"]
            with connection.begin():
                for statement in statements:
                    connection.exec_driver_sql(statement)

        check_revision(await self.current())
        await self._migrate(apply)

    async def _migrate(self, apply: Callable[[], None]) -> None:
        with explaining(self._address):
            connections = Connections(
                self._url,
                recycle=-1,
                pooler=self._pooler,
                sqlite_lock_wait=_SQLITE_LOCK_WAIT,
                statement_limit=None,  # as for `_SESSION`
            )
            try:
                async with connections.engine.connect() as connection:
                    if connections.is_sqlite:
                        await self._on_sqlite(connection, apply)
                    elif connections.pooled:
                        raise SettingsError(
                            "DATABASE_URL",
                            self._address,
                            "the address of PostgreSQL itself: a migration needs one session, and"
                            " this is a pooler. Give the address with --database-url",
                        )
                    else:
                        try:
                            await self._on_postgres(connection, apply)
                        finally:
                            await connection.invalidate()  # ends the session, with its lock
            except CommandError as error:
                raise RevisionError(f"The database cannot be migrated: {error}") from error
            finally:
                await connections.aclose()

    async def _on_sqlite(self, connection: AsyncConnection, apply: Callable[[], None]) -> None:
        await connection.execute(text("BEGIN IMMEDIATE"))  # one process after the other
        await connection.run_sync(self._run, apply)
        await connection.commit()

    async def _on_postgres(self, connection: AsyncConnection, apply: Callable[[], None]) -> None:
        await _lock(connection)
        give_up_at = time.monotonic() + _PATIENCE
        while True:
            for setting, value in _SESSION.items():
                await connection.execute(text(f"SET {setting} = '{value}'"))
            await connection.commit()
            try:
                await connection.run_sync(self._run, apply)
            except Exception as error:
                if getattr(driver_error(error), "sqlstate", None) not in _LOCK_STATES:
                    raise
                if time.monotonic() > give_up_at:
                    raise DatabaseUnavailable(
                        "other transactions do not let go of a table. The revision under way has"
                        " been undone; try again"
                    ) from error
                await connection.rollback()
                await asyncio.sleep(_PAUSE)
            else:
                return

    def _run(self, connection: Connection, apply: Callable[[], None]) -> None:
        """Run an Alembic command on the connection, unless the database is too new for it."""
        found = read_revision(connection)
        if connection.dialect.name != "sqlite":
            connection.rollback()  # Alembic begins and ends the transactions
        if found not in {None, BASE, *(each.revision for each in self._scripts.walk_revisions())}:
            check_revision(found)
        self._config.attributes["connection"] = connection
        apply()


async def _lock(connection: AsyncConnection) -> None:
    """Wait until no other process migrates the database.

    Rejected: to wait in the server. CREATE INDEX CONCURRENTLY waits for all transactions that are
    older, so the process with the lock would wait for this one.
    """
    waiting = False
    while not await connection.scalar(text(f"SELECT pg_try_advisory_lock({_MIGRATING})")):
        await connection.commit()
        if not waiting:
            waiting = True
            logger.info("another process migrates the database; waiting for it")
        await asyncio.sleep(_PAUSE)
    await connection.commit()

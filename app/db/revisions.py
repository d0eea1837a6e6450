"""The revision of the tables: the one that a database has, and the one that this code needs."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Final

from sqlalchemy import Column, MetaData, PrimaryKeyConstraint, String, Table, select, text

from app.db.errors import RevisionError
from app.db.tables import identity, metadata

if TYPE_CHECKING:
    from sqlalchemy import Connection

HEAD: Final = "0002"
"""The newest revision in `app/db/migrations/versions/`. Written here too, so that a start of the
service need not import Alembic."""
BASE: Final = "base"
"""Alembic's name for the state before the first revision: tables that have no revision yet."""

revisions = Table(
    "alembic_version",
    MetaData(),  # Alembic's own table, and as Alembic would create it
    Column("version_num", String(32), nullable=False),
    PrimaryKeyConstraint("version_num", name="alembic_version_pkc"),
)

_TABLES = {
    "sqlite": text("SELECT name FROM sqlite_master WHERE type = 'table'"),
    "postgresql": text(  # in each schema of the search path
        "SELECT relname FROM pg_class WHERE relkind IN ('r', 'p') AND pg_table_is_visible(oid)"
    ),
}
_CREATING = 7_262_637
"""The advisory lock of the process that creates tables: any number, the same in every process and
every version, and not the one of `app.db.postgres_lock`."""


def read_revision(connection: Connection) -> str | None:
    """Return the revision of a database; `BASE` if its tables have none, None without tables."""
    existing = set(connection.execute(_TABLES[connection.dialect.name]).scalars())
    if revisions.name in existing:
        found = connection.execute(select(revisions.c.version_num)).scalars().all()
        if found:
            return ", ".join(sorted(found))  # one, unless Alembic was told otherwise
    return BASE if existing.intersection(metadata.tables) else None


def check_revision(found: str | None) -> None:
    """Check that this code can use the tables of a database.

    Raises:
        RevisionError: their revision is older or newer than `HEAD`.
    """
    if found == HEAD:
        return
    if found is None or found == BASE:
        raise RevisionError(
            "The database is too old: its tables have no revision, and this version of the service"
            f" needs {HEAD}. Run `python -m app db upgrade`; it keeps all data"
        )
    if found.isdecimal() and int(found) < int(HEAD):
        raise RevisionError(
            f"The database is too old: it is at revision {found}, and this version of the service"
            f" needs {HEAD}. Run `python -m app db upgrade`"
        )
    raise RevisionError(
        f"The database is too new: it is at revision {found}, and this version of the service"
        f" needs {HEAD}. Start the newer version, or run `python -m app db downgrade {HEAD}` there"
    )


def create_tables(connection: Connection) -> None:
    """Create the tables, at the newest revision, in a database that has none.

    It is one transaction. One process looks and creates while the others wait. Without a lock:

        A: no table "clients"   B: no table "clients"   A: creates it   B: it already exists
    """
    lock_creation(connection)
    if read_revision(connection) is not None:
        return  # another process was first
    metadata.create_all(connection, checkfirst=False)
    revisions.create(connection, checkfirst=True)  # an empty one may be left
    connection.execute(revisions.insert().values(version_num=HEAD))
    connection.execute(identity.insert().values(source_id=uuid.uuid4().hex))


def lock_creation(connection: Connection) -> None:
    """Wait until no other process creates tables, and keep others from it in this transaction."""
    if connection.dialect.name == "sqlite":
        # The driver would begin a transaction before an INSERT, but not before CREATE TABLE.
        connection.execute(text("BEGIN IMMEDIATE"))
    else:
        connection.execute(text(f"SELECT pg_advisory_xact_lock({_CREATING})"))

"""All that a database knows about the tables of the service, in a form that can be compared."""

from __future__ import annotations

import re
from pathlib import Path

from sqlalchemy import text

from app.db.connections import Connections
from app.db.database import Database

NEXT = Path(__file__).parent / "next_revision"
"""The folder of a revision that follows those of the service."""

_POSTGRES = [
    """SELECT table_name, column_name, data_type, is_nullable, column_default,
        character_maximum_length, row_number() OVER (PARTITION BY table_name ORDER BY
        ordinal_position) FROM information_schema.columns WHERE table_schema = 'public'""",
    "SELECT tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'",
    """SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint
        WHERE connamespace = 'public'::regnamespace""",
    "SELECT relname, reloptions::text FROM pg_class WHERE relnamespace = 'public'::regnamespace",
    "SELECT indexrelid::regclass::text FROM pg_index WHERE NOT indisvalid",
    "SELECT sequencename, data_type::text FROM pg_sequences",
]
_SQLITE = ["SELECT type, name, tbl_name, sql FROM sqlite_master"]


async def schema(database_url: str) -> set[tuple[object, ...]]:
    """Return a row for each column, index, constraint and storage parameter."""
    rows = set()
    for number, statement in enumerate(_SQLITE if "sqlite" in database_url else _POSTGRES):
        for row in await query(database_url, statement):
            rows.add((number, *(_spaced(value) for value in row)))
    return rows


async def query(database_url: str, *statements: str) -> list[tuple[object, ...]]:
    """Run statements, each in a transaction of its own; return the rows of the last one."""
    connections = Connections(database_url, recycle=60, pooler="none", sqlite_lock_wait=60)
    rows: list[tuple[object, ...]] = []
    async with connections.engine.connect() as connection:
        for statement in statements:
            result = await connection.execute(text(statement))
            rows = [tuple(row) for row in result] if result.returns_rows else []
            await connection.commit()
    await connections.aclose()
    return rows


async def prepare(database_url: str) -> None:
    """Prepare the tables, as a start of the service does."""
    database = Database(database_url)
    try:
        await database.prepare_tables()
    finally:
        await database.aclose()


async def drop_tables(database_url: str) -> None:
    """Drop the tables of the service, and the one with its revision."""
    names = ["claims", "jobs", "clients", "service_identity", "alembic_version"]
    await query(database_url, *(f"DROP TABLE {name}" for name in names))


def _spaced(value: object) -> object:
    return " ".join(re.split(r"\s+", value)) if isinstance(value, str) else value

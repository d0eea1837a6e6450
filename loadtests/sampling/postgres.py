"""Counters that PostgreSQL keeps for a database."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import asyncpg

if TYPE_CHECKING:
    from pathlib import Path

COUNTERS = (
    "xact_commit",
    "xact_rollback",
    "tup_returned",
    "tup_fetched",
    "tup_inserted",
    "tup_updated",
    "blks_read",
    "blks_hit",
)
"""Columns of `pg_stat_database`: transactions, rows and blocks."""


def database_counters(socket_directory: Path, database: str) -> dict[str, int]:
    """Return the counters of a database, of which there need be no connection.

    They are read through another database, and so do not count themselves. PostgreSQL adds what a
    connection has done at the latest when it ends.
    """
    return asyncio.run(_read(socket_directory, database))


async def _read(socket_directory: Path, database: str) -> dict[str, int]:
    connection = await asyncpg.connect(
        host=str(socket_directory), user="postgres", database="postgres"
    )
    try:
        row = await connection.fetchrow(
            f"SELECT {', '.join(COUNTERS)} FROM pg_stat_database WHERE datname = $1",  # noqa: S608
            database,
        )
    finally:
        await connection.close()
    return {name: int(row[name]) for name in COUNTERS}

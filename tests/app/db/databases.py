"""Closes a database together with the threads of its driver."""

from __future__ import annotations

from app.db.database import Database
from tests.sqlite_threads import sqlite_threads_ended


async def closed(database: Database) -> None:
    """Close a database and wait for its threads."""
    await database.aclose()
    await sqlite_threads_ended()

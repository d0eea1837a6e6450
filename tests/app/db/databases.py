"""Closes a database together with the threads of its driver."""

from __future__ import annotations

import asyncio
import threading

from app.db.database import Database


async def closed(database: Database) -> None:
    """Close a database and wait for its threads, which may not report to a loop that has ended."""
    await database.aclose()
    async with asyncio.timeout(60):
        while any("connection_worker" in thread.name for thread in threading.enumerate()):
            await asyncio.sleep(0.005)

"""Waits for the threads of SQLite's driver, which may not report to a loop that has ended.

aiosqlite does not wait for the thread of a connection that could not be opened.
"""

from __future__ import annotations

import asyncio
import threading


async def sqlite_threads_ended() -> None:
    """Wait until no connection of aiosqlite has a thread any more."""
    async with asyncio.timeout(60):
        while any("connection_worker" in thread.name for thread in threading.enumerate()):
            await asyncio.sleep(0.005)

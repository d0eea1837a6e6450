"""A cache in your own program: a loader, a writer, twenty pollers, and the queries it saves.

python examples/embedded.py

Needs `pip install jobcache`. The database is an object in memory, to keep the example short.
`docs/embedding.md` has an example with SQL, and `worker.py` one with synchronous code.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from jobcache import Document, JobCache, Lifetimes, SourceUnavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from jobcache import ReadResult

KEY = "export:7"
POLLERS = 20


@dataclass(frozen=True)
class Export:
    """A row. Each change raises its version, in the same transaction."""

    percent: int
    version: int


class Database:
    """The source of truth, which takes 10 ms for each query."""

    def __init__(self) -> None:
        self.row = Export(percent=0, version=1)
        self.queries = 0

    async def select(self) -> Export:
        """Return the committed row."""
        self.queries += 1
        row = self.row
        await asyncio.sleep(0.01)
        return row

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[list[Export]]:
        """Commit the last appended row at the end of the block, or drop it after an exception."""
        changes: list[Export] = []
        yield changes
        await asyncio.sleep(0.01)
        self.row = changes[-1]


class Exports:
    """The interface for the rest of the program: a database behind a cache."""

    def __init__(self, database: Database, cache: JobCache) -> None:
        self._database = database
        self._cache = cache

    async def poll(self, version: int) -> ReadResult:
        """Return the export, at least as new as `version`."""
        return await self._cache.read(KEY, self._load, min_version=version)

    async def report(self, percent: int) -> None:
        """Commit progress. Once this returns, no poll returns an older state."""
        async with self._cache.write(self._database.transaction()) as write:
            row = self._database.row
            changed = replace(row, percent=percent, version=row.version + 1)
            write.transaction.append(changed)
            await write.fence(KEY)  # just before the commit
            write.publish(KEY, document(changed))

    async def _load(self) -> Document:
        try:
            return document(await self._database.select())
        except ConnectionError as error:  # the cached entry is then served, marked as stale
            raise SourceUnavailable("the database is away") from error


def document(row: Export) -> Document:
    """Return the document that answers a poll."""
    status = "done" if row.percent == 100 else "moving"  # noqa: PLR2004
    body = json.dumps({"percent": row.percent, "status": status}).encode()
    return Document(row.version, "acme", body, status)


async def poll(exports: Exports, *, tell: bool) -> None:
    """Poll the export every 20 ms until it is done."""
    version, status = 0, ""
    while status != "done":
        result = await exports.poll(version)
        if tell and result.version > version:
            print(f"{result.outcome}: {result.body.decode()}")
        version, status = result.version, result.entry.status
        await asyncio.sleep(0.02)


async def work(exports: Exports) -> None:
    """Make the export, and report its progress."""
    for percent in (25, 50, 75, 100):
        await asyncio.sleep(0.1)
        await exports.report(percent)


async def main() -> None:
    """Make an export while twenty pollers wait for it."""
    database = Database()
    lifetimes = Lifetimes(default=30, by_status={"done": 3600})
    async with JobCache.from_url("memory://", lifetimes=lifetimes) as cache:
        exports = Exports(database, cache)
        async with asyncio.TaskGroup() as group:
            group.create_task(work(exports))
            for number in range(POLLERS):
                group.create_task(poll(exports, tell=number == 0))
        print(f"hit rate {cache.info().counters.hit_rate} %, {database.queries} queries")


if __name__ == "__main__":
    asyncio.run(main())

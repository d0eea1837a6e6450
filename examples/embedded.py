"""A cache in a program of one's own: a loader, a writer, those who poll, and what it has saved.

python examples/embedded.py

Needs `pip install jobcache`. The database is a dictionary, so that nothing else does; see
`docs/embedding.md` for the same with SQL, and `worker.py` for synchronous code.
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
    """A row. Whatever changes it raises its version, in the same transaction."""

    percent: int
    version: int


class Database:
    """The source of truth, slow enough to be worth sparing."""

    def __init__(self) -> None:
        self.row = Export(percent=0, version=1)
        self.queries = 0

    async def select(self) -> Export:
        """Read the row as it is committed."""
        self.queries += 1
        row = self.row
        await asyncio.sleep(0.01)
        return row

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[list[Export]]:
        """Commits the last of what was appended when left normally, drops it otherwise."""
        changes: list[Export] = []
        yield changes
        await asyncio.sleep(0.01)
        self.row = changes[-1]


class Exports:
    """What the rest of the program uses: the database behind its cache."""

    def __init__(self, database: Database, cache: JobCache) -> None:
        self._database = database
        self._cache = cache

    async def poll(self, version: int) -> ReadResult:
        """The export, at least as new as `version`."""
        return await self._cache.read(KEY, self._load, min_version=version)

    async def report(self, percent: int) -> None:
        """Commit progress. Once this returns, no poll is answered with less."""
        async with self._cache.write(self._database.transaction()) as write:
            row = self._database.row
            changed = replace(row, percent=percent, version=row.version + 1)
            write.transaction.append(changed)
            await write.fence(KEY)  # before the commit, and not before it is needed
            write.publish(KEY, document(changed))

    async def _load(self) -> Document:
        try:
            return document(await self._database.select())
        except ConnectionError as error:  # what it knew is then served, marked as such
            raise SourceUnavailable("the database is away") from error


def document(row: Export) -> Document:
    """What a poll is answered with."""
    status = "done" if row.percent == 100 else "moving"  # noqa: PLR2004
    body = json.dumps({"percent": row.percent, "status": status}).encode()
    return Document(row.version, "acme", body, status)


async def poll(exports: Exports, *, tell: bool) -> None:
    """Somebody who waits for the export, and asks every 20 ms how far it is."""
    version, status = 0, ""
    while status != "done":
        result = await exports.poll(version)
        if tell and result.version > version:
            print(f"{result.outcome.value}: {result.body.decode()}")
        version, status = result.version, result.entry.status
        await asyncio.sleep(0.02)


async def work(exports: Exports) -> None:
    """Somebody who makes the export."""
    for percent in (25, 50, 75, 100):
        await asyncio.sleep(0.1)
        await exports.report(percent)


async def main() -> None:
    """Make an export while twenty wait for it."""
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

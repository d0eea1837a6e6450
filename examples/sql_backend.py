"""A cache backend in a SQL table: the worked example of docs/backends.md.

python examples/sql_backend.py sqlite+aiosqlite:///cells.db

Needs `pip install jobcache sqlalchemy[asyncio]` and a driver: aiosqlite, or asyncpg for PostgreSQL.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import sys
import time
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    BigInteger,
    Column,
    Float,
    LargeBinary,
    MetaData,
    Table,
    delete,
    insert,
    select,
    update,
)
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.ext.asyncio import create_async_engine

from jobcache import CacheUnavailable, Document, JobCache
from jobcache.backends.compare_and_set import CompareAndSetBackend, wall_clock_ms
from jobcache.resilience.guarded_backend import GuardedBackend

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import CursorResult, Executable

cells = Table(
    "jobcache_cells",
    MetaData(),
    Column("id", LargeBinary(32), primary_key=True),
    Column("token", BigInteger, nullable=False),
    Column("cell", LargeBinary, nullable=False),
    Column("expires", Float, nullable=False, index=True),
)


class SqlBackend(CompareAndSetBackend[int]):
    """Cells in one table. Each statement is a transaction of its own."""

    name = "sql"

    def __init__(self, url: str, clock_ms: Callable[[], int] = wall_clock_ms) -> None:
        super().__init__(clock_ms=clock_ms)
        self._engine = create_async_engine(url, isolation_level="AUTOCOMMIT")

    async def read(self, key: str) -> tuple[bytes, int] | None:
        """Select the row."""
        query = select(cells.c.cell, cells.c.token).where(cells.c.id == _id(key))
        row = (await self._execute(query)).one_or_none()
        return None if row is None else (row.cell, row.token)

    async def compare_and_set(self, key: str, cell: bytes, token: int | None, ttl: float) -> bool:
        """Insert the row, or update the one that has the token."""
        new = {"token": self.new_token(), "cell": cell, "expires": time.time() + ttl}
        try:
            if token is None:
                await self._execute(insert(cells).values(id=_id(key), **new))
                return True
            return await self._changed(update(cells).where(*_at(key, token)).values(**new))
        except IntegrityError:
            return False  # somebody else has inserted the row

    async def delete(self, key: str, token: int) -> bool:
        """Delete the row that has the token."""
        return await self._changed(delete(cells).where(*_at(key, token)))

    async def aclose(self) -> None:
        """Close the connections."""
        await self._engine.dispose()

    def new_token(self) -> int:
        """Return a number that no other write has. A counter would start again with each row."""
        return secrets.randbits(63)

    async def _changed(self, statement: Executable) -> bool:
        return (await self._execute(statement)).rowcount == 1

    async def _execute(self, statement: Executable) -> CursorResult[Any]:
        try:
            async with self._engine.connect() as connection:
                return await connection.execute(statement)
        except IntegrityError:
            raise
        except (SQLAlchemyError, OSError) as error:
            raise CacheUnavailable(f"the table of cells: {error}") from error

    async def prepare(self) -> None:
        """Create the table, and delete the rows that nobody has read for long enough."""
        async with self._engine.begin() as connection:
            await connection.run_sync(cells.metadata.create_all)
        await self._execute(delete(cells).where(cells.c.expires < time.time()))


def _id(key: str) -> bytes:
    # A key has up to 4096 bytes and any character: more than databases like to index.
    return hashlib.sha256(key.encode()).digest()


def _at(key: str, token: int) -> tuple[Any, Any]:
    return cells.c.id == _id(key), cells.c.token == token


async def main(url: str) -> None:
    """Read one document twice: the second read is a hit."""
    backend = SqlBackend(url)
    await backend.prepare()
    cache = JobCache(GuardedBackend(backend))

    async def load() -> Document:
        return Document(version=1, owner="acme", body=b'{"percent": 50}')

    for _ in range(2):
        found = await cache.read("export:7", load)
        print(f"{found.outcome}: {found.body.decode()}")
    await cache.aclose()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))

"""A connection returns to the pool after its transaction; after a commit nobody waits for that."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.pool import QueuePool

from app.db.database import Database


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return Database(f"sqlite+aiosqlite:///{tmp_path / 'jobs.db'}")


@pytest.fixture
def slow_close(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Connections that close only when this event is set."""
    may_close, close = asyncio.Event(), AsyncConnection.close

    async def wait_and_close(connection: AsyncConnection) -> None:
        await may_close.wait()
        await close(connection)

    monkeypatch.setattr(AsyncConnection, "close", wait_and_close)
    return may_close


def in_use(database: Database) -> int:
    pool = database.connections.engine.sync_engine.pool
    assert isinstance(pool, QueuePool)
    return pool.checkedout()


async def test_a_commit_does_not_wait_until_its_connection_is_in_the_pool(
    database: Database, slow_close: asyncio.Event
) -> None:
    async with asyncio.timeout(30):
        async with database.transaction():
            pass
    assert in_use(database) == 1
    slow_close.set()
    await database.aclose()


async def test_closing_waits_for_connections_that_are_on_their_way_to_the_pool(
    database: Database, slow_close: asyncio.Event
) -> None:
    pool = database.connections.engine.sync_engine.pool
    assert isinstance(pool, QueuePool)
    async with asyncio.timeout(30):
        async with database.transaction():
            pass
    closing = asyncio.create_task(database.aclose())
    for _ in range(10):
        await asyncio.sleep(0)
    assert not closing.done()
    slow_close.set()
    await closing
    assert pool.checkedout() == 0


async def test_a_connection_is_in_the_pool_once_its_transaction_has_failed(
    database: Database,
) -> None:
    with pytest.raises(KeyError):
        async with database.transaction():
            raise KeyError
    assert in_use(database) == 0
    await database.aclose()


async def test_a_connection_that_cannot_return_is_logged_and_the_commit_stands(
    database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    close = AsyncConnection.close

    async def fail(connection: AsyncConnection) -> None:
        await close(connection)
        raise OSError("reset")

    monkeypatch.setattr(AsyncConnection, "close", fail)
    async with database.transaction():
        pass
    await database.aclose()
    assert "did not return to the pool" in caplog.text

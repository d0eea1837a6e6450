"""Savepoints of a session: what is released counts with the outer commit, and no sooner."""

# ruff: noqa: PT012 - the place in the block that raises is tested

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import Engine, event, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import sessionmaker

import jobcache.sync
from jobcache import JobCache
from jobcache.errors import WriteMisuse
from jobcache.orm.sqlalchemy import CoherentSession
from tests.jobcache.orm.exports import EXPORTS, Export
from tests.jobcache.orm.reading import hit, miss, poll

Sessions = async_sessionmaker[AsyncSession]


@pytest.fixture(autouse=True)
async def two_rows(sessions: Sessions) -> None:
    async with sessions.begin() as session:
        session.add_all([Export(id=1), Export(id=2)])


async def test_what_a_savepoint_releases_is_published_with_the_commit(
    sessions: Sessions, cache: JobCache, engine: AsyncEngine
) -> None:
    async with sessions.begin() as session:
        async with session.begin_nested():
            (await session.get_one(Export, 1)).percent = 1
            async with session.begin_nested():
                (await session.get_one(Export, 2)).percent = 2
        assert await poll(cache, engine, 1) == hit(1)
        assert await poll(cache, engine, 2) == hit(1)
    assert await poll(cache, engine, 1) == hit(2)
    assert await poll(cache, engine, 2) == hit(2)


async def test_what_a_savepoint_rolls_back_is_not_even_fenced(
    sessions: Sessions, cache: JobCache, engine: AsyncEngine
) -> None:
    async with sessions.begin() as session:
        first, second = await session.get_one(Export, 1), await session.get_one(Export, 2)
        first.percent = 1
        savepoint = await session.begin_nested()
        first.percent = 2
        second.percent = 2
        async with session.begin_nested():
            second.percent = 3
        await savepoint.rollback()
        fences = cache.statistics.fences
    assert cache.statistics.fences == fences + 1
    assert await poll(cache, engine, 1) == hit(2)
    assert await poll(cache, engine, 2) == hit(1)


async def test_a_released_savepoint_is_forgotten_if_the_transaction_rolls_back(
    sessions: Sessions, cache: JobCache, engine: AsyncEngine
) -> None:
    async with sessions() as session:
        async with session.begin_nested():
            (await session.get_one(Export, 1)).percent = 1
        await session.rollback()
        (await session.get_one(Export, 2)).percent = 2
        await session.commit()
    assert await poll(cache, engine, 1) == hit(1)
    assert await poll(cache, engine, 2) == hit(2)


async def test_a_delete_that_is_rolled_back_to_a_savepoint_keeps_the_row(
    sessions: Sessions, cache: JobCache, engine: AsyncEngine
) -> None:
    async with sessions.begin() as session:
        first = await session.get_one(Export, 1)
        first.percent = 1
        savepoint = await session.begin_nested()
        await session.delete(first)
        session.add(Export(id=3))
        await session.flush()
        await savepoint.rollback()
    assert await poll(cache, engine, 1) == hit(2)
    assert await poll(cache, engine, 3) == miss(0)


async def test_changes_before_a_savepoint_belong_to_the_transaction(
    sessions: Sessions, cache: JobCache, engine: AsyncEngine
) -> None:
    """The savepoint flushes them before it begins."""
    async with sessions.begin() as session:
        (await session.get_one(Export, 1)).percent = 1
        savepoint = await session.begin_nested()
        await savepoint.rollback()
    assert await poll(cache, engine, 1) == hit(2)


async def test_a_savepoint_that_is_open_at_the_commit_of_its_transaction(
    sessions: Sessions, cache: JobCache, engine: AsyncEngine
) -> None:
    """`session.commit()` releases it first. Other commits would not call an event again."""
    async with sessions() as session:
        await session.begin_nested()
        (await session.get_one(Export, 1)).percent = 1
        await session.commit()
    assert await poll(cache, engine, 1) == hit(2)
    with pytest.raises(WriteMisuse, match="savepoint is open"):
        async with sessions.begin() as session:
            await session.begin_nested()
            (await session.get_one(Export, 1)).percent = 2
    assert await poll(cache, engine, 1) == hit(2)


async def test_a_savepoint_of_the_connection_is_noticed(
    sessions: Sessions, cache: JobCache, engine: AsyncEngine
) -> None:
    """The session does not know that it was rolled back, so the row has an older version."""
    async with sessions.begin() as session:
        connection = await session.connection()
        await connection.exec_driver_sql("UPDATE orm_notes SET id = id")  # SQLite: BEGIN
        savepoint = await connection.begin_nested()
        (await session.get_one(Export, 1)).percent = 1
        await session.flush()
        await savepoint.rollback()
    assert await poll(cache, engine, 1) == miss(1)
    with pytest.raises(WriteMisuse, match="savepoint of the session's connection"):
        async with sessions.begin() as session:
            connection = await session.connection()
            await connection.begin_nested()
            (await session.get_one(Export, 1)).percent = 1
    assert await poll(cache, engine, 1) == hit(1)


def test_the_driver_of_sqlite_does_not_commit_a_savepoint(
    blocking_engine: Engine,
    blocking_cache: jobcache.sync.JobCache,
    blocking_sessions: sessionmaker[CoherentSession],
) -> None:
    """It begins no transaction for a SAVEPOINT, and SQLite commits an outermost one."""
    with blocking_sessions.begin() as session:
        session.add(Export(id=1))
    load = EXPORTS.loader(sessionmaker(blocking_engine))
    with blocking_sessions() as session:
        with session.begin_nested():
            session.execute(text("UPDATE orm_exports SET percent = 9"))
        with blocking_engine.connect() as other:
            assert other.scalar(text("SELECT percent FROM orm_exports")) == 0
        session.rollback()
        with session.begin_nested():
            session.get_one(Export, 1).percent = 1
        session.rollback()
    assert blocking_cache.read("export:1", load(1)).version == 1


async def test_an_application_that_begins_the_transactions_of_sqlite_itself(
    sessions: Sessions, cache: JobCache, engine: AsyncEngine
) -> None:
    """The driver's own transactions are then off, which looks like AUTOCOMMIT."""
    if engine.dialect.name != "sqlite":
        return

    @event.listens_for(engine.sync_engine, "begin")
    def begin(connection: object) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    @event.listens_for(engine.sync_engine, "checkout")
    def switch_off(connection: object, *_: object) -> None:
        connection.isolation_level = None

    async with sessions.begin() as session, session.begin_nested():
        (await session.get_one(Export, 1)).percent = 1
    assert await poll(cache, engine, 1) == hit(2)


async def test_two_transactions_of_one_session_at_once(
    sessions: Sessions, cache: JobCache, engine: AsyncEngine
) -> None:
    """Each task has its session; the changes of one do not count for the other."""

    async def change(export_id: int) -> None:
        async with sessions() as session:
            (await session.get_one(Export, export_id)).percent = 5
            await session.commit()

    if engine.dialect.name == "sqlite":  # one writer at a time
        await change(1)
        await change(2)
    else:
        await asyncio.gather(change(1), change(2))
    assert await poll(cache, engine, 1) == hit(2)
    assert await poll(cache, engine, 2) == hit(2)


async def test_a_session_goes_on_after_a_rollback_to_a_savepoint_that_was_cancelled(
    sessions: Sessions, cache: JobCache, engine: AsyncEngine
) -> None:
    """SQLAlchemy calls no event for the end of the savepoint."""

    def cancel(*_: object) -> None:
        raise asyncio.CancelledError

    async with sessions() as session:
        await session.begin_nested()
        (await session.get_one(Export, 1)).percent = 10
        await session.flush()
        event.listen(engine.sync_engine, "rollback_savepoint", cancel)
        with pytest.raises(asyncio.CancelledError):
            await session.close()
        event.remove(engine.sync_engine, "rollback_savepoint", cancel)
        await session.close()
        (await session.get_one(Export, 1)).percent = 20
        await session.commit()
    assert await poll(cache, engine) == hit(2)

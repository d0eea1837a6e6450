"""Sessions whose commit does not commit, or not at once; and hooks that come too late."""

# ruff: noqa: PT012 - the place in the block that raises is tested

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import Engine, event, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import sessionmaker

import jobcache.sync
from jobcache import JobCache
from jobcache.errors import WriteMisuse, WrongLoop
from jobcache.orm.sqlalchemy import CoherentSession, mark_changed
from tests.jobcache.orm.exports import BINDINGS, Export
from tests.jobcache.orm.reading import hit, miss, poll

Sessions = async_sessionmaker[AsyncSession]
RAISE = text("UPDATE orm_exports SET percent = 5, version = version + 1 WHERE id = 1")


async def test_autocommit_is_refused(
    sessions: Sessions, cache: JobCache, engine: AsyncEngine
) -> None:
    for automatic in (
        engine.execution_options(isolation_level="AUTOCOMMIT"),
        engine,
    ):
        async with sessions(bind=automatic) as session:
            if automatic is engine:
                options = {"isolation_level": "AUTOCOMMIT"}
                await session.connection(execution_options=options)
            session.add(Export(id=1))
            with pytest.raises(WriteMisuse, match="AUTOCOMMIT"):
                await session.commit()
    assert await poll(cache, engine) == miss(0)


async def test_a_session_of_another_ones_transaction_is_refused(
    sessions: Sessions, cache: JobCache, engine: AsyncEngine
) -> None:
    async with engine.connect() as connection:
        await connection.begin()
        for mode in ("conditional_savepoint", "create_savepoint", "rollback_only"):
            async with sessions(bind=connection, join_transaction_mode=mode) as session:
                session.add(Export(id=1))
                with pytest.raises(WriteMisuse, match="bound to a connection"):
                    await session.commit()
        async with sessions(bind=connection, join_transaction_mode="control_fully") as session:
            session.add(Export(id=1))
            await session.commit()
        assert await poll(cache, engine) == hit(1)


async def test_reported_changes_in_another_ones_transaction_are_refused(
    sessions: Sessions, cache: JobCache, engine: AsyncEngine
) -> None:
    async with sessions.begin() as session:
        session.add(Export(id=1))
    async with engine.connect() as connection:
        await connection.begin()
        async with sessions(bind=connection) as session:
            await session.execute(RAISE)
            mark_changed(session, Export, 1)
            with pytest.raises(WriteMisuse, match="bound to a connection"):
                await session.commit()
    assert await poll(cache, engine) == hit(1)
    async with engine.connect() as connection:
        await connection.begin()
        async with sessions(bind=connection, join_transaction_mode="control_fully") as session:
            await session.execute(RAISE)
            mark_changed(session, Export, 1)
            await session.commit()
    assert await poll(cache, engine) == miss(2)


async def test_reported_changes_behind_a_savepoint_of_the_connection_are_refused(
    sessions: Sessions, cache: JobCache, engine: AsyncEngine
) -> None:
    async with sessions.begin() as session:
        session.add(Export(id=1))
    async with sessions() as session:
        connection = await session.connection()
        await session.execute(RAISE)
        mark_changed(session, Export, 1)
        await connection.begin_nested()
        with pytest.raises(WriteMisuse, match="savepoint of the session's connection"):
            await session.commit()
    assert await poll(cache, engine) == hit(1)


def test_reported_changes_of_two_phase_commits_are_refused(
    blocking_sessions: sessionmaker[CoherentSession],
) -> None:
    with blocking_sessions() as session:
        session.execute(RAISE)
        mark_changed(session, Export, 1)
        session.twophase = True
        with pytest.raises(WriteMisuse, match="two-phase"):
            session.commit()
        session.twophase = False  # SQLite has none


async def test_two_phase_commits_are_refused(sessions: Sessions, engine: AsyncEngine) -> None:
    if engine.dialect.name == "sqlite":
        return  # has none
    async with sessions(twophase=True) as session:
        session.add(Export(id=1))
        with pytest.raises((WriteMisuse, NotImplementedError)):
            await session.commit()


def test_two_phase_commits_are_refused_before_a_statement(
    blocking_sessions: sessionmaker[CoherentSession],
) -> None:
    with blocking_sessions() as session:
        session.connection()
        session.twophase = True
        session.add(Export(id=1))
        with pytest.raises(WriteMisuse, match="two-phase"):
            session.flush()


async def test_a_hook_that_changes_an_object_after_the_commit_has_begun(
    sessions: Sessions, cache: JobCache, engine: AsyncEngine
) -> None:
    async with sessions.begin() as session:
        session.add(Export(id=1))

    async with sessions() as session:
        export = await session.get_one(Export, 1)
        export.percent = 1

        @event.listens_for(session.sync_session, "before_commit")
        def change(_: object) -> None:
            export.percent = 2

        with pytest.raises(WriteMisuse, match="hook"):
            await session.commit()
    assert await poll(cache, engine) == miss(1)


async def test_a_hook_before_ours_may_change_objects(
    sessions: Sessions, cache: JobCache, engine: AsyncEngine
) -> None:
    async with sessions() as session:
        event.listen(
            session.sync_session,
            "before_flush",
            lambda blocking, *_: blocking.new and [setattr(e, "percent", 9) for e in blocking.new],
        )
        session.add(Export(id=1))
        await session.commit()
    assert await poll(cache, engine) == hit(1)


async def test_a_cache_for_threads_is_refused_in_an_asynchronous_session(
    engine: AsyncEngine, blocking_cache: jobcache.sync.JobCache, cache: JobCache
) -> None:
    sessions = async_sessionmaker(
        engine, sync_session_class=CoherentSession, cache=blocking_cache, bindings=BINDINGS
    )
    with pytest.raises(WriteMisuse, match="would block"):
        async with sessions.begin() as session:
            session.add(Export(id=1))
    assert await poll(cache, engine) == miss(0)


def test_an_asynchronous_cache_is_refused_in_a_session(blocking_engine: Engine) -> None:
    cache = JobCache.from_url("memory://")
    with (
        pytest.raises(WriteMisuse, match="needs an AsyncSession"),
        CoherentSession(blocking_engine, cache=cache, bindings=BINDINGS) as session,
    ):
        session.add(Export(id=1))
        session.commit()


async def test_a_cache_of_another_loop_rolls_the_transaction_back(
    sessions: Sessions, cache: JobCache, engine: AsyncEngine
) -> None:
    other = JobCache.from_url("memory://")
    await asyncio.to_thread(lambda: asyncio.run(other.start()))
    session = AsyncSession(
        engine, sync_session_class=CoherentSession, cache=other, bindings=BINDINGS
    )
    async with session:
        session.add(Export(id=1))
        with pytest.raises(WrongLoop):
            await session.commit()
    assert await poll(cache, engine) == miss(0)

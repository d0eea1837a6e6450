"""Databases with the tables of the tests, and caches."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import redis
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import sessionmaker

import jobcache.sync
from app.devservers import PostgresServer
from jobcache import JobCache
from jobcache.orm.sqlalchemy import CoherentSession
from tests.jobcache.orm.exports import BINDINGS, Base
from tests.sqlite_threads import sqlite_threads_ended
from tests.subjects import never_sync


@pytest.fixture(scope="session")
def postgres_url(postgres: PostgresServer) -> str:
    """A database for the tables of these tests, which are created once."""
    postgres.create_database("orm")
    return postgres.url("orm")


@pytest.fixture(params=["sqlite", "postgres"])
async def engine(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[AsyncEngine]:
    """A database with empty tables. SQLite does not wait for its lock: no test needs that."""
    if request.param == "postgres":
        made = create_async_engine(request.getfixturevalue("postgres_url"))
    else:
        url = f"sqlite+aiosqlite:///{tmp_path / 'exports.db'}"
        made = create_async_engine(url, connect_args={"timeout": 0})
        event.listen(made.sync_engine, "connect", never_sync)
    async with made.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
        if request.param == "postgres":
            await connection.execute(text("TRUNCATE orm_exports, orm_parts, orm_notes"))
    yield made
    await made.dispose()
    await sqlite_threads_ended()


@pytest.fixture(params=["memory", "redis"])
async def cache(request: pytest.FixtureRequest, patient: None) -> AsyncIterator[JobCache]:
    url = "memory://"
    if request.param == "redis":
        url = request.getfixturevalue("redis_url")
        with redis.Redis.from_url(url) as raw:
            raw.flushall()
    async with JobCache.from_url(url) as made:
        yield made


@pytest.fixture
def sessions(engine: AsyncEngine, cache: JobCache) -> async_sessionmaker[AsyncSession]:
    return async_sessionmaker(
        engine, sync_session_class=CoherentSession, cache=cache, bindings=BINDINGS
    )


@pytest.fixture
def blocking_engine(tmp_path: Path) -> Iterator[Engine]:
    made = create_engine(f"sqlite:///{tmp_path / 'blocking.db'}")
    event.listen(made, "connect", never_sync)
    Base.metadata.create_all(made)
    yield made
    made.dispose()


@pytest.fixture
def blocking_cache() -> Iterator[jobcache.sync.JobCache]:
    with jobcache.sync.JobCache.from_url("memory://") as made:
        yield made


@pytest.fixture
def blocking_sessions(
    blocking_engine: Engine, blocking_cache: jobcache.sync.JobCache
) -> sessionmaker[CoherentSession]:
    return sessionmaker(
        blocking_engine, class_=CoherentSession, cache=blocking_cache, bindings=BINDINGS
    )

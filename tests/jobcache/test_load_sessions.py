"""Loads and the sessions of requests: no load uses a session after its request has ended."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)

from app.devservers import PostgresServer
from jobcache import CacheOutcome, Document, JobCache, with_session
from jobcache._engine.watchers import PollIntervals
from jobcache.backends.memory import MemoryBackend
from jobcache.backends.null import NullBackend
from jobcache.loaders import uses_session
from tests.jobcache.bench import document
from tests.test_documents import blocks

Load = Callable[[], Awaitable[Document | None]]
Sessions = async_sessionmaker[AsyncSession]

current: contextvars.ContextVar[AsyncSession] = contextvars.ContextVar("current")


@pytest.fixture(params=["sqlite", "postgres"])
async def engine(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[AsyncEngine]:
    url = f"sqlite+aiosqlite:///{tmp_path / 'jobs.db'}"
    if request.param == "postgres":
        server: PostgresServer = request.getfixturevalue("postgres")
        url = server.url()
    made = create_async_engine(url, pool_size=3, max_overflow=0, pool_timeout=20)
    yield made
    await made.dispose()


class Query:
    """A query that the test holds up."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.may_end = asyncio.Event()
        self.calls = 0
        self.ended = False

    async def __call__(self, session: AsyncSession) -> Document:
        self.calls += 1
        try:
            await session.execute(text("SELECT 1"))
            self.begun.set()
            await self.may_end.wait()
            await session.execute(text("SELECT 1"))
            return document(1)
        finally:
            self.ended = True


class Repository:
    def __init__(self, session: AsyncSession, query: Query) -> None:
        self._session = session
        self._query = query

    async def load(self) -> Document:
        return await self._query(self._session)


def closure(session: AsyncSession, query: Query) -> Load:
    async def load() -> Document:
        return await query(session)

    return load


def from_context(session: AsyncSession, query: Query) -> Load:
    current.set(session)

    async def load() -> Document:
        return await query(current.get())

    return load


OF_THE_REQUEST: dict[str, Callable[[AsyncSession, Query], Load]] = {
    "a closure": closure,
    "an argument": lambda session, query: partial(query, session),
    "a method": lambda session, query: Repository(session, query).load,
    "a context variable": from_context,
}


@pytest.mark.parametrize("how", OF_THE_REQUEST)
@pytest.mark.parametrize("operation", ["read", "read_many", "wait_for_newer"])
async def test_cancelled_requests_leak_no_connection(
    engine: AsyncEngine, how: str, operation: str
) -> None:
    cache, sessions = JobCache(MemoryBackend()), async_sessionmaker(engine)

    async def request(key: str, query: Query) -> None:
        async with sessions() as session:
            load = OF_THE_REQUEST[how](session, query)

            async def load_many(keys: Sequence[str]) -> dict[str, Document]:
                found = await load()
                return {} if found is None else dict.fromkeys(keys, found)

            if operation == "read":
                await cache.read(key, load)
            elif operation == "read_many":
                await cache.read_many([key], load_many)
            else:
                await cache.wait_for_newer(key, load, 0, 60)

    async with asyncio.timeout(60):
        for number in range(4):
            query = Query()
            asking = asyncio.create_task(request(f"k{number}", query))
            await query.begun.wait()
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            assert query.ended, "before its request has closed the session"
            assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
        query = Query()
        query.may_end.set()
        await request("last", query)
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    await cache.aclose()


async def test_a_request_that_shared_a_cancelled_load_loads_itself(
    engine: AsyncEngine,
) -> None:
    cache, sessions = JobCache(MemoryBackend()), async_sessionmaker(engine)
    queries = [Query() for _ in range(3)]

    async def request(query: Query) -> int:
        async with sessions() as session:
            return (await cache.read("k", closure(session, query))).entry.version

    async with asyncio.timeout(60):
        asking = [asyncio.create_task(request(query)) for query in queries]
        await queries[0].begun.wait()
        asking[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking[0]
        for query in queries[1:]:
            query.may_end.set()
        assert await asyncio.gather(*asking[1:]) == [1, 1]
    assert [query.calls for query in queries] == [1, 1, 0]
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    await cache.aclose()


async def test_a_check_does_not_use_the_session_of_a_request_that_has_gone(
    engine: AsyncEngine,
) -> None:
    often = PollIntervals(with_feed=0.02, without_feed=0.02)
    cache, sessions = JobCache(NullBackend(), poll_intervals=often), async_sessionmaker(engine)
    version, closed = 1, set[int]()

    async def wait(timeout: float) -> int:  # noqa: ASYNC109
        async with sessions() as session:

            async def load() -> Document:
                assert id(session) not in closed
                await session.execute(text("SELECT 1"))
                return document(version)

            answer = await cache.wait_for_newer("k", load, 1, timeout)
            closed.add(id(session))
        return 0 if answer is None else answer.entry.version

    async with asyncio.timeout(60):
        staying = asyncio.create_task(wait(50))
        while cache.info().waiting != (1, 1):
            await asyncio.sleep(0.001)
        assert await wait(0.05) == 0
        version = 2
        assert await staying == 2
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    await cache.aclose()


async def test_a_load_with_a_session_of_its_own_goes_on_for_others(engine: AsyncEngine) -> None:
    cache, query = JobCache(MemoryBackend()), Query()
    load = with_session(async_sessionmaker(engine), query)
    assert not uses_session(load)
    async with asyncio.timeout(60):
        asking = [asyncio.create_task(cache.read("k", load)) for _ in range(2)]
        await query.begun.wait()
        asking[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking[0]
        query.may_end.set()
        assert (await asking[1]).entry.version == 1
    assert query.calls == 1
    assert (await cache.read("k", load)).outcome is CacheOutcome.HIT
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    await cache.aclose()


async def test_the_example_in_the_documentation(engine: AsyncEngine) -> None:
    example = blocks("docs/embedding.md", "python")[1]
    cache = JobCache(MemoryBackend())
    names: dict[str, Any] = {
        "cache": cache,
        "sessions": async_sessionmaker(engine),
        "SELECT": text("SELECT :id AS version"),
        "document": lambda row: document(int(row.version)),
    }
    exec(example, names)  # noqa: S102 - our own
    assert (await names["poll"]("7" if "postgres" in str(engine.url) else 7)).entry.version == 7
    await cache.aclose()


async def test_hits_are_compared_only_by_loads_with_a_session_of_their_own(
    engine: AsyncEngine,
) -> None:
    cache, query = JobCache(MemoryBackend(), shadow_rate=1), Query()
    query.may_end.set()
    sessions = async_sessionmaker(engine)
    async with sessions() as session:
        for _ in range(2):
            await cache.read("k", closure(session, query))
    await cache.read("k", with_session(sessions, query))
    async with asyncio.timeout(60):
        while cache.statistics.shadow_reads < 1:
            await asyncio.sleep(0.001)
    assert (query.calls, cache.statistics.shadow_reads) == (2, 1)
    await cache.aclose()
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]

"""Writes whose transaction is a savepoint: nothing is published before the outermost commit."""

# ruff: noqa: PT012 - the place in the block that raises is tested

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import asyncpg
import django
import django.conf
import pytest
import redis as redis_client
from django.db import connection as django_connection
from django.db import connections, transaction
from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.ext.asyncio import (
    AsyncConnection,
    AsyncEngine,
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import Session, sessionmaker

import jobcache
from app.devservers import PostgresServer
from jobcache import CacheOutcome, CacheSettings, Document
from jobcache.backends.memory import MemoryBackend
from jobcache.errors import WriteMisuse
from jobcache.sync import JobCache
from tests.jobcache.bench import document
from tests.test_documents import blocks

CREATE = "CREATE TABLE savepoint_jobs (id INTEGER PRIMARY KEY, version INTEGER)"
INSERT = "INSERT INTO savepoint_jobs VALUES (1, 1)"
SELECT = "SELECT version FROM savepoint_jobs WHERE id = 1"
RAISE = "UPDATE savepoint_jobs SET version = version + 1 WHERE id = 1 RETURNING version"


@pytest.fixture(params=["memory", "redis", "tiered"])
def cache(request: pytest.FixtureRequest) -> Iterator[JobCache]:
    url = ""
    if request.param != "memory":
        url = request.getfixturevalue("redis_url")
        with redis_client.Redis.from_url(url) as raw:
            raw.flushall()
    with JobCache(CacheSettings(backend=request.param, redis_url=url)) as made:
        yield made


@pytest.fixture
def memory() -> Iterator[JobCache]:
    with JobCache(CacheSettings(backend="memory")) as made:
        yield made


# --- Django ---


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[None]:
    """Django's default database, with one job in it."""
    database = {"ENGINE": "django.db.backends.sqlite3", "NAME": str(tmp_path / "django.db")}
    if not django.conf.settings.configured:
        django.conf.settings.configure(DATABASES={"default": database}, INSTALLED_APPS=[])
        django.setup(set_prefix=False)
    connections["default"].close()
    connections["default"].settings_dict["NAME"] = database["NAME"]
    query(CREATE)
    query(INSERT)
    yield
    connections["default"].close()


def query(statement: str) -> int:
    with django_connection.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchone()[0] if cursor.description else 0


def load() -> Document:
    return document(query(SELECT))


def update(
    cache: JobCache, around: Callable[[], AbstractContextManager[object]] = transaction.atomic
) -> None:
    with cache.write(around()) as write:
        version = query(RAISE)
        write.fence("k")
        write.publish("k", document(version))


def elsewhere(cache: JobCache, path: str, key: str = "k") -> tuple[int, CacheOutcome]:
    """What another request is given meanwhile, through a connection of its own."""

    def read() -> tuple[int, CacheOutcome]:
        with sqlite3.connect(path) as other:
            answer = cache.read(key, lambda: document(other.execute(SELECT).fetchone()[0]))
        other.close()
        return answer.entry.version, answer.outcome

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(read).result(20)


def path_of_django() -> str:
    return str(connections["default"].settings_dict["NAME"])


@contextmanager
def wrapped() -> Iterator[None]:
    with transaction.atomic():
        yield


@contextmanager
def twice() -> Iterator[None]:
    with transaction.atomic(), transaction.atomic():
        yield


NESTED: list[Callable[[], AbstractContextManager[object]]] = [
    transaction.atomic,
    lambda: transaction.atomic(savepoint=False),
    wrapped,
    twice,
]


@pytest.mark.parametrize("around", NESTED)
def test_within_another_atomic_block_a_write_is_published_with_the_outer_commit(
    cache: JobCache, jobs: None, around: Callable[[], AbstractContextManager[object]]
) -> None:
    assert cache.read("k", load).entry.version == 1
    with transaction.atomic():
        update(cache, around)
        assert elsewhere(cache, path_of_django()) == (1, CacheOutcome.BYPASS)
    answer = cache.read("k", load)
    assert (answer.entry.version, answer.outcome) == (2, CacheOutcome.HIT)


@pytest.mark.parametrize("around", NESTED)
def test_if_the_outer_block_rolls_back_nothing_is_published(
    cache: JobCache, jobs: None, around: Callable[[], AbstractContextManager[object]]
) -> None:
    assert cache.read("k", load).entry.version == 1
    with pytest.raises(LookupError), transaction.atomic():
        update(cache, around)
        raise LookupError
    assert cache.read("k", load).entry.version == query(SELECT) == 1
    update(cache)
    assert cache.read("k", load).entry.version == query(SELECT) == 2


def test_if_a_block_between_the_two_rolls_back_nothing_is_published(
    cache: JobCache, jobs: None
) -> None:
    with transaction.atomic():
        with pytest.raises(LookupError), transaction.atomic():
            update(cache)
            raise LookupError
        query("DELETE FROM savepoint_jobs WHERE id = 2")
    assert cache.read("k", load).entry.version == query(SELECT) == 1


def test_a_nested_write_that_raises_withdraws_at_once(cache: JobCache, jobs: None) -> None:
    with transaction.atomic():
        with pytest.raises(LookupError), cache.write(transaction.atomic(), "k"):
            raise LookupError
        assert elsewhere(cache, path_of_django()) == (1, CacheOutcome.MISS)
    assert cache.read("k", load).outcome is CacheOutcome.HIT


def test_writes_within_writes_are_published_by_the_outermost(cache: JobCache, jobs: None) -> None:
    with cache.write(transaction.atomic(), "outer") as outer:
        update(cache)
        update(cache)
        assert elsewhere(cache, path_of_django())[0] == 1
        outer.publish("outer", document(7))
    for key, version in (("k", 3), ("outer", 7)):
        answer = cache.read(key, load)
        assert (answer.entry.version, answer.outcome) == (version, CacheOutcome.HIT)


def test_without_autocommit_a_write_waits_for_the_commit(cache: JobCache, jobs: None) -> None:
    transaction.set_autocommit(False)
    query("UPDATE savepoint_jobs SET id = id")  # or SQLite takes the savepoint for a transaction
    update(cache)
    assert elsewhere(cache, path_of_django()) == (1, CacheOutcome.BYPASS)
    transaction.commit()
    assert elsewhere(cache, path_of_django())[0] == 2
    transaction.set_autocommit(True)
    assert cache.read("k", load).outcome is CacheOutcome.HIT


def test_outermost_blocks_are_published_at_once(cache: JobCache, jobs: None) -> None:
    @transaction.atomic
    def decorated() -> int:
        return query(RAISE)

    update(cache)
    assert cache.read("k", load).outcome is CacheOutcome.HIT
    update(cache, lambda: transaction.atomic(durable=True))
    with cache.write(transaction.atomic(), "k") as write:
        write.publish("k", document(decorated()))
    answer = cache.read("k", load)
    assert (answer.entry.version, answer.outcome) == (4, CacheOutcome.HIT)
    with (
        transaction.atomic(),
        pytest.raises(RuntimeError, match="durable"),
        cache.write(transaction.atomic(durable=True), "k"),
    ):
        pass
    assert cache.read("k", load).outcome is CacheOutcome.HIT


def test_a_write_without_a_transaction_is_refused_in_an_atomic_block(
    memory: JobCache, jobs: None
) -> None:
    """It would publish version 2 before the block commits, which may yet roll back."""
    memory.read("k", load)
    with (
        transaction.atomic(),
        pytest.raises(WriteMisuse, match=r"atomic block.*transaction\.atomic\(\)"),
        memory.write("k"),
    ):
        raise AssertionError
    assert memory.read("k", load).outcome is CacheOutcome.HIT, "nothing was fenced"
    with memory.write("k") as write:
        version = query(RAISE)
        write.publish("k", document(version))
    answer = memory.read("k", load)
    assert (answer.version, answer.outcome) == (2, CacheOutcome.HIT)


async def test_the_asynchronous_write_is_refused_in_an_atomic_block(
    jobs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")
    cache = jobcache.JobCache(MemoryBackend())
    with transaction.atomic(), pytest.raises(WriteMisuse, match="atomic block"):
        async with cache.write("k"):
            raise AssertionError
    await cache.aclose()
    connections["default"].close()  # a task has a connection of its own


def test_the_example_for_django_in_the_documentation(memory: JobCache, jobs: None) -> None:
    example = blocks("docs/embedding.md", "python")[2]
    names: dict[str, Any] = {
        "cache": memory,
        "transaction": transaction,
        "raise_version": lambda job_id, percent: query(RAISE),
        "document": document,
    }
    exec(example, names)  # noqa: S102 - our own
    names["report"](7, 50)
    assert memory.read("export:7", lambda: None).entry.version == 2
    with transaction.atomic():
        names["report"](7, 51)
        assert elsewhere(memory, path_of_django(), "export:7") == (2, CacheOutcome.BYPASS)
    assert memory.read("export:7", lambda: None).entry.version == 3


# --- SQLAlchemy ---


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    made = create_engine(f"sqlite:///{tmp_path / 'jobs.db'}")
    with made.begin() as connection:
        connection.execute(text(CREATE))
        connection.execute(text(INSERT))
    yield made
    made.dispose()


REFUSED: dict[str, Callable[[Connection], Any]] = {
    "connection.begin_nested()": lambda outer: outer.begin_nested(),
    "session.begin_nested()": lambda outer: Session(outer.engine).begin_nested(),
    "a session of the connection": lambda outer: Session(outer).begin(),
    "sessions of the connection": lambda outer: sessionmaker(outer).begin(),
    "savepoints of the connection": lambda outer: Session(
        outer, join_transaction_mode="create_savepoint"
    ).begin(),
    "nothing of its own": nullcontext,
    "a session that is closed": Session,
}


@pytest.mark.parametrize("how", REFUSED)
def test_a_transaction_that_does_not_commit_with_its_block_is_refused(
    memory: JobCache, engine: Engine, how: str
) -> None:
    with engine.connect() as outer:
        outer.begin()
        made = REFUSED[how](outer)
        with (
            pytest.raises(WriteMisuse, match=r"transaction|committed"),
            memory.write(made) as write,
        ):
            entered: Any = write.transaction
            session = getattr(entered, "session", None) or getattr(entered, "connection", None)
            executes = entered if hasattr(entered, "execute") else session
            version = executes.execute(text(RAISE)).scalar_one()
            write.fence("k")
            write.publish("k", document(version))
        outer.rollback()
        with engine.connect() as other:
            assert other.execute(text(SELECT)).scalar_one() == 1
            answer = memory.read("k", lambda: document(other.execute(text(SELECT)).scalar_one()))
        assert answer.entry.version == 1
        if hasattr(made, "session"):
            made.session.close()


@pytest.mark.parametrize("made", [Session, lambda engine: engine.connect()])
def test_a_session_or_connection_is_refused_even_if_its_block_would_commit_it(
    memory: JobCache, engine: Engine, made: Callable[[Engine], Any]
) -> None:
    """If the commit is cancelled, nobody knows whether it happened; the fence was withdrawn."""
    with pytest.raises(WriteMisuse, match=r"its `begin\(\)`"), memory.write(made(engine)) as write:
        entered: Any = write.transaction
        version = entered.execute(text(RAISE)).scalar_one()
        write.fence("k")
        write.publish("k", document(version))
        entered.commit()
    with engine.connect() as other:
        assert other.execute(text(SELECT)).scalar_one() == 1


ACCEPTED: dict[str, Callable[[Engine], Any]] = {
    "engine.begin()": lambda engine: engine.begin(),
    "sessionmaker.begin()": lambda engine: sessionmaker(engine).begin(),
    "session.begin()": lambda engine: Session(engine).begin(),
    "a session that controls the connection": lambda engine: _controlling(engine).begin(),
}


def _controlling(engine: Engine) -> Session:
    outer = engine.connect()
    outer.begin()
    return Session(outer, join_transaction_mode="control_fully", close_resets_only=False)


@pytest.mark.parametrize("how", ACCEPTED)
def test_a_committed_write_is_published(memory: JobCache, engine: Engine, how: str) -> None:
    with memory.write(ACCEPTED[how](engine)) as write:
        entered: Any = write.transaction
        executes = entered if hasattr(entered, "execute") else entered.session
        version = executes.execute(text(RAISE)).scalar_one()
        write.fence("k")
        write.publish("k", document(version))
    with engine.connect() as other:
        assert other.execute(text(SELECT)).scalar_one() == 2
    assert memory.read("k", lambda: None).outcome is CacheOutcome.HIT
    bind = getattr(executes, "bind", None)
    executes.close()
    if isinstance(bind, Connection):
        bind.close()


def test_a_transaction_of_the_callers_that_commits_and_goes_on_is_published(
    memory: JobCache, engine: Engine
) -> None:
    """A new transaction that begins after the commit is not the one that was written in."""

    @contextmanager
    def commits(session: Session) -> Iterator[Session]:
        session.execute(text(SELECT))
        yield session
        session.commit()
        session.execute(text(SELECT))

    with engine.connect() as connection, Session(connection) as session:
        with memory.write(commits(session), "k") as write:
            write.publish("k", document(session.execute(text(RAISE)).scalar_one()))
        assert memory.read("k", lambda: None).outcome is CacheOutcome.HIT


# --- SQLAlchemy and asyncpg, asynchronous ---


@pytest.fixture(params=["sqlite", "postgres"])
async def async_engine(
    request: pytest.FixtureRequest, tmp_path: Path
) -> AsyncIterator[AsyncEngine]:
    url = f"sqlite+aiosqlite:///{tmp_path / 'jobs.db'}"
    if request.param == "postgres":
        server: PostgresServer = request.getfixturevalue("postgres")
        url = server.url()
    made = create_async_engine(url)
    async with made.begin() as connection:
        await connection.execute(text("DROP TABLE IF EXISTS savepoint_jobs"))
        await connection.execute(text(CREATE))
        await connection.execute(text(INSERT))
    yield made
    async with made.begin() as connection:
        await connection.execute(text("DROP TABLE savepoint_jobs"))
    await made.dispose()


ASYNC_REFUSED: dict[str, Callable[[AsyncConnection], Any]] = {
    "connection.begin_nested()": lambda outer: outer.begin_nested(),
    "session.begin_nested()": lambda outer: AsyncSession(outer.engine).begin_nested(),
    "a session of the connection": lambda outer: AsyncSession(outer).begin(),
    "sessions of the connection": lambda outer: async_sessionmaker(outer).begin(),
    "nothing of its own": nullcontext,
    "a session that is closed": AsyncSession,
}


@pytest.mark.parametrize("how", ASYNC_REFUSED)
async def test_the_asynchronous_write_refuses_the_same(async_engine: AsyncEngine, how: str) -> None:
    cache = jobcache.JobCache(MemoryBackend())
    async with async_engine.connect() as outer:
        await outer.begin()
        made = ASYNC_REFUSED[how](outer)
        with pytest.raises(WriteMisuse, match=r"transaction|committed"):
            async with cache.write(made) as write:
                entered: Any = write.transaction
                executes = entered if hasattr(entered, "execute") else entered.session
                version = (await executes.execute(text(RAISE))).scalar_one()
                await write.fence("k")
                write.publish("k", document(version))
        await outer.rollback()

        async def load() -> Document:
            async with async_engine.connect() as other:
                return document((await other.execute(text(SELECT))).scalar_one())

        assert (await cache.read("k", load)).entry.version == 1
        if hasattr(made, "session"):
            await made.session.close()
    await cache.aclose()


async def test_the_asynchronous_write_publishes_what_commits(async_engine: AsyncEngine) -> None:
    cache = jobcache.JobCache(MemoryBackend())
    sessions = async_sessionmaker(async_engine)

    @asynccontextmanager
    async def wraps() -> AsyncIterator[AsyncSession]:
        async with sessions() as session, session.begin():
            yield session

    async with asyncio.timeout(30):
        for number, made in enumerate((async_engine.begin(), sessions.begin(), wraps()), start=2):
            transaction: Any = made
            async with cache.write(transaction) as write:
                version = (await write.transaction.execute(text(RAISE))).scalar_one()
                await write.fence("k")
                write.publish("k", document(version))
            answer = await cache.read("k", _none)
            assert (answer.entry.version, answer.outcome) == (number, CacheOutcome.HIT)
    await cache.aclose()


async def test_the_example_for_sqlalchemy_in_the_documentation(async_engine: AsyncEngine) -> None:
    example = blocks("docs/embedding.md", "python")[3]
    cache = jobcache.JobCache(MemoryBackend())
    names: dict[str, Any] = {
        "cache": cache,
        "sessions": async_sessionmaker(async_engine),
        "RAISE": text(RAISE),
        "document": lambda row: document(row.version),
    }
    exec(example, names)  # noqa: S102 - our own
    await names["report"](7, 50)
    assert (await cache.read("export:7", _none)).entry.version == 2
    await cache.aclose()


async def _none() -> Document | None:
    return None


async def test_a_savepoint_of_asyncpg_is_refused(postgres: PostgresServer) -> None:
    cache = jobcache.JobCache(MemoryBackend())
    connection = await asyncpg.connect(postgres.url().replace("+asyncpg", ""))
    try:
        async with cache.write(connection.transaction(), "k") as write:
            write.publish("k", document(1))
        assert (await cache.read("k", _none)).outcome is CacheOutcome.HIT
        async with connection.transaction():
            with pytest.raises(WriteMisuse, match="savepoint"):
                async with cache.write(connection.transaction(), "k"):
                    pass
    finally:
        await connection.close()
        await cache.aclose()

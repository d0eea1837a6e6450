"""Writes in transactions of psycopg: what is nested in another transaction is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import psycopg
import pytest

import jobcache
from app.devservers import PostgresServer
from jobcache import CacheOutcome, CacheSettings
from jobcache.backends.memory import MemoryBackend
from jobcache.errors import WriteMisuse
from jobcache.sync import JobCache
from tests.jobcache.bench import document

Begin = Callable[[psycopg.Connection], AbstractContextManager[object]]


@pytest.fixture
def url(postgres: PostgresServer) -> str:
    return postgres.url().replace("+asyncpg", "")


@pytest.fixture
def connection(url: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(url) as made:
        yield made


@pytest.fixture
def cache() -> Iterator[JobCache]:
    with JobCache(CacheSettings(backend="memory")) as made:
        yield made


REFUSED: dict[str, Begin] = {
    "transaction()": lambda connection: connection.transaction(),
    "transaction() with a name": lambda connection: connection.transaction("inner"),
    "Transaction": psycopg.Transaction,
}


@pytest.mark.parametrize("how", REFUSED)
def test_a_transaction_within_another_one_is_refused(
    cache: JobCache, connection: psycopg.Connection, how: str
) -> None:
    # Without autocommit, any statement begins a transaction.
    connection.execute("SELECT 1")
    with (
        pytest.raises(WriteMisuse, match="savepoint"),
        cache.write(REFUSED[how](connection), "k") as write,
    ):
        write.publish("k", document(1))
    assert cache.read("k", lambda: None).missing


def test_a_transaction_that_always_rolls_back_is_refused(
    cache: JobCache, connection: psycopg.Connection
) -> None:
    with (
        pytest.raises(WriteMisuse, match="always rolls back"),
        cache.write(connection.transaction(force_rollback=True), "k") as write,
    ):
        write.publish("k", document(1))
    assert cache.read("k", lambda: None).missing


ACCEPTED: dict[str, Begin] = {
    **REFUSED,
    "the connection": lambda connection: connection,
}


@pytest.mark.parametrize("how", ACCEPTED)
def test_an_outermost_transaction_is_published(
    cache: JobCache, connection: psycopg.Connection, how: str
) -> None:
    with cache.write(ACCEPTED[how](connection), "k") as write:
        connection.execute("SELECT 1")
        write.publish("k", document(1))
    assert cache.read("k", lambda: None).outcome is CacheOutcome.HIT


async def test_the_asynchronous_write_refuses_the_same(url: str) -> None:
    async def none() -> None:
        return None

    async with (
        jobcache.JobCache(MemoryBackend()) as cache,
        await psycopg.AsyncConnection.connect(url) as connection,
    ):
        async with cache.write(connection.transaction(), "k") as write:
            write.publish("k", document(1))
        assert (await cache.read("k", none)).outcome is CacheOutcome.HIT
        await connection.execute("SELECT 1")
        with pytest.raises(WriteMisuse, match="savepoint"):
            async with cache.write(connection.transaction(), "k"):
                pass

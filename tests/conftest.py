"""Real servers, one each for the whole run, and backends on them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack

import pytest

from app.devservers import PostgresServer, RedisServer
from jobcache.testing import conformance
from tests.subjects import REDIS_SERVERS, make_subject


@pytest.fixture(scope="session")
def redis_urls() -> Iterator[dict[str, str]]:
    """Every Redis-compatible server found, started; their URLs by name."""
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(RedisServer(program)).url
            for name, program in REDIS_SERVERS.items()
        }


@pytest.fixture(scope="session")
def redis_url(redis_urls: dict[str, str]) -> str:
    """One of them, where one is enough."""
    return next(iter(redis_urls.values()))


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        yield server


@pytest.fixture
async def subject(
    request: pytest.FixtureRequest, redis_urls: dict[str, str]
) -> AsyncIterator[conformance.Subject]:
    """A backend under test, empty; parametrize it indirectly with names of `BACKENDS`."""
    async for made in make_subject(request.param, redis_urls):
        yield made

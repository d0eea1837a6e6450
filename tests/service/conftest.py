"""Fixtures of this folder; they live in modules that tests can import from, too."""

import pytest
import redis

from tests.service.pooler import pgbouncer
from tests.service.running import backend_environment, database_url, postgres_url, service, start
from tests.service.wires import wire

__all__ = [
    "backend_environment",
    "database_url",
    "pgbouncer",
    "postgres_url",
    "service",
    "start",
    "wire",
]


@pytest.fixture
def redis_url(redis_urls: dict[str, str]) -> str:
    """A server that belongs to no service yet: each test has a database of its own."""
    url = next(iter(redis_urls.values()))
    with redis.Redis.from_url(url) as raw:
        raw.flushall()
    return url

"""Fixtures of this folder; they live in modules that tests can import from, too."""

import pytest
import redis

from tests.app.first_version import first_version
from tests.app.pooler import pgbouncer
from tests.app.running import backend_environment, database_url, postgres_url, service, start
from tests.app.wires import wire

__all__ = [
    "backend_environment",
    "database_url",
    "first_version",
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

"""The time of one poll over HTTP, by the backend of the service.

Each backend has a real service process, `python -m app serve`, on PostgreSQL. One connection over
loopback sends a poll, waits for the response, and sends the next one. So a figure is a latency and
contains the kernel's part and the client's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx
import pytest

from benchmarks.backends import EVERY_BACKEND, NEEDS_REDIS
from benchmarks.poll_connection import PollConnection, status_of
from benchmarks.service import Service
from benchmarks.suites.polls import made_jobs

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterator

    from app.devservers import PostgresServer
    from benchmarks.one_operation import OneOperation

pytestmark = pytest.mark.benchmark(min_time=0.001)


@pytest.fixture(scope="module", params=EVERY_BACKEND)
def service(
    request: pytest.FixtureRequest, postgres: PostgresServer
) -> Iterator[tuple[str, Service]]:
    """One service at a time, and the name of its backend."""
    name: str = request.param
    postgres.create_database(f"polls_{name}")
    settings = {"JOBCACHE_BACKEND": name, "DATABASE_URL": postgres.url(f"polls_{name}")}
    if name == "memcached":
        settings["MEMCACHED_URL"] = request.getfixturevalue("memcached_url")
    elif NEEDS_REDIS[name]:
        settings["REDIS_URL"] = request.getfixturevalue("redis_url")
        settings["JOBCACHE_PREFIX"] = f"{name}:"
    with Service(settings) as process:
        process.wait_until_ready()
        yield name, process
    postgres.drop_database(f"polls_{name}")


@pytest.fixture
def path(service: tuple[str, Service]) -> str:
    """The path of a new job, which waits for approval."""
    (job,) = made_jobs(service[1], 1)
    return f"/api/v2/jobs/{job}"


def test_poll(
    one_operation: OneOperation,
    runner: asyncio.Runner,
    service: tuple[str, Service],
    path: str,
) -> None:
    """A poll that gets the document; no two requests are alike."""
    name, process = service
    connection = runner.run(PollConnection.connect(process.port, path))
    response = one_operation("HTTP poll", connection.poll, backend=name)
    connection.close()
    assert status_of(response) == 200
    assert response.endswith(b"}")


def test_poll_not_modified(
    one_operation: OneOperation,
    runner: asyncio.Runner,
    service: tuple[str, Service],
    path: str,
) -> None:
    """A poll with the ETag that the client has; no two requests are alike."""
    name, process = service
    known = httpx.get(f"{process.url}{path}", headers={"Accept-Encoding": "identity"})
    header = f"If-None-Match: {known.headers['ETag']}"
    connection = runner.run(PollConnection.connect(process.port, path, header))
    response = one_operation("HTTP poll, 304", connection.poll, backend=name)
    connection.close()
    assert status_of(response) == 304

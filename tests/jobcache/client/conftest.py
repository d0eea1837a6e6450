"""Two servers on loopback, and a poller of each kind."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.jobcache.client.loopback import Server, Waits, serving


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[Server, Server]]:
    with serving() as first, serving() as second:
        yield first, second


@pytest.fixture
def server(servers: tuple[Server, Server]) -> Server:
    for each in servers:
        each.seen.clear()
        each._scripts.clear()
    return servers[0]


@pytest.fixture
def other(servers: tuple[Server, Server], server: Server) -> Server:
    return servers[1]


@pytest.fixture(params=["async", "sync"])
async def waits(request: pytest.FixtureRequest) -> AsyncIterator[Waits]:
    made = Waits(request.param)
    yield made
    await made.close()

"""Hundreds of clients disconnect in the middle of a request, and the others are answered.

uvicorn does not cancel the request of a client that has disconnected: it completes the request and
drops the response. Other servers and middleware do cancel, so requests are cancelled here, too.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import redis
import uvicorn
from sqlalchemy import event, text

from tests.app.connections import HOST, Connection
from tests.app.running import Service
from tests.cancelling import CancelledAt

POLLERS, POLLERS_IF_LONG = 300, 1000
"""In any case many times the connections of the pools."""
POLLS = 4
JOBS = 30
REDIS_POOL, POSTGRES_POOL = 10, 16
MOST_WAITS = 80

postgres_only = pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
redis_only = pytest.mark.parametrize("backend_environment", ["redis"], indirect=True)


@asynccontextmanager
async def listening(service: Service) -> AsyncIterator[int]:
    """The service behind a real server, in this process; its port."""
    app = service.http._transport.app  # type: ignore[attr-defined]
    config = uvicorn.Config(app, host=HOST, port=0, lifespan="off", log_config=None, backlog=2048)
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    async with asyncio.timeout(60):
        while not server.started:
            await asyncio.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    await serving


class Connections:
    """How many connections the service makes to its database, and to Redis."""

    def __init__(self, service: Service, redis_url: str) -> None:
        self.to_database = 0
        self._raw = redis.Redis.from_url(redis_url)
        self._before = self._received()
        event.listen(
            service.services.database.connections.engine.sync_engine, "connect", self._count
        )

    def _count(self, *_: object) -> None:
        self.to_database += 1

    def _received(self) -> int:
        received: int = self._raw.info("stats")["total_connections_received"]
        return received

    @property
    def to_redis(self) -> int:
        return self._received() - self._before

    def held_by_redis(self) -> int:
        """Without the one that asks."""
        return len(self._raw.client_list()) - 1

    def close(self) -> None:
        self._raw.close()


@pytest.fixture
def connections(service: Service, redis_url: str) -> Iterator[Connections]:
    """Closed after a failure, too: the server is shared with tests that count its clients."""
    counted = Connections(service, redis_url)
    yield counted
    counted.close()


@dataclass
class Crowd:
    """Pollers of the same jobs; a third of them disconnect again and again.

    Attributes:
        versions: the newest version that any client has received, by job.
    """

    port: int
    versions: dict[int, int]
    counts: Counter[str] = field(default_factory=Counter)
    going_on: bool = True

    async def stay(self, dice: random.Random) -> None:
        connection = await Connection.open(self.port)
        for _ in range(POLLS):
            await asyncio.sleep(dice.uniform(0, 0.5))
            job_id = dice.choice(list(self.versions))
            min_version = self.versions[job_id]
            reply = await connection.request("GET", f"/api/v2/jobs/{job_id}")
            assert reply.status == 200, reply.body
            job = reply.json()
            assert (job["id"], job["status"]) == (job_id, "rendering")
            assert job["version"] >= min_version
            self.versions[job_id] = max(job["version"], self.versions[job_id])
            self.counts["answered"] += 1
        await connection.aclose()

    async def go_away(self, dice: random.Random) -> None:
        for _ in range(POLLS):
            connection = await Connection.open(self.port)
            await asyncio.sleep(dice.uniform(0, 0.5))
            job_id = dice.choice(list(self.versions))
            connection.send("GET", f"/api/v2/jobs/{job_id}")
            await asyncio.sleep(dice.choice([0, 0.001, 0.01, 0.1]) * dice.random())
            connection.abandon()
            self.counts["abandoned"] += 1

    async def report(self, dice: random.Random) -> None:
        """A worker, so that there are writes; and one that now and then goes away itself."""
        connection = await Connection.open(self.port)
        while self.going_on:
            job_id = dice.choice(list(self.versions))
            connection.send("POST", f"/api/v2/jobs/{job_id}/progress", {"percent": 1})
            if dice.random() < 0.3:
                await asyncio.sleep(dice.uniform(0, 0.01))
                connection.abandon()
                connection = await Connection.open(self.port)
                continue
            reply = await connection.receive()
            assert reply.status == 200, reply.body
            self.versions[job_id] = max(reply.json()["version"], self.versions[job_id])
            self.counts["written"] += 1
            await asyncio.sleep(0.005)
        await connection.aclose()

    async def evict(self, dice: random.Random, redis_url: str) -> None:
        """Something always has to be loaded."""
        with redis.Redis.from_url(redis_url) as raw:
            while self.going_on:
                raw.delete(f"job:{dice.choice(list(self.versions))}:progress")
                await asyncio.sleep(0.002)


@postgres_only
@redis_only
async def test_a_third_of_many_pollers_disconnect_and_the_others_notice_nothing(
    service: Service, redis_url: str, connections: Connections, *, long: bool
) -> None:
    pollers = POLLERS_IF_LONG if long else POLLERS
    dice = random.Random(11)
    jobs = [await service.rendering() for _ in range(JOBS)]
    async with listening(service) as port:
        before = asyncio.all_tasks()
        crowd = Crowd(port, {job["id"]: job["version"] for job in jobs})
        async with asyncio.timeout(90), asyncio.TaskGroup() as group:
            others = [group.create_task(crowd.report(dice)) for _ in range(3)]
            others.append(group.create_task(crowd.evict(dice, redis_url)))
            polling = [
                group.create_task((crowd.go_away if n % 3 == 0 else crowd.stay)(dice))
                for n in range(pollers)
            ]
            await asyncio.gather(*polling)
            crowd.going_on = False
        await back_to(before)
    assert crowd.counts["answered"] == POLLS * (pollers - len(range(0, pollers, 3)))
    await nothing_is_left(service, connections)
    for job_id, version in crowd.versions.items():
        row = await service.services.jobs._store.load(job_id)
        assert row is not None
        assert row.version >= version
        assert (await service.job(job_id))["version"] == row.version
    statistics = (await service.stats())["statistics"]
    figures = {name: statistics[name] for name in ("hits", "misses", "bypasses", "coalesced")}
    print(  # noqa: T201 - the figures of this run
        dict(crowd.counts), figures, connections.to_redis, connections.to_database
    )


async def back_to(before: set[asyncio.Task[Any]]) -> None:
    """Wait until no task is left that was not there before."""
    async with asyncio.timeout(60):
        while asyncio.all_tasks() - before:
            await asyncio.sleep(0.01)


async def nothing_is_left(service: Service, connections: Connections) -> None:
    """Neither has anybody reconnected for each who went away, nor is a connection still in use."""
    # A probe has a connection of its own; on a busy machine there may be some.
    assert connections.to_redis <= 2 * REDIS_POOL
    assert connections.held_by_redis() <= REDIS_POOL + 1
    assert connections.to_database <= POSTGRES_POOL
    database = service.services.database
    # One is held for as long as the service runs: see `app.db.registration`.
    assert database.connections.engine.pool.checkedout() == 1  # type: ignore[attr-defined]
    busy = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
    async with asyncio.timeout(60):
        while True:
            ((held,),) = await database.read(text(busy), "test")
            if held <= POSTGRES_POOL:
                break
            await asyncio.sleep(0.01)
    idle = f"{busy} AND state LIKE 'idle in transaction%'"
    assert await database.read(text(idle), "test") == [(0,)]


REQUESTS = {
    "a poll": ("GET", "/api/v2/jobs/{id}", None),
    "a poll of several": ("GET", "/api/v2/jobs?ids={id}", None),
    "a list": ("GET", "/api/v2/jobs?client_id=acme", None),
    "a report": ("POST", "/api/v2/jobs/{id}/progress", {"percent": 7}),
    "a creation": ("POST", "/api/v2/jobs", {"client_id": "acme", "prompt": "x"}),
    "an end": ("POST", "/api/v2/jobs/{id}/complete", None),
}


async def call(app: Any, method: str, path: str, body: Any) -> int:
    """One request at the ASGI layer; its status."""
    content = b"" if body is None else json.dumps(body).encode()
    path, _, query = path.partition("?")
    headers = [(b"host", b"localhost")]
    if content:
        headers.append((b"content-type", b"application/json"))
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "scheme": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": query.encode(),
        "headers": headers,
        "client": None,
        "server": None,
    }
    statuses = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": content, "more_body": False}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    await app(scope, receive, send)
    status: int = statuses[0]
    return status


@postgres_only
@redis_only
@pytest.mark.parametrize("late", [False, True], ids=["waiting", "answered"])
@pytest.mark.parametrize("request_", REQUESTS)
async def test_a_request_cancelled_at_any_wait_does_not_affect_others(
    service: Service, redis_url: str, connections: Connections, request_: str, *, late: bool
) -> None:
    method, path, body = REQUESTS[request_]
    app = service.http._transport.app  # type: ignore[attr-defined]
    before = asyncio.all_tasks()
    with redis.Redis.from_url(redis_url) as raw:
        for number in range(1, MOST_WAITS):
            job = await service.rendering()
            raw.delete(f"job:{job['id']}:progress", "jobs:acme")
            working = CancelledAt(
                call(app, method, path.format(id=job["id"]), body), number, late=late
            )

            async def work(working: CancelledAt = working) -> int:
                status: int = await working
                return status

            others = [asyncio.create_task(service.job(job["id"])) for _ in range(2)]
            victim = asyncio.create_task(work())
            others += [asyncio.create_task(service.job(job["id"])) for _ in range(2)]
            async with asyncio.timeout(60):
                (outcome,) = await asyncio.gather(victim, return_exceptions=True)
                shown = await asyncio.gather(*others)
            assert all(each["version"] >= job["version"] for each in shown)
            if working.waits < number:
                assert outcome in {200, 202}
                break
            assert isinstance(outcome, asyncio.CancelledError), outcome
            await service.services.database.shielded.join()
            row = await service.services.jobs._store.load(job["id"])
            assert row is not None
            assert (await service.job(job["id"]))["version"] == row.version
        else:
            raise AssertionError("it never comes to its end")
    assert number > 1
    await back_to(before)
    await nothing_is_left(service, connections)

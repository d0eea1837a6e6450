"""What a key that nobody holds costs, when everybody asks for it at once, in several processes."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import psutil
import pytest
import redis

from app.devservers import PostgresServer, RedisServer
from tests.app.connections import HOST, connected
from tests.app.process import Process, serving

PROCESSES = 4
POLLERS = 200
KEYS = {"short": 4, "long": 8}
MOST_LOADS = 2
MOST_STEPS = 20
"""Leases and publishes of one process: its 200 pollers share them.

Gets are not bounded so: one is sent for all polls of a turn of the event loop, and the machine
decides in how many of them 200 polls arrive. No poll needs more than two gets."""

SLOW = 0.1
"""Seconds that a load takes: long enough to spin in, and short of the patience with which a process
waits for another's."""

_SENT = re.compile(r"\+[\d.]+ \[\d+ [\d.]+:(\d+)\] \"(\w+)")
_KINDS = {"GET": "get", "MGET": "get", "EVALSHA": "step"}


class Monitor:
    """Every get and every step that clients send to a Redis server, by the client's port.

    What scripts run is not among them: it costs no round trip.
    """

    def __init__(self, reader: asyncio.StreamReader, server: redis.Redis) -> None:
        self._reader = reader
        self._server = server

    async def seen(self, mark: str) -> Counter[tuple[int, str]]:
        """How many since the last call; `mark` is a word never used."""
        self._server.echo(mark)
        counts: Counter[tuple[int, str]] = Counter()
        async with asyncio.timeout(60):
            while mark not in (line := (await self._reader.readline()).decode()):
                sent = _SENT.match(line)
                if sent and sent[2] in _KINDS:
                    counts[int(sent[1]), _KINDS[sent[2]]] += 1
        return counts


@asynccontextmanager
async def held_up(database: str) -> AsyncIterator[None]:
    """Delay all reads of jobs until the block ends."""
    connection = await asyncpg.connect(database)
    try:
        async with connection.transaction():
            await connection.execute("LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE")
            yield
    finally:
        await connection.close()


@asynccontextmanager
async def monitoring(server: RedisServer) -> AsyncIterator[Monitor]:
    reader, writer = await asyncio.open_connection(HOST, server.port)
    try:
        writer.write(b"MONITOR\r\n")
        assert await reader.readline() == b"+OK\r\n"
        with redis.Redis.from_url(server.url) as client:
            yield Monitor(reader, client)
    finally:
        writer.close()
        await writer.wait_closed()


@pytest.fixture
def processes(
    tmp_path: Path, postgres: PostgresServer
) -> Iterator[tuple[list[Process], RedisServer]]:
    postgres.create_database(tmp_path.name)
    with RedisServer() as server, ExitStack() as stack:
        environment = {
            "JOBCACHE_BACKEND": "redis",
            "REDIS_URL": server.url,
            "DATABASE_URL": postgres.url(tmp_path.name),
            "JOBCACHE_RENDERER": "simulated",
        }
        yield (
            [
                stack.enter_context(
                    serving(
                        tmp_path,
                        measured=False,
                        module="tests.app.patient_service",
                        **environment,
                    )
                )
                for _ in range(PROCESSES)
            ],
            server,
        )


@dataclass(frozen=True, slots=True)
class Cost:
    """What one cold key cost.

    Attributes:
        loads: from the database, over all processes.
        gets: sent to Redis, by process.
        steps: leases and publishes sent to it, by process.
    """

    loads: int
    gets: tuple[int, ...]
    steps: tuple[int, ...]


async def test_a_cold_key_costs_two_loads_at_most_and_nobody_spins(
    processes: tuple[list[Process], RedisServer],
    tmp_path: Path,
    postgres: PostgresServer,
    *,
    long: bool,
) -> None:
    """200 pollers in each of four processes ask for it in the same moment."""
    services, server = processes
    keys = KEYS["long" if long else "short"]
    database = postgres.url(tmp_path.name).replace("+asyncpg", "")
    body = {"client_id": "acme", "prompt": "A cat sits.", "renderer": "external"}
    job_id = services[0].http.post("/api/v2/jobs", json=body).json()["id"]
    expected = services[0].until(job_id, "storyboard_ready")
    costs: list[Cost] = []
    ports = [each.port for each in services for _ in range(POLLERS)]
    async with connected(ports) as pollers, monitoring(server) as monitor:
        with redis.Redis.from_url(server.url) as client:
            for number in range(keys):
                before = loads(services)
                client.delete(f"job:{job_id}:progress")
                await monitor.seen(f"before-{number}")
                async with held_up(database):
                    for poller in pollers:
                        poller.send("GET", f"/api/v2/jobs/{job_id}")
                    await asyncio.sleep(SLOW)
                async with asyncio.timeout(60):
                    replies = await asyncio.gather(*(poller.receive() for poller in pollers))
                sent = await monitor.seen(f"after-{number}")
                assert {reply.status for reply in replies} == {200}
                assert all(reply.json() == expected for reply in replies)
                loaded = loads(services) - before
                costs.append(Cost(loaded, *by_process(services, sent)))
    print(*costs, sep="\n")  # noqa: T201 - the figures of this run
    assert all(cost.loads >= 1 and min(cost.gets) >= 1 for cost in costs), "all is counted"
    assert all(sum(cost.steps) >= cost.loads for cost in costs), "all is counted"
    assert max(cost.loads for cost in costs) <= MOST_LOADS
    assert max(max(cost.gets) for cost in costs) <= 2 * POLLERS
    assert max(max(cost.steps) for cost in costs) <= MOST_STEPS


def loads(processes: list[Process]) -> int:
    # All share a directory and a database, so each of them has the sum.
    stats = processes[0].http.get("/api/v2/cache/stats").json()
    assert len(stats["processes"]) == len(processes)
    count: int = stats["database"]["purposes"].get("load", 0)
    return count


def by_process(
    processes: list[Process], sent: Counter[tuple[int, str]]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Gets and steps by process, found by the ports of its connections."""
    ports = [
        [each.laddr.port for each in psutil.Process(process.child.pid).net_connections("tcp")]
        for process in processes
    ]
    gets = tuple(sum(sent[port, "get"] for port in own) for own in ports)
    steps = tuple(sum(sent[port, "step"] for port in own) for own in ports)
    return gets, steps

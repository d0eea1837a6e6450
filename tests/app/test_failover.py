"""A cluster's node is killed, and a master behind sentinels replaced, while many poll and write."""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from app.devservers import PostgresServer, RedisServer
from app.devservers.cluster import RedisCluster
from app.devservers.sentinel import RedisSentinels
from tests.app.connections import Client
from tests.app.process import Process, serving
from tests.subjects import REDIS_SERVERS

pytestmark = pytest.mark.usual_limits

LAG = {"redis": 0.0, "tiered": 2.5}
"""By backend, one for each process: seconds by which an answer may be late at most, as
`docs/promises.md` has it."""
FIRST_TIER = {"redis": "redis", "tiered": "memory"}
JOBS = 12
POLLERS = 3  # of each job
POLL_PAUSE = {"short": 0.03, "long": 0.005}
REPORT_PAUSE = {"short": 0.1, "long": 0.02}
"""Seconds that a client waits between two requests."""
PROBES = 4  # jobs that change only where a test waits for that change to be seen
PROGRAM = list(REDIS_SERVERS.values())[-1]  # the library's own tests have failovers on the first


class Clients:
    """Clients that poll and report progress through all processes, with checks of every response.

    Args:
        services: the processes, one for each backend of `LAG`.
        long: whether as much is asked of them as they can answer.

    Attributes:
        settled: from now on no response is older than an acknowledged write, or than an earlier
            response of the same process.
        counts: what happened, for the figures of a run.
    """

    def __init__(self, services: list[Process], *, long: bool) -> None:
        self.services = services
        self._length = "long" if long else "short"
        self.settled = True
        self.counts: Counter[str] = Counter()
        self._going_on = True
        backend = {service.port: name for service, name in zip(services, LAG, strict=True)}
        self._lag = {port: LAG[name] for port, name in backend.items()}
        self._first = {port: FIRST_TIER[name] for port, name in backend.items()}
        self._received: Counter[tuple[int, int]] = Counter()  # version, by process and job
        # By job, when which version was acknowledged.
        self._acknowledged: dict[int, list[tuple[float, int]]] = {}
        self._clients: list[Client] = []
        self._probes: list[int] = []

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        for number in range(JOBS + PROBES):
            service = self.services[number % len(self.services)]
            job_id = await asyncio.to_thread(service.rendering, renderer="external")
            self._acknowledged[job_id] = [(0.0, 1)]
        jobs = list(self._acknowledged)
        self._probes = jobs[JOBS:]
        try:
            async with asyncio.TaskGroup() as load:
                for job_id in jobs[:JOBS]:
                    load.create_task(self._keep_reporting(job_id))
                    for _ in range(POLLERS):
                        load.create_task(self._keep_polling(job_id))
                yield
                self._going_on = False
            await self._until_all_are_new_hits(jobs)
        finally:
            for client in self._clients:
                client.abandon()

    async def _keep_polling(self, job_id: int) -> None:
        clients = self._one_for_each_process()
        while self._going_on:
            await self._poll(random.choice(clients), job_id)
            await asyncio.sleep(POLL_PAUSE[self._length])

    async def _keep_reporting(self, job_id: int) -> None:
        clients = self._one_for_each_process()
        while self._going_on:
            await self._report(random.choice(clients), job_id)
            await asyncio.sleep(REPORT_PAUSE[self._length])

    async def _report(self, client: Client, job_id: int) -> None:
        self.counts["reports"] += 1
        path, body = f"/api/v2/jobs/{job_id}/progress", {"percent": self.counts["reports"] % 100}
        reply = await client.request("POST", path, body)
        assert reply.status == 200, reply
        version = reply.json()["version"]
        self._acknowledged[job_id].append((time.monotonic(), version))

    async def _poll(self, client: Client, job_id: int) -> bool:
        """Whether it was a hit, in the tier that is asked first, and the newest there is."""
        port = client.port
        settled = self.settled  # as it was when it was asked
        began = time.monotonic()
        due = began - self._lag[port]
        acknowledged = max(version for at, version in self._acknowledged[job_id] if at <= due)
        min_version = max(acknowledged, self._received[port, job_id])
        reply = await client.request("GET", f"/api/v2/jobs/{job_id}")
        assert reply.status == 200, reply
        version = reply.json()["version"]
        if version < min_version:
            found = reply.headers["cache-status"]
            ago = [(v, round(began - at, 3)) for at, v in self._acknowledged[job_id][-30:]]
            assert not settled, (
                f"{self._first[port]}, job {job_id}: v{version} after v{min_version}, of which "
                f"{acknowledged} was acknowledged, as {found}, after "
                f"{time.monotonic() - began:.3f} s; acknowledged, and seconds ago: {ago}"
            )
            self.counts["polls behind"] += 1
        self._received[port, job_id] = max(version, self._received[port, job_id])
        self.counts["polls"] += 1
        newest = max(version for _, version in self._acknowledged[job_id])
        hit = re.search(f"; hit;.* detail={self._first[port]}$", reply.headers["cache-status"])
        return hit is not None and version == newest

    def _one_for_each_process(self) -> list[Client]:
        clients = [Client(service.port) for service in self.services]
        self._clients += clients
        return clients

    async def until_all_agree(self) -> None:
        """Until each process shows from its cache what another one has written."""
        await self._until_all_are_new_hits(self._probes)

    async def _until_all_are_new_hits(self, jobs: list[int]) -> None:
        """Poll twice in each process, while the first process changes the jobs."""
        clients = self._one_for_each_process()
        async with asyncio.timeout(60):
            for client in clients * 2:
                for job_id in jobs:
                    await self._report(clients[0], job_id)
                while not all([await self._poll(client, job) for job in jobs]):
                    await asyncio.sleep(0.02)

    async def until_all_are_available(self) -> None:
        for client in self._one_for_each_process():
            await until(lambda each=client: available(each))


async def available(client: Client) -> bool:
    """Whether the process there uses its cache."""
    reply = await client.request("GET", "/api/v2/cache/stats")
    answer: bool = reply.json()["statistics"]["redis_available"]
    return answer


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(60):
        while not await condition():
            await asyncio.sleep(0.01)


@asynccontextmanager
async def settling(clients: Clients) -> AsyncIterator[None]:
    """Meanwhile, and only then, processes may not know of each other."""
    await asyncio.sleep(0.4)  # some load before, and after
    clients.settled = False
    yield
    await clients.until_all_agree()
    clients.settled = True
    await asyncio.sleep(0.4)


def outages(services: list[Process]) -> int:
    """How often a process has set its store aside, as the logs have it."""
    return sum(service.log.read_text().count(" cache is away (") for service in services)


async def kill(clients: Clients, server: RedisServer) -> None:
    """Kill a server, and return once a process has set the store aside, and all have it back."""

    async def noticed() -> bool:
        return outages(clients.services) > before

    async with settling(clients):
        before = outages(clients.services)
        server.kill()
        await until(noticed)
        await clients.until_all_are_available()


async def until_all_have_moved_to(clients: Clients, server: RedisServer) -> None:
    """Wait until every process is connected to it."""

    async def moved() -> bool:
        return all(
            any(each.raddr and each.raddr.port == server.port for each in own)
            for own in await asyncio.to_thread(connections)
        )

    def connections() -> list[list[Any]]:
        processes = [psutil.Process(service.child.pid) for service in clients.services]
        return [process.net_connections("tcp") for process in processes]

    await until(moved)


@contextmanager
def two_services(directory: Path, **environment: str) -> Iterator[list[Process]]:
    """Two processes of the service on one store, one with a local tier before it."""
    # On a busy machine a connection may be idle for longer than the default between two reports,
    # which are not sent again.
    environment["JOBCACHE_KEEP_ALIVE"] = "600"
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                serving(directory, measured=False, JOBCACHE_BACKEND=backend, **environment)
            )
            for backend in LAG
        ]


@pytest.fixture
def database(tmp_path: Path, postgres: PostgresServer) -> str:
    postgres.create_database(tmp_path.name)
    return postgres.url(tmp_path.name)


async def test_a_node_of_the_cluster_is_killed_and_no_client_notices(
    database: str, tmp_path: Path, *, long: bool
) -> None:
    with (
        RedisCluster(PROGRAM, replicas=1, node_timeout=0.6) as cluster,
        two_services(tmp_path, REDIS_URL=cluster.url, DATABASE_URL=database) as services,
    ):
        clients = Clients(services, long=long)
        async with clients.at_work():
            await kill(clients, cluster.owner(0))
    print(clients.counts)  # noqa: T201 - the figures of this run


async def test_a_master_is_deposed_and_the_next_one_killed_and_no_client_notices(
    database: str, tmp_path: Path, *, long: bool
) -> None:
    with (
        RedisSentinels(PROGRAM, replicas=2, down_after=0.4) as sentinels,
        two_services(tmp_path, REDIS_URL=sentinels.url, DATABASE_URL=database) as services,
    ):
        clients = Clients(services, long=long)
        async with clients.at_work():
            first = sentinels.master()
            async with settling(clients):  # the first master goes on, and is demoted seconds later
                sentinels.fail_over()
                await asyncio.to_thread(sentinels.wait_until_another_is_master, first)
                await until_all_have_moved_to(clients, sentinels.master())
            await kill(clients, sentinels.master())
    print(clients.counts)  # noqa: T201 - the figures of this run

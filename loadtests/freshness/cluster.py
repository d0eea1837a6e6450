"""The system under test: services on one PostgreSQL and one Redis, and proxies between them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

from redis.asyncio import Redis

from app.db.migrations.run import Migrations
from app.devservers import RedisServer, free_port
from benchmarks.process import Process
from loadtests.connection import get
from loadtests.freshness.connection import LastingConnection, NoAnswer
from loadtests.freshness.proxy import HOST, Proxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence
    from typing import Self

    from app.devservers import PostgresServer
    from loadtests.freshness.older_version import OlderVersion

_START = 60.0  # seconds for a service to become ready
_OK = 200
_PAUSE = 0.02  # seconds between two looks
_OURS = ("JOBCACHE_", "DATABASE_", "REDIS_URL", "FRESHNESS_", "COVERAGE_")
# A replica is in sync at once, and not after five seconds.
_REDIS = ("--repl-diskless-sync-delay", "0")
POSTGRES = {"synchronous_commit": "on"}
"""Settings of the PostgreSQL server, so that a crash loses nothing that was acknowledged."""


class ServiceEnded(Exception):  # noqa: N818 - says what is the matter
    """A service process did not start, or ended; the message ends with its last output."""


class Service:
    """One service process; after a kill it can be started again on the same port.

    Args:
        number: which, from 0.
        settings: its environment variables.
        version: the version to run.

    Attributes:
        version: the version that it runs from its next start on; None: this one.
        down: True while it does not run.
        doomed: True while nobody can count on its answers, for it has been or will be killed.
        reads_only: True while no client changes anything through it.
    """

    def __init__(
        self, number: int, settings: Mapping[str, str], version: OlderVersion | None = None
    ) -> None:
        self.number = number
        self.version = version
        self.port = free_port()
        self.down = True
        self.doomed = True
        self.reads_only = False
        kept = {name: text for name, text in os.environ.items() if not name.startswith(_OURS)}
        self._environment = {
            **kept,
            "JOBCACHE_PORT": str(self.port),
            **settings,
        }
        self._process: Process | None = None

    def start(self) -> None:
        """Start the process; it is not ready when this returns."""
        if self.version is None:
            command = [sys.executable, "-m", "loadtests.freshness.service"]
            process = Process(command, self._environment)
        else:
            process = self.version.process(self._environment)
        self._process = process.__enter__()

    async def wait_until_ready(self) -> None:
        """Return once it answers.

        Raises:
            ServiceEnded: it ended, or took too long.
        """
        connection = LastingConnection(self.port)
        deadline = time.monotonic() + _START
        try:
            while self._running.alive and time.monotonic() < deadline:
                with contextlib.suppress(NoAnswer):
                    if (await connection.send(get("/readyz"))).status == _OK:
                        self.down = self.doomed = False
                        return
                await asyncio.sleep(_PAUSE)
        finally:
            connection.close()
        raise ServiceEnded(f"process {self.number} is not ready:\n{self._running.log_tail()}")

    async def uses_cache(self) -> bool:
        """Whether it says that its cache is in use, and all tiers of it."""
        try:
            statistics = await self.statistics()
        except NoAnswer:
            return False
        followed = statistics["feed"] is None or statistics["feed"]["state"] in {"live", "idle"}
        return followed and statistics["breaker"]["state"] == "closed"

    async def statistics(self) -> dict[str, Any]:
        """What it says of its cache.

        Raises:
            NoAnswer: it does not say anything.
        """
        connection = LastingConnection(self.port)
        try:
            answer = await connection.send(get("/api/v2/cache/stats"))
        finally:
            connection.close()
        statistics: dict[str, Any] = json.loads(answer.body)["statistics"]
        return statistics

    def arm(self) -> None:
        """Tell it to die between a commit and its publish."""
        os.kill(self._running.pid, signal.SIGUSR1)

    @property
    def alive(self) -> bool:
        """False once it has ended."""
        return self._process is not None and self._process.alive

    def log_tail(self) -> str:
        """The last lines it has written."""
        return self._running.log_tail()

    def stop(self) -> None:
        """Have it end in order: it answers the requests that it has received."""
        if self._process is not None:
            self._process.__exit__()
            self._process = None

    def kill(self) -> None:
        """End it at once. Harmless if it has ended."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(10)
            self.stop()

    @property
    def _running(self) -> Process:
        if self._process is None:
            raise ServiceEnded(f"process {self.number} is not running")
        return self._process


class Cluster:
    """The servers, the proxies and the services, as an asynchronous context manager.

    Args:
        postgres: a running server, whose `postgres` database is ours. It may be replaced, too.
        redis: a running server; None for backends that need none. It may be replaced by another
            in the course of a run; all of them are closed at the end.
        processes: how many services.
        settings: environment variables that all of them get.
        older: the version that each second of them runs; None: all run this one.

    Attributes:
        proxies: to Redis, one for each service; none without Redis.
        listener_proxies: to PostgreSQL, for the listening connections of the backend `postgres`;
            none with other backends.
        database_proxies: the same, for all other connections to PostgreSQL.
    """

    def __init__(
        self,
        postgres: PostgresServer,
        redis: RedisServer | None,
        processes: int,
        settings: Mapping[str, str],
        older: OlderVersion | None = None,
    ) -> None:
        self.older = older
        self.postgres = postgres
        self._redis = redis
        self.proxies = [] if redis is None else [Proxy(redis.port) for _ in range(processes)]
        listeners = processes if settings["JOBCACHE_BACKEND"] == "postgres" else 0
        self.listener_proxies = [Proxy(postgres.socket) for _ in range(listeners)]
        self.database_proxies = [Proxy(postgres.socket) for _ in range(listeners)]
        self._processes = processes
        self._settings = {**settings, "DATABASE_URL": postgres.url()}
        self.services: list[Service] = []

    async def __aenter__(self) -> Self:
        try:
            for proxy in self._all_proxies:
                await proxy.start()
            for number in range(self._processes):
                settings = dict(self._settings)
                if self.proxies:
                    settings["REDIS_URL"] = f"redis://{HOST}:{self.proxies[number].port}/0"
                if self.listener_proxies:
                    settings["DATABASE_URL"] = _url_of(self.database_proxies[number])
                    settings["DATABASE_DIRECT_URL"] = _url_of(self.listener_proxies[number])
                version = self.older if number % 2 == 1 else None
                self.services.append(Service(number, settings, version))
            if self.older is not None:
                # Its tables are upgraded while it runs, as in production.
                await _start([each for each in self.services if each.version is not None])
                await Migrations(self.postgres.url()).upgrade()
            await _start([each for each in self.services if each.version is None])
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End the services, the proxies, and a Redis that took the place of the first."""
        for service in self.services:
            service.kill()
        for proxy in self._all_proxies:
            await proxy.aclose()
        if self._redis is not None:
            self._redis.close()
        self.postgres.close()

    @property
    def shares(self) -> bool:
        """Whether the cache needs something that can be away: a store, or a change feed."""
        return bool(self._all_proxies)

    @property
    def _all_proxies(self) -> list[Proxy]:
        return [*self.proxies, *self.listener_proxies, *self.database_proxies]

    @property
    def redis(self) -> RedisServer:
        """The Redis in use."""
        if self._redis is None:
            raise LookupError("there is no Redis in this run")
        return self._redis

    @contextlib.asynccontextmanager
    async def admin(self, server: RedisServer | None = None) -> AsyncIterator[Redis]:
        """A connection to Redis past the proxies; to the one in use unless another is named."""
        url = (self.redis if server is None else server).url
        async with Redis.from_url(url, socket_timeout=10, decode_responses=True) as client:
            yield client

    def replace_redis(self, server: RedisServer) -> None:
        """From now on `server` is the one in use, and the one before it is gone."""
        before, self._redis = self.redis, server
        for proxy in self.proxies:
            proxy.target = server.port
            proxy.cut()
        before.close()

    def point_at(self, server: PostgresServer) -> None:
        """Have new connections to PostgreSQL lead to `server`; those there are stay as they are."""
        for proxy in (*self.database_proxies, *self.listener_proxies):
            proxy.target = server.socket

    def replace_postgres(self, server: PostgresServer) -> None:
        """From now on `server` is the one in use, and the one before it is gone."""
        before, self.postgres = self.postgres, server
        self.point_at(server)
        for proxy in (*self.database_proxies, *self.listener_proxies):
            proxy.cut()
        before.close()


def _url_of(proxy: Proxy) -> str:
    return f"postgresql://postgres@{HOST}:{proxy.port}/postgres?sslmode=disable"


async def _start(services: Sequence[Service]) -> None:
    for service in services:
        service.start()
    for service in services:
        await service.wait_until_ready()


def new_redis() -> RedisServer:
    """A Redis for a cluster, not started yet."""
    return RedisServer(arguments=_REDIS)

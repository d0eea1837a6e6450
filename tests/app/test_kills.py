"""Processes that are killed at random moments, again and again, and what that must not cost."""

from __future__ import annotations

import asyncio
import random
import subprocess
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis
from sqlalchemy import select

from app.db.database import Database
from app.db.tables import jobs
from app.devservers import PostgresServer, RedisServer, free_port
from tests.app.connections import Connection, Reply
from tests.app.process import launch

KILLS = {"short": 12, "long": 50}
PROCESSES = 3
DRIVERS = 10
POLLERS = 4
LONGEST_LIFETIME = {"short": 1.0, "long": 2.0}
"""Seconds from its readiness to its death, at most; every third dies before it is ready."""
LONGEST_START = 0.2
"""Seconds from its start to the death of one that dies before it is ready, at most."""
GIVEN_UP = "Given up: 5 attempts were cut short."


class Target:
    """One of the processes: killed and started again on its port."""

    def __init__(self, directory: Path, environment: dict[str, str]) -> None:
        self.port = free_port()
        self._directory = directory
        self._environment = environment
        self.log = directory / f"log-{self.port}.txt"
        self._child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._child = launch(
            self._directory, self.port, self.log, measured=False, **self._environment
        )

    async def ready(self) -> None:
        async with asyncio.timeout(60):
            while True:
                assert self._child is not None
                assert self._child.poll() is None, self.log.read_text()
                try:
                    if (await ask_once(self.port, "GET", "/readyz")).status == 200:
                        return
                except NoAnswer:
                    pass
                await asyncio.sleep(0.02)

    async def kill(self) -> None:
        if self._child is not None:
            self._child.kill()
            await asyncio.to_thread(self._child.wait)


class NoAnswer(Exception):  # noqa: N818 - says what is the matter
    """The process died, so nobody knows whether it carried out the request."""


class Refused(Exception):  # noqa: N818 - says what is the matter
    """The job's state does not allow it, said a process."""


async def ask_once(port: int, method: str, path: str, body: Any = None, **headers: str) -> Reply:
    try:
        async with asyncio.timeout(60):
            connection = await Connection.open(port)
            try:
                return await connection.request(method, path, body, **headers)
            finally:
                connection.abandon()
    except (OSError, EOFError) as error:
        raise NoAnswer from error


@dataclass
class Watch:
    """The versions that clients received, and the checks that follow from them.

    Attributes:
        versions: the newest that was acknowledged to a writer or shown to a reader, by job.
        ended: the version of each job that was seen at its end.
        keys: the job that each idempotency key has made.
        counts: what happened, for the figures of a run.
    """

    ports: list[int]
    logs: list[Path]
    dice: random.Random
    versions: dict[int, int] = field(default_factory=dict)
    ended: dict[int, int] = field(default_factory=dict)
    keys: dict[str, int] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    going_on: bool = True

    def received(self, job: dict[str, Any], min_version: int) -> None:
        """A client has this answer; when it asked, `min_version` was known."""
        job_id, version = job["id"], job["version"]
        if version < min_version:
            # What `docs/promises.md` allows, and nothing else: a writer cut off from Redis.
            assert self.cut_off(), f"job {job_id}: version {version} after {min_version}"
            self.counts["polls behind a writer cut off"] += 1
            return
        self.versions[job_id] = max(version, self.versions.get(job_id, 0))
        if job["terminal"]:
            assert self.ended.setdefault(job_id, version) == version, f"job {job_id} was left again"

    def cut_off(self) -> bool:
        """True if a process has said that it could not reach Redis."""
        return any(b"the redis cache is away" in log.read_bytes() for log in self.logs)

    async def poll(self, job_id: int) -> dict[str, Any] | None:
        """Ask any process; None if it had no answer."""
        min_version = self.versions[job_id]
        try:
            reply = await ask_once(self.dice.choice(self.ports), "GET", f"/api/v2/jobs/{job_id}")
        except NoAnswer:
            await asyncio.sleep(0.1)
            return None
        assert reply.status == 200, reply.body
        job: dict[str, Any] = reply.json()
        self.received(job, min_version)
        self.counts["polls"] += 1
        return job

    async def insist(self, path: str, body: Any = None, **headers: str) -> dict[str, Any]:
        """Send a write to any process until one acknowledges it."""
        while True:
            try:
                reply = await ask_once(
                    self.dice.choice(self.ports), "POST", f"/api/v2/jobs{path}", body, **headers
                )
            except NoAnswer as error:
                refused = isinstance(error.__cause__, ConnectionRefusedError)
                self.counts["writes without an answer"] += not refused
                await asyncio.sleep(0.1)
                continue
            if reply.status == 409:
                raise Refused(reply.body.decode())
            assert reply.status in {200, 202}, (path, reply)
            job: dict[str, Any] = reply.json()
            self.received(job, 0)
            self.counts["writes acknowledged"] += 1
            return job

    async def until(self, job_id: int, *statuses: str) -> dict[str, Any]:
        while True:
            job = await self.poll(job_id)
            if job is not None and job["status"] in statuses:
                return job
            await asyncio.sleep(0.03)

    async def drive(self, number: int) -> None:
        """Take one job after the other from its creation to its end."""
        for turn in range(10_000):
            if not self.going_on:
                return
            renderer = "external" if (number + turn) % 2 else "builtin"
            body = {"client_id": f"c{number}", "prompt": "A cat sits.", "renderer": renderer}
            key = f"{number}-{turn}"
            job_id = (await self.insist("", body, idempotency_key=key))["id"]
            self.keys[key] = job_id
            again = await self.insist("", body, idempotency_key=key)
            assert again["id"] == job_id
            try:
                await self.move_on(job_id, renderer)
            except Refused:
                # Its process was killed once too often, while this client waited for an answer.
                assert (await self.until(job_id, "failed"))["error"] == GIVEN_UP

    async def move_on(self, job_id: int, renderer: str) -> None:
        await self.until(job_id, "storyboard_ready", "failed")
        await self.insist(f"/{job_id}/approve")
        await self.insist(f"/{job_id}/render")
        if renderer == "builtin":
            await self.until(job_id, "completed", "failed")
            return
        for percent in range(0, 100, 20):
            await self.insist(f"/{job_id}/progress", {"percent": percent})
        assert (await self.insist(f"/{job_id}/complete"))["status"] == "completed"

    async def look(self) -> None:
        """Poll whatever jobs there are, the ended ones too."""
        while self.going_on:
            if self.versions:
                await self.poll(self.dice.choice(list(self.versions)))
            await asyncio.sleep(0.01)


async def hold_up_writes(watch: Watch, url: str) -> None:
    """Make Redis slow to take fences and publishes, so that many a process dies between the two."""
    with redis.Redis.from_url(url) as raw:
        while watch.going_on:
            raw.execute_command("CLIENT", "PAUSE", "30", "WRITE")
            await asyncio.sleep(0.06)


async def kill_again_and_again(
    target: Target, kills: int, longest_lifetime: float, dice: random.Random
) -> None:
    for number in range(kills):
        if number % 3 == 2:
            await asyncio.sleep(dice.uniform(0, LONGEST_START))  # in the middle of its start
        else:
            await target.ready()
            await asyncio.sleep(dice.uniform(0, longest_lifetime))
        await target.kill()
        target.start()
    await target.ready()


@asynccontextmanager
async def targets(directory: Path, environment: dict[str, str]) -> AsyncIterator[list[Target]]:
    made = [Target(directory, environment) for _ in range(PROCESSES)]
    try:
        for target in made:
            target.start()
        yield made
    finally:
        for target in made:
            await target.kill()


async def test_kills_lose_no_acknowledged_write_and_leave_no_job_stuck(
    tmp_path: Path, postgres: PostgresServer, *, long: bool
) -> None:
    length = "long" if long else "short"
    kills = KILLS[length]
    seed = random.randrange(10**6)
    print("seed", seed)  # noqa: T201 - to run it again
    dice = random.Random(seed)
    postgres.create_database(tmp_path.name)
    with RedisServer() as server:
        environment = {
            "JOBCACHE_BACKEND": "redis",
            "REDIS_URL": server.url,
            "DATABASE_URL": postgres.url(tmp_path.name),
            "JOBCACHE_RENDERER": "simulated",
            "JOBCACHE_CLAIM_SECONDS": "1.5",
            "JOBCACHE_SIMULATED_SECONDS": "0.6",
            "JOBCACHE_SIMULATED_UPDATES": "3",
        }
        async with targets(tmp_path, environment) as processes:
            for process in processes:
                await process.ready()
            watch = Watch(
                [process.port for process in processes],
                [process.log for process in processes],
                dice,
            )
            shares = [kills // PROCESSES + (n < kills % PROCESSES) for n in range(PROCESSES)]
            async with asyncio.timeout(None) as limit, asyncio.TaskGroup() as load:
                for number in range(DRIVERS):
                    load.create_task(watch.drive(number))
                for _ in range(POLLERS):
                    load.create_task(watch.look())
                load.create_task(hold_up_writes(watch, server.url))
                await asyncio.gather(
                    *(
                        kill_again_and_again(process, share, LONGEST_LIFETIME[length], dice)
                        for process, share in zip(processes, shares, strict=True)
                    )
                )
                # Jobs in progress run to their end; no process is killed any more.
                watch.going_on = False
                limit.reschedule(asyncio.get_running_loop().time() + 60)
            async with asyncio.timeout(60):
                await compare(watch, postgres.url(tmp_path.name))
    print("kills", sum(shares), dict(watch.counts))  # noqa: T201 - the figures of this run


async def compare(watch: Watch, database_url: str) -> None:
    """Compare the versions that clients received, the rows, and the responses of each process."""
    database = Database(database_url)
    rows = {row.id: row for row in await database.read(select(jobs), "test")}
    await database.aclose()
    assert sorted(watch.keys.values()) == sorted(rows), "each key has made one job, and it is there"
    for job_id, row in rows.items():
        assert row.version >= watch.versions[job_id]
        assert row.version == watch.ended.get(job_id, row.version)
        assert row.status == "completed" or row.error == GIVEN_UP, "none is stuck"
        watch.counts[f"jobs {row.status}"] += 1
        for port in watch.ports:
            while True:
                shown = (await ask_once(port, "GET", f"/api/v2/jobs/{job_id}")).json()
                if (shown["version"], shown["status"]) == (row.version, row.status):
                    break
                assert watch.cut_off(), shown  # and then for one lifetime
                await asyncio.sleep(0.5)

"""What all clients of a driver share: requests that are timed, checked and counted."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jobcache.client.jobs import Job
from loadtests.drivers.connection import Connection
from loadtests.pollers import rows

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jobcache.client.core.messages import Response
    from loadtests.pollers.record import Record

_PROMPT = "A fox crosses a frozen river at night, meets a bear and shares its fish."
_CREATED_AT_ONCE = 8
_PAUSE = 0.05  # seconds between two polls for a storyboard


class DriverFailed(Exception):  # noqa: N818 - says what is the matter
    """A request that the driver cannot do without was refused."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """The numbers of a scenario; times are in seconds.

    Attributes:
        users: how many clients there are.
        jobs: how many jobs they poll.
        interval: between the polls of a client.
        job_seconds: how long a job takes.
        updates: how many progress reports a job makes.
    """

    users: int
    jobs: int
    interval: float
    job_seconds: float
    updates: int


class Session:
    """Sends requests and records them.

    Args:
        port: of the service.
        record: counts requests, and how polls were answered.
        options: of the scenario.
    """

    def __init__(self, port: int, record: Record, options: Options) -> None:
        self.port = port
        self.record = record
        self.options = options

    async def connect(self) -> Connection:
        """Return a new connection."""
        return await Connection.open(self.port)

    async def send(
        self,
        connection: Connection,
        row: str,
        path: str,
        *,
        method: str = "GET",
        expected: tuple[int, ...] = (200,),
        headers: Mapping[str, str] | None = None,
        body: object = None,
        pause: float = 0.0,
    ) -> Response:
        """Send a request and record it in a row; another status is a failure.

        The response is read after a pause in seconds.
        """
        began = time.perf_counter()
        response = await connection.call(method, path, headers, body, pause=pause)
        took = 1000 * (time.perf_counter() - began)
        if row in rows.POLLS and "cache-status" in response.headers:
            outcome = rows.outcome_of(response)
            self.record.poll(outcome)
            row = outcome.row
        self.record.request(row, took)
        if response.status not in expected:
            self.record.failure(row, f"status {response.status}")
        return response

    async def poll(
        self, connection: Connection, job: int, seen: int = 0, *, pause: float = 0.0
    ) -> Job:
        """Poll a job; a version below `seen` is a failure. The response is read after a pause.

        Raises:
            DriverFailed: there is no job in the response.
        """
        path = f"/api/v2/jobs/{job}"
        response = await self.send(connection, rows.NO_ANSWER, path, pause=pause)
        found = _job(response)
        if found.version < seen:
            self.record.failure(rows.HIT, f"version {found.version} after {seen}")
        return found

    async def change(self, connection: Connection, row: str, path: str, body: object = None) -> Job:
        """Send a change; return the job after it.

        Raises:
            DriverFailed: it was refused.
        """
        response = await self.send(
            connection, row, path, method="POST", expected=(200, 202), body=body
        )
        return _job(response)

    async def create(self, connection: Connection, client_id: str) -> Job:
        """Return a new job that is being rendered, by a worker that reports its progress here.

        Raises:
            DriverFailed: the service refused.
        """
        body = {"client_id": client_id, "prompt": _PROMPT, "renderer": "external"}
        job = await self.change(connection, rows.CREATE, "/api/v2/jobs", body)
        self.record.job_created()
        while job.status != "storyboard_ready":
            await asyncio.sleep(_PAUSE)
            job = await self.poll(connection, job.id, job.version)
        path = f"/api/v2/jobs/{job.id}"
        await self.change(connection, rows.APPROVE, f"{path}/approve")
        return await self.change(connection, rows.RENDER, f"{path}/render")

    async def create_all(self) -> list[Job]:
        """Return the jobs of the scenario, each of a client of its own."""
        numbers = iter(range(self.options.jobs))
        jobs: list[Job] = []

        async def create_some() -> None:
            connection = await self.connect()
            jobs.extend([await self.create(connection, f"client-{each}") for each in numbers])
            await connection.close()

        async with asyncio.TaskGroup() as group:
            for _ in range(_CREATED_AT_ONCE):
                group.create_task(create_some())
        return jobs

    async def report(self, connection: Connection, job: int, percent: float) -> Job:
        """Report the progress of a job, as its worker."""
        body = {"percent": percent, "stage": "rendering", "message": f"{percent:.3f} percent"}
        return await self.change(connection, rows.PROGRESS, f"/api/v2/jobs/{job}/progress", body)

    async def complete(self, connection: Connection, job: int) -> Job:
        """Report the end of a job, as its worker."""
        done = await self.change(connection, rows.COMPLETE, f"/api/v2/jobs/{job}/complete")
        self.record.job_completed(done.version)
        return done

    async def render(self, job: int) -> None:
        """Report the progress of a job at its pace, and then its end."""
        options = self.options
        connection = await self.connect()
        start = time.monotonic()
        for step in range(1, options.updates + 1):
            due = start + options.job_seconds * step / options.updates
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            await self.report(connection, job, 100 * step / options.updates)
        await self.complete(connection, job)
        await connection.close()


def _job(response: Response) -> Job:
    try:
        return Job.parse(response.body, response.headers.get("etag"))
    except ValueError as error:
        raise DriverFailed(f"status {response.status}: {response.body[:200]!r}") from error

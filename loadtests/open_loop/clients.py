"""Pollers, and the workers that update the jobs meanwhile."""

from __future__ import annotations

import asyncio
import json
from array import array
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from loadtests.connection import Connection, connect, get, post
from loadtests.open_loop.record import Kind, Record, Source

if TYPE_CHECKING:
    from loadtests.connection import Response

_OK, _NOT_MODIFIED = 200, 304


@dataclass(slots=True)
class PolledJob:
    """A job under the load.

    Attributes:
        id: its id.
        acknowledged: the newest version that the service has acknowledged to a worker.
        percent: of the progress that was reported last.
    """

    id: int
    acknowledged: int
    percent: int = 0


class Poller:
    """Polls one job on one connection.

    A poll that is due while another is unanswered waits for it, and its time counts from when it
    was due.

    Args:
        job: the job.
        conditional: whether to send the ETag of the last response.
        record: counted into; may be replaced between two polls.
    """

    def __init__(self, job: PolledJob, record: Record, *, conditional: bool) -> None:
        self.record = record
        self._job = job
        self._conditional = conditional
        self._request = get(f"/api/v2/jobs/{job.id}")
        self._seen = 0
        self._sent_for: float | None = None  # the time for which the unanswered poll was planned
        self._acknowledged = 0  # when that poll was sent
        self._overdue: deque[float] = deque()
        self._connection: Connection | None = None

    async def connect(self, port: int) -> None:
        """Connect to the service."""
        self._loop = asyncio.get_running_loop()
        self._connection = await connect(port, self._received)

    @property
    def waiting(self) -> bool:
        """Whether a response is missing that may still come."""
        return self._sent_for is not None

    def poll(self, planned: float) -> None:
        """Poll now, or as soon as the response to the poll before is there."""
        if self._sent_for is None:
            self._send(planned)
        else:
            self._overdue.append(planned)

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()

    def _send(self, planned: float) -> None:
        if self._connection is None:
            return  # lost: what was planned stays unsent
        self._sent_for = planned
        self._acknowledged = self._job.acknowledged
        self.record.sent += 1
        self._connection.send(self._request)

    def _received(self, response: Response) -> None:
        planned, self._sent_for = self._sent_for, None
        status = response.status
        if response.lost:
            self._connection = None
            self.record.errors["the connection was lost"] += 1
            return
        if planned is None:
            self.record.errors["a response that nobody has asked for"] += 1
        elif status in {_OK, _NOT_MODIFIED}:
            self._note(self._loop.time() - planned, response)
        else:
            self.record.errors[f"status {status}"] += 1
        if self._overdue:
            self._send(self._overdue.popleft())

    def _note(self, seconds: float, response: Response) -> None:
        record, version, seen = self.record, response.version, self._seen
        source = record.source(response.cache_status)
        record.backwards += version < seen
        record.outdated += version < self._acknowledged
        if source is Source.BYPASS or version > self._acknowledged:
            kind = Kind.CHANGING
        elif version > seen and seen:
            kind = Kind.FIRST
        elif response.status == _NOT_MODIFIED:
            kind = Kind.UNCHANGED
        else:
            kind = Kind.HIT if source is Source.HIT else Kind.OTHER
        record.seconds[kind].append(seconds)
        if version > seen:
            self._seen = version
            if self._conditional:
                self._request = get(f"/api/v2/jobs/{self._job.id}", version)


class Worker:
    """Reports progress of some jobs on one connection, one report after the other.

    Attributes:
        seconds: how long each report took from its planned time, if it was acknowledged.
        errors: a description of each that was not.
    """

    def __init__(self) -> None:
        self.start_counting()
        self._overdue: deque[tuple[PolledJob, float]] = deque()
        self._reporting: tuple[PolledJob, float] | None = None
        self._connection: Connection | None = None

    async def connect(self, port: int) -> None:
        """Connect to the service."""
        self._loop = asyncio.get_running_loop()
        self._connection = await connect(port, self._received)

    @property
    def waiting(self) -> bool:
        """Whether a response is missing that may still come."""
        return self._reporting is not None

    def start_counting(self) -> None:
        """Begin to count at 0."""
        self.seconds = array("d")
        self.errors: list[str] = []

    def report(self, job: PolledJob, planned: float) -> None:
        """Report progress now, or as soon as the report before is acknowledged."""
        if self._reporting is None:
            self._send(job, planned)
        else:
            self._overdue.append((job, planned))

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()

    def _send(self, job: PolledJob, planned: float) -> None:
        if self._connection is None:
            return
        self._reporting = job, planned
        job.percent = job.percent % 99 + 1
        body = json.dumps({"percent": job.percent}).encode()
        self._connection.send(post(f"/api/v2/jobs/{job.id}/progress", body))

    def _received(self, response: Response) -> None:
        reporting, self._reporting = self._reporting, None
        if response.lost:
            self._connection = None
        if response.status != _OK or reporting is None:
            self.errors.append(f"an update was answered with status {response.status}")
        else:
            job, planned = reporting
            self.seconds.append(self._loop.time() - planned)
            job.acknowledged = max(job.acknowledged, response.version)
        if self._overdue:
            self._send(*self._overdue.popleft())

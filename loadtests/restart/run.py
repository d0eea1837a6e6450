"""Restarts processes in turn, while clients wait for jobs and workers report.

Jobs end while a process is away, or after the last one is back: a quarter of the jobs each. The
balancer decides which process a client waits at.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import httpx

from jobcache.client import AsyncJobs, ClientError, Job
from loadtests.restart.balancer import HOST, Balancer
from loadtests.restart.node import Node

if TYPE_CHECKING:
    from collections.abc import Mapping

_BETWEEN_REPORTS = 0.1  # seconds
_WITHIN = 60.0  # seconds for a client to see the end of its job, all restarts included
_UNNOTICED = 0.2  # seconds
_TRY_AGAIN = 0.05  # seconds, for a worker: it has no rules of its own
_CONFLICT = 409
_OK = 200


@dataclass
class Report:
    """The result of a rolling restart.

    Attributes:
        endings: of each process that was ended: its status (None: killed), and the seconds.
        clients: how many waited.
        failures: what went wrong with them, in words.
        versions: versions they were given.
        requests: what they sent.
        reconnects: requests that were not answered, or were to be repeated.
        connections: those the balancer saw, workers' included.
        retried: what workers had to send again, for there was no answer.
        delays: seconds from the commit of a job's end until a client was told of it.
    """

    endings: list[tuple[int | None, float]] = field(default_factory=list)
    clients: int = 0
    failures: list[str] = field(default_factory=list)
    versions: int = 0
    requests: int = 0
    reconnects: int = 0
    connections: int = 0
    retried: int = 0
    delays: list[float] = field(default_factory=list)


class _Work:
    """One external job, with its worker and its waiting clients."""

    def __init__(self, url: str, job_id: int, report: Report) -> None:
        self._url = url
        self._path = f"/api/v2/jobs/{job_id}"
        self._report = report
        self.job_id = job_id
        self.finish = asyncio.Event()
        self.version = 0

    async def work(self) -> None:
        """Report progress until it is time to finish."""
        async with (
            asyncio.timeout(_WITHIN),
            httpx.AsyncClient(base_url=self._url, timeout=10) as http,
        ):
            step = 0
            while not self.finish.is_set():
                step += 1
                await self._post(http, "progress", {"percent": min(99.0, step / 10)})
                await asyncio.sleep(_BETWEEN_REPORTS)
            await self._post(http, "complete", {"video_url": "https://videos.example/1"})
            self.version = (await AsyncJobs("", http=http).get(self.job_id)).version

    async def _post(self, http: httpx.AsyncClient, step: str, body: Mapping[str, object]) -> None:
        while True:
            try:
                answer = await http.post(f"{self._path}/{step}", json=body)
            except httpx.TransportError:
                self._report.retried += 1
                await asyncio.sleep(_TRY_AGAIN)
                continue
            # 409: it had been done, but the answer was lost.
            if answer.status_code not in {_OK, _CONFLICT}:
                self._report.failures.append(f"{step} was answered {answer.status_code}")
            return

    async def wait(self) -> None:
        """Wait for the end of the job, and record everything that is wrong."""
        versions: list[int] = []

        def note(job: Job) -> None:
            versions.append(job.version)

        report = self._report
        async with AsyncJobs(self._url) as jobs:
            try:
                job = await jobs.wait_for(self.job_id, on_progress=note, timeout=_WITHIN)
            except ClientError as error:
                report.failures.append(f"job {self.job_id}: {error!r}")
            else:
                ended = datetime.fromisoformat(job.document["updated_at"])
                report.delays.append((datetime.now(UTC) - ended).total_seconds())
                if (job.status, job.version) != ("completed", versions[-1]):
                    report.failures.append(f"job {self.job_id} ended {job.status}")
                if versions != sorted(set(versions)):
                    report.failures.append(f"job {self.job_id}: versions went {versions}")
            report.versions += jobs.counts.updates
            report.requests += jobs.counts.requests
            report.reconnects += jobs.counts.failed


async def run(
    settings: Mapping[str, str], *, processes: int = 3, jobs: int = 12, waiting: int = 3
) -> Report:
    """Run the rolling restart.

    Args:
        settings: environment variables of the service: backend, database, Redis.
        processes: how many share them, and are restarted.
        jobs: how many jobs are being worked on.
        waiting: how many clients wait for each.

    Raises:
        NodeFailed: a process did not start, or ended before it was told to.
    """
    report = Report(clients=jobs * waiting)
    async with AsyncExitStack() as stack:
        nodes = [Node(settings) for _ in range(processes)]
        for node in nodes:
            stack.callback(node.close)
            node.start()
        for node in nodes:
            await node.wait_until_ready()
        balancer = await stack.enter_async_context(Balancer())
        balancer.ports = [node.port for node in nodes]
        url = f"http://{HOST}:{balancer.port}"
        works = [_Work(url, job_id, report) for job_id in await _rendering(url, jobs)]
        async with asyncio.TaskGroup() as tasks:
            for work in works:
                tasks.create_task(work.work())
                for _ in range(waiting):
                    tasks.create_task(work.wait())
            await _restart(nodes, balancer, works, report)
        report.connections = balancer.connections
        for work in works:
            if work.version == 0:
                report.failures.append(f"job {work.job_id} has not been finished")
    return report


async def _restart(
    nodes: list[Node], balancer: Balancer, works: list[_Work], report: Report
) -> None:
    for number, node in enumerate(nodes):
        ending = asyncio.create_task(node.end())
        # As it mostly is: the balancer notices late, and until then sends clients to a closed door.
        await asyncio.sleep(_UNNOTICED)
        balancer.ports.remove(node.port)
        for work in works[number :: len(nodes) + 1]:
            work.finish.set()
        report.endings.append(await ending)
        node.start()
        await node.wait_until_ready()
        balancer.ports.append(node.port)
    for work in works:
        work.finish.set()


async def _rendering(url: str, number: int) -> list[int]:
    """Return jobs with an external renderer that are being rendered."""

    async def make(jobs: AsyncJobs, client: int) -> int:
        job = await jobs.create(f"client-{client}", "A fox crosses a river.", renderer="external")
        await jobs.wait_for(job.id, until={"storyboard_ready"}, timeout=30)
        await jobs.approve(job.id)
        await jobs.render(job.id)
        return job.id

    async with AsyncJobs(url) as jobs:
        return list(await asyncio.gather(*(make(jobs, client) for client in range(number))))

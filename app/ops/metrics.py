"""The page that Prometheus reads, made of the reports of all processes."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from prometheus_client import generate_latest

from app.db.errors import DatabaseUnavailable
from app.ops.measuring import PROCESS_UP, SERVICE_METRICS, UNFINISHED_JOBS, WAITING_JOBS
from jobcache.observability.prometheus import family

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from app.jobs.storage import UnfinishedJobs
    from app.ops.process_reports import Reports
    from jobcache.observability.prometheus import Family

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
PREFIX, PROCESS_PREFIX = "jobcache_", "jobcache_process_"
"""The beginnings of the names of sums, and of the same metric of each process."""
_COUNT_EVERY = 10.0  # seconds


def page(reports: Reports, unfinished: UnfinishedJobs | None) -> bytes:
    """Return the metrics in the text format of Prometheus.

    Args:
        reports: of all processes.
        unfinished: the unfinished jobs; None if nobody knows.
    """
    return generate_latest(_Collector(reports, unfinished))


class _Collector:
    """The metrics at one moment, as prometheus-client reads them."""

    def __init__(self, reports: Reports, unfinished: UnfinishedJobs | None) -> None:
        self._reports = reports
        self._unfinished = unfinished

    def collect(self) -> Iterator[Family]:
        """Yield each metric: the sum, and for counters and gauges that of each process."""
        total = self._reports.total
        processes = [
            ({"process": str(each.number)}, each.measured) for each in self._reports.answered
        ]
        for metric in SERVICE_METRICS:
            if metric.name not in total:
                continue
            value = total[metric.name]
            if metric.shared:
                value = max(each.get(metric.name, 0) for _, each in processes)
            yield family(metric, [({}, value)])
            if metric.kind != "histogram":
                yield family(
                    metric,
                    [
                        (labels, measured[metric.name])
                        for labels, measured in processes
                        if metric.name in measured
                    ],
                    PROCESS_PREFIX + metric.name.removeprefix(PREFIX),
                )
        up = [({"process": str(each.number)}, 1) for each in self._reports.answered]
        up += [({"process": str(each.number)}, 0) for each in self._reports.unresponsive]
        yield family(PROCESS_UP, up)
        if self._unfinished is not None:
            yield family(UNFINISHED_JOBS, [({}, self._unfinished.by_status)])
            yield family(WAITING_JOBS, [({}, self._unfinished.waiting)])


class JobCounter:
    """Counts the unfinished jobs, at most once in an interval, however many requests ask.

    Args:
        count: counts the unfinished jobs.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        count: Callable[[], Awaitable[UnfinishedJobs]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._count = count
        self._clock = clock
        self._counted_at: float | None = None
        self._counted: UnfinishedJobs | None = None
        self._counting = asyncio.Lock()

    async def unfinished(self) -> UnfinishedJobs | None:
        """Return the unfinished jobs; None while the database is away."""
        async with self._counting:
            now = self._clock()
            if self._counted_at is None or now - self._counted_at >= _COUNT_EVERY:
                self._counted_at = now
                try:
                    self._counted = await self._count()
                except DatabaseUnavailable:
                    self._counted = None
        return self._counted

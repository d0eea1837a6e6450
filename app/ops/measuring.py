"""What the service measures besides the cache: statements, held requests, jobs, processor time."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING

from app.jobs.states import Status
from jobcache.observability.metrics import CACHE_METRICS, Metric

if TYPE_CHECKING:
    from app.db.database import Database
    from app.jobs.storage import Job
    from jobcache import JobCache
    from jobcache.http.held_requests import HeldRequests
    from jobcache.observability.metrics import Measurements

SERVICE_METRICS = (
    *CACHE_METRICS,
    Metric(
        "jobcache_held_requests",
        "gauge",
        "Requests that are held open: long polls and event streams.",
        ("kind",),
    ),
    Metric("jobcache_held_requests_limit", "gauge", "The most requests that are held open."),
    Metric(
        "jobcache_held_requests_refused_total",
        "counter",
        "Requests that were not held, because they would have been too many, or too many of their"
        " caller.",
        ("kind",),
    ),
    Metric(
        "jobcache_database_statements_total",
        "counter",
        "Statements that were sent to the database.",
        ("verb",),
    ),
    Metric(
        "jobcache_database_purposes_total",
        "counter",
        "The same statements by what they were for; load: of the cache.",
        ("purpose",),
    ),
    Metric(
        "jobcache_job_changes_total",
        "counter",
        "Committed changes of jobs, by the status that the job has since. Those made by Celery"
        " workers are not counted.",
        ("status",),
    ),
    Metric("jobcache_cpu_seconds_total", "counter", "Processor time."),
)
"""What each process of the service measures."""
UNFINISHED_JOBS = Metric(
    "jobcache_unfinished_jobs",
    "gauge",
    "Unfinished jobs in the database; counted at most every ten seconds.",
    ("status",),
)
WAITING_JOBS = Metric(
    "jobcache_waiting_jobs",
    "gauge",
    "Of these, jobs that wait for a free renderer of a process or a worker.",
)
PROCESS_UP = Metric(
    "jobcache_process_up", "gauge", "1 for a process that gives its report, 0 for one that hangs."
)


class Measuring:
    """Measures this process.

    Args:
        cache: the cache.
        database: the database.
        held: the held requests.
    """

    def __init__(self, cache: JobCache, database: Database, held: HeldRequests) -> None:
        self._cache = cache
        self._database = database
        self._held = held
        self._changes: Counter[Status] = Counter()

    def count_change(self, job: Job) -> None:
        """Count a committed change of a job."""
        self._changes[job.status] += 1

    def measure(self) -> Measurements:
        """Return measurements of `SERVICE_METRICS`."""
        held = self._held.counts()
        limit = held.pop("most")
        return {
            **self._cache.measure(),
            "jobcache_held_requests": held,
            "jobcache_held_requests_limit": limit,
            "jobcache_held_requests_refused_total": self._held.refused(),
            "jobcache_database_statements_total": dict(self._database.statements),
            "jobcache_database_purposes_total": dict(self._database.purposes),
            "jobcache_job_changes_total": {each.value: self._changes[each] for each in Status},
            "jobcache_cpu_seconds_total": time.process_time(),
        }

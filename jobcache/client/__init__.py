"""A client of the service for whoever waits for a job: asynchronous and synchronous, over httpx.

    async with AsyncJobs("https://videos.example", key="...") as jobs:
        job = await jobs.wait_for(7, on_progress=print)

Install it with `jobcache[client]`. What to ask and when is decided in `rules`, which does no I/O.
"""

from importlib.util import find_spec

if find_spec("httpx") is None:
    raise ImportError("jobcache.client needs httpx; pip install 'jobcache[client]'")

from jobcache.client.aio import AsyncJobs
from jobcache.client.core.errors import (
    Conflict,
    Forbidden,
    Invalid,
    JobsError,
    NotFound,
    Refused,
    Unauthorized,
    Unavailable,
    WaitTimeout,
)
from jobcache.client.core.rules import Counts
from jobcache.client.jobs import Job
from jobcache.client.sync import Jobs

__all__ = [
    "AsyncJobs",
    "Conflict",
    "Counts",
    "Forbidden",
    "Invalid",
    "Job",
    "Jobs",
    "JobsError",
    "NotFound",
    "Refused",
    "Unauthorized",
    "Unavailable",
    "WaitTimeout",
]

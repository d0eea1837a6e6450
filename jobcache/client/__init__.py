"""Clients that create jobs and wait for them: asynchronous and synchronous, over httpx.

    async with AsyncJobs("https://videos.example", key="...") as jobs:
        job = await jobs.wait_for(7, on_progress=print)

Install them with `jobcache[client]`. `core` decides what to send and when, without I/O.
"""

from importlib.util import find_spec

if find_spec("httpx") is None:
    raise ImportError("jobcache.client needs httpx; pip install 'jobcache[client]'")

from jobcache.client.aio import AsyncJobs
from jobcache.client.core.errors import (
    ClientError,
    Conflict,
    Forbidden,
    Invalid,
    NotFound,
    Refused,
    Unauthorized,
    Unavailable,
)
from jobcache.client.core.messages import Counts
from jobcache.client.jobs import Job, WaitTimeout
from jobcache.client.sync import Jobs

__all__ = [
    "AsyncJobs",
    "ClientError",
    "Conflict",
    "Counts",
    "Forbidden",
    "Invalid",
    "Job",
    "Jobs",
    "NotFound",
    "Refused",
    "Unauthorized",
    "Unavailable",
    "WaitTimeout",
]

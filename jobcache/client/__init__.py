"""Clients that wait: for the jobs of the service, and for any URL. Over httpx, asynchronous or not.

    async with AsyncJobs("https://videos.example", key="...") as jobs:
        job = await jobs.wait_for(7, on_progress=print)

    async with AsyncPoller() as poller:
        export = await poller.wait_for("https://any.example/exports/7", on_progress=print)

`Jobs` and `Poller` are the same without an event loop. Install them with
`jobcache[client]`. `core` decides what to send and when, without I/O.
"""

from importlib.util import find_spec

if find_spec("httpx") is None:
    raise ImportError("jobcache.client needs httpx; pip install 'jobcache[client]'")

from jobcache.client.aio import AsyncJobs
from jobcache.client.async_poller import AsyncPoller
from jobcache.client.core.errors import (
    AllFailed,
    BadLocation,
    BodyTooLarge,
    ClientError,
    Conflict,
    Forbidden,
    Gone,
    Invalid,
    NotFound,
    Refused,
    Unauthorized,
    Unavailable,
    WaitTimeout,
)
from jobcache.client.core.messages import Completed, Counts
from jobcache.client.core.snapshots import Snapshot
from jobcache.client.jobs import Job
from jobcache.client.progress import ProgressBars
from jobcache.client.sync import Jobs
from jobcache.client.sync_poller import Poller

__all__ = [
    "AllFailed",
    "AsyncJobs",
    "AsyncPoller",
    "BadLocation",
    "BodyTooLarge",
    "ClientError",
    "Completed",
    "Conflict",
    "Counts",
    "Forbidden",
    "Gone",
    "Invalid",
    "Job",
    "Jobs",
    "NotFound",
    "Poller",
    "ProgressBars",
    "Refused",
    "Snapshot",
    "Unauthorized",
    "Unavailable",
    "WaitTimeout",
]

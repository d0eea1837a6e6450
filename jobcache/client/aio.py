"""The asynchronous client: the rules, run by asyncio over httpx."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Self, Unpack

from jobcache.client import _httpx, jobs
from jobcache.client._async_runner import AsyncRunner
from jobcache.client._part_file import PartFile
from jobcache.client.batches import wait_for_all
from jobcache.client.core.downloads import Download, download
from jobcache.client.core.messages import CONNECTIONS
from jobcache.client.core.rules import Rules

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterable
    from pathlib import Path

    import httpx

    from jobcache.client.batches import BatchOptions
    from jobcache.client.core.messages import Completed, Counts
    from jobcache.client.jobs import Job


class AsyncJobs:
    """A client of one service, for any number of tasks of one event loop.

    Args:
        address: of the service, such as `https://videos.example`; may be empty if `http` has a
            `base_url`.
        key: an API key; None if the service needs none.
        http: sends the requests, and stays open when this client is closed. Each job that is
            waited for takes one of its connections, so raise its limit (100 by default).
        rules: with another clock or random numbers, for tests.
        sleep: for tests, too.
    """

    def __init__(
        self,
        address: str,
        key: str | None = None,
        *,
        http: httpx.AsyncClient | None = None,
        rules: Rules | None = None,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        headers = _httpx.bearer(key)
        self._runner = AsyncRunner(http, address.rstrip("/"), headers, sleep)
        self._rules = Rules() if rules is None else rules

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._runner.aclose()

    @property
    def counts(self) -> Counts:
        """What this client has done so far."""
        return self._rules.counts

    async def wait_for(
        self,
        job_id: int,
        *,
        on_progress: Callable[[Job], object] | None = None,
        until: Collection[str] = (),
        timeout: float | None = None,  # noqa: ASYNC109 - requests get what is left of it
        wait: int = 25,
    ) -> Job:
        """Wait until a job is terminal, through lost connections and restarts of the service.

        Args:
            job_id: the number of the job.
            on_progress: called with the first version seen and every newer one, in order, each
                once; versions that come between two responses are left out. It may be
                asynchronous, and is awaited before the next request. Its exceptions end the wait.
            until: statuses that end the wait, too, such as `storyboard_ready`.
            timeout: seconds for all of it, or None for no limit.
            wait: seconds for which the service is asked to hold each request, up to 60; 0 does not
                ask for it. Choose less than the idle limit of every proxy before the service.

        Returns:
            The last version of the job.

        Raises:
            Refused: the service refuses to show this job: `Unauthorized`, `NotFound` and so on.
            WaitTimeout: the time is over, or will be before the service may be polled again.
            ValueError: an argument is out of range.
        """
        steps = jobs.wait_for(self._rules, job_id, until=until, timeout=timeout, wait=wait)
        return await self._runner.run(steps, on_progress)

    def as_completed(
        self,
        job_ids: Iterable[int],
        *,
        until: Collection[str] = (),
        on_progress: Callable[[Job], object] | None = None,
        timeout: float | None = None,
        wait: int = 25,
        connections: int = CONNECTIONS,
    ) -> AsyncGenerator[Completed[Job]]:
        """Wait for many jobs, and yield each as it ends, a failed wait too.

        If there is a connection for each job, each is followed as by `wait_for`. More jobs are
        requested in batches of a hundred over one connection, every two seconds.

        Args:
            job_ids: the numbers of the jobs.
            until: statuses that end the wait for a job, too.
            on_progress: called with each newer version of each job, as by `wait_for`.
            timeout: seconds for all of them, or None for no limit.
            wait: seconds for which the service is asked to hold a request for one job.
            connections: the most requests at a time.

        Yields:
            `Completed`, whose `result()` returns the last version of the job or raises the error.

        Raises:
            ValueError: an argument is out of range.
        """
        scheduler = wait_for_all(
            self._rules,
            list(job_ids),
            until=until,
            timeout=timeout,
            wait=wait,
            connections=connections,
        )
        return self._runner.as_completed(scheduler, on_progress)

    async def wait_all(self, job_ids: Iterable[int], **options: Unpack[BatchOptions]) -> list[Job]:
        """Wait until all jobs have ended; return their last versions in the given order.

        Takes the arguments of `as_completed`. The first error of a wait ends the others and is
        raised: use `as_completed` to get the results of the others.
        """
        return await self._runner.collect(self.as_completed(job_ids, **options))

    async def wait_any(self, job_ids: Iterable[int], **options: Unpack[BatchOptions]) -> Job:
        """Wait until one job has ended; return its last version, and leave the others.

        Takes the arguments of `as_completed`. Waits that fail do not count while another goes on.

        Raises:
            WaitTimeout: the time is over.
            AllFailed: all waits have failed; if there was only one, its error.
        """
        return await self._runner.first(self.as_completed(job_ids, **options))

    async def get(self, job_id: int) -> Job:
        """Return the current version of a job.

        Raises:
            Refused: the service refuses to show this job.
            Unavailable: temporary failures went on for half a minute.
        """
        return await self._runner.run(jobs.get(self._rules, job_id))

    async def create(
        self,
        client_id: str,
        prompt: str,
        *,
        idempotency_key: str | None = None,
        **fields: Unpack[jobs.NewJob],
    ) -> Job:
        """Create a job. It is retried as `get` is: its key makes one job of all attempts.

        Args:
            client_id: the owner.
            prompt: the text of the video.
            idempotency_key: the same key returns the job of an earlier call; None makes a new key.
            fields: optional ones, see `NewJob`.
        """
        return await self._runner.run(
            jobs.create(self._rules, client_id, prompt, idempotency_key, **fields)
        )

    async def approve(self, job_id: int) -> Job:
        """Approve the storyboard. Sent once; after `Unavailable` you may call it again."""
        return await self._runner.run(jobs.command(self._rules, job_id, "approve"))

    async def render(self, job_id: int) -> Job:
        """Start rendering. Sent once, as `approve`."""
        return await self._runner.run(jobs.command(self._rules, job_id, "render"))

    async def cancel(self, job_id: int) -> Job:
        """Cancel the job, unless it is completed or failed. Sent once, as `approve`."""
        return await self._runner.run(jobs.command(self._rules, job_id, "cancel"))

    async def storyboard(self, job_id: int) -> dict[str, Any]:
        """Return the storyboard of a job.

        Raises:
            Conflict: there is none yet; wait for `storyboard_ready`.
        """
        return await self._runner.run(jobs.storyboard(self._rules, job_id))

    async def download_video(
        self,
        job_id: int,
        path: str | os.PathLike[str],
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - requests get what is left of it
    ) -> Path:
        """Download the video of a completed job.

        A lost connection loses nothing: the rest is requested by `Range`, for the same file. What
        is there is kept in `<path>.part`, so that a later call goes on from it. One call at a time
        may download to a path.

        Args:
            job_id: the number of the job.
            path: where to write the video. It appears there complete, or not at all.
            timeout: seconds for all of it, or None for no limit.

        Returns:
            The path.

        Raises:
            Conflict: there is no video, or it is not kept by this service: see `Job.video_url`.
            Unavailable: nothing came for half a minute, or the time is over.
            OSError: the file cannot be written.
        """
        with PartFile(path) as part:
            steps = download(self._rules, jobs.video_path(job_id), Download(part), timeout)
            await self._runner.run(steps)
            return await asyncio.to_thread(part.finish)

    async def list_jobs(
        self, *, client_id: str | None = None, status: str | None = None, page_size: int = 100
    ) -> AsyncGenerator[Job]:
        """Yield jobs, newest first; pages are requested as they are needed.

        Args:
            client_id: of this owner only; None lists the jobs of all whom the key may see.
            status: with this status only.
            page_size: jobs in one request, 1 to 100.
        """
        cursor = None
        while True:
            found = await self._runner.run(
                jobs.page(
                    self._rules, client_id=client_id, status=status, size=page_size, cursor=cursor
                )
            )
            for job in found.jobs:
                yield job
            cursor = found.cursor
            if cursor is None:
                return

    async def statistics(self) -> dict[str, Any]:
        """Return the statistics of the cache: the sums of all processes, and each of them.

        Raises:
            Forbidden: this needs the key of an operator.
        """
        return await self._runner.run(jobs.statistics(self._rules))

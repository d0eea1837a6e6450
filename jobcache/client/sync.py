"""The synchronous client: the rules, run by threads over httpx."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Self, Unpack

from jobcache.client import _httpx, jobs
from jobcache.client._part_file import PartFile
from jobcache.client._sync_runner import SyncRunner
from jobcache.client.batches import wait_for_all
from jobcache.client.core.downloads import Download, download
from jobcache.client.core.messages import CONNECTIONS
from jobcache.client.core.rules import Rules

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Collection, Generator, Iterable
    from pathlib import Path

    import httpx

    from jobcache.client.batches import BatchOptions
    from jobcache.client.core.messages import Completed, Counts
    from jobcache.client.jobs import Job


class Jobs:
    """A client of one service, for any number of threads. `AsyncJobs` explains the methods.

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
        http: httpx.Client | None = None,
        rules: Rules | None = None,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        headers = _httpx.bearer(key)
        self._runner = SyncRunner(http, address.rstrip("/"), headers, sleep)
        self._rules = Rules() if rules is None else rules

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._runner.close()

    @property
    def counts(self) -> Counts:
        """What this client has done so far."""
        return self._rules.counts

    def wait_for(
        self,
        job_id: int,
        *,
        on_progress: Callable[[Job], object] | None = None,
        until: Collection[str] = (),
        timeout: float | None = None,
        wait: int = 25,
    ) -> Job:
        """Wait until a job is terminal, as `AsyncJobs.wait_for` does.

        A response that comes in pieces can exceed `timeout` by the time of its last piece.
        """
        steps = jobs.wait_for(self._rules, job_id, until=until, timeout=timeout, wait=wait)
        return self._runner.run(steps, on_progress)

    def as_completed(
        self,
        job_ids: Iterable[int],
        *,
        until: Collection[str] = (),
        on_progress: Callable[[Job], object] | None = None,
        timeout: float | None = None,
        wait: int = 25,
        connections: int = CONNECTIONS,
    ) -> Generator[Completed[Job]]:
        """Wait for many jobs, and yield each as it ends, as `AsyncJobs.as_completed` does."""
        scheduler = wait_for_all(
            self._rules,
            list(job_ids),
            until=until,
            timeout=timeout,
            wait=wait,
            connections=connections,
        )
        return self._runner.as_completed(scheduler, on_progress)

    def wait_all(self, job_ids: Iterable[int], **options: Unpack[BatchOptions]) -> list[Job]:
        """Wait until all jobs have ended, as `AsyncJobs.wait_all` does."""
        return self._runner.collect(self.as_completed(job_ids, **options))

    def wait_any(self, job_ids: Iterable[int], **options: Unpack[BatchOptions]) -> Job:
        """Wait until one job has ended, as `AsyncJobs.wait_any` does."""
        return self._runner.first(self.as_completed(job_ids, **options))

    def get(self, job_id: int) -> Job:
        """Return the current version of a job."""
        return self._runner.run(jobs.get(self._rules, job_id))

    def create(
        self,
        client_id: str,
        prompt: str,
        *,
        idempotency_key: str | None = None,
        **fields: Unpack[jobs.NewJob],
    ) -> Job:
        """Create a job."""
        return self._runner.run(
            jobs.create(self._rules, client_id, prompt, idempotency_key, **fields)
        )

    def approve(self, job_id: int) -> Job:
        """Approve the storyboard."""
        return self._runner.run(jobs.command(self._rules, job_id, "approve"))

    def render(self, job_id: int) -> Job:
        """Start rendering."""
        return self._runner.run(jobs.command(self._rules, job_id, "render"))

    def cancel(self, job_id: int) -> Job:
        """Cancel the job, unless it is completed or failed."""
        return self._runner.run(jobs.command(self._rules, job_id, "cancel"))

    def storyboard(self, job_id: int) -> dict[str, Any]:
        """Return the storyboard of a job."""
        return self._runner.run(jobs.storyboard(self._rules, job_id))

    def download_video(
        self,
        job_id: int,
        path: str | os.PathLike[str],
        *,
        timeout: float | None = None,
    ) -> Path:
        """Download the video of a completed job, as `AsyncJobs.download_video` does."""
        with PartFile(path) as part:
            steps = download(self._rules, jobs.video_path(job_id), Download(part), timeout)
            self._runner.run(steps)
            return part.finish()

    def list_jobs(
        self, *, client_id: str | None = None, status: str | None = None, page_size: int = 100
    ) -> Generator[Job]:
        """Yield jobs, newest first, as `AsyncJobs.list_jobs` does."""
        cursor = None
        while True:
            found = self._runner.run(
                jobs.page(
                    self._rules, client_id=client_id, status=status, size=page_size, cursor=cursor
                )
            )
            yield from found.jobs
            cursor = found.cursor
            if cursor is None:
                return

    def statistics(self) -> dict[str, Any]:
        """Return the statistics of the cache."""
        return self._runner.run(jobs.statistics(self._rules))

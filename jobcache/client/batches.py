"""Waits for many jobs of the service: each alone while there are connections, or in batches."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

from jobcache.client.core.errors import ClientError, NotFound, Unavailable, WaitTimeout
from jobcache.client.core.messages import Completed, Sleep, Update
from jobcache.client.core.scheduler import Scheduler, completing
from jobcache.client.jobs import JOBS, Job, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from jobcache.client.core.messages import Response, Steps
    from jobcache.client.core.rules import Rules

MOST_IDS = 100
"""The most ids that the service accepts in one request."""


class BatchOptions(TypedDict, total=False):
    """Arguments of waits for many jobs, as `AsyncJobs.as_completed` describes them."""

    until: Collection[str]
    on_progress: Callable[[Job], object] | None
    timeout: float | None
    wait: int
    connections: int


def wait_for_all(
    rules: Rules,
    job_ids: Sequence[int],
    *,
    until: Collection[str] = (),
    timeout: float | None = None,
    wait: int = 25,
    connections: int,
) -> Scheduler[Job]:
    """Wait for many jobs.

    If there is a connection for each job, each is followed alone, and its requests are held. More
    jobs are requested in batches, one batch at a time, every two seconds.

    Raises:
        ValueError: an argument is out of range.
    """
    waits = [wait_for(rules, job_id, until=until, timeout=timeout, wait=wait) for job_id in job_ids]
    if len(job_ids) <= connections:
        completed: list[Steps[Any]] = [
            completing(number, job_id, steps)
            for number, (job_id, steps) in enumerate(zip(job_ids, waits, strict=True))
        ]
    else:
        completed = [_follow(rules, _Batches(job_ids, until), timeout)]
    return Scheduler(completed, rules.clock, connections)


@dataclass(frozen=True, slots=True)
class _Found:
    """The response to one batch."""

    jobs: list[Job]
    missing: list[int]
    headers: Mapping[str, str]


class _Batches:
    """The jobs of a wait, each with its last state."""

    def __init__(self, job_ids: Sequence[int], until: Collection[str]) -> None:
        self._statuses = frozenset(until)
        self._seen: dict[int, Job] = {}
        self._numbers: dict[int, list[int]] = {}
        for number, job_id in enumerate(job_ids):
            self._numbers.setdefault(job_id, []).append(number)

    def batches(self) -> list[list[int]]:
        """Return the ids of unfinished jobs, as many in each list as one request may have."""
        ids = list(self._numbers)
        return [ids[start : start + MOST_IDS] for start in range(0, len(ids), MOST_IDS)]

    def take(self, found: _Found) -> Iterator[Update[Job] | Completed[Job]]:
        """Take a response; yield newer jobs, and the ends of waits."""
        for job in found.jobs:
            seen = self._seen.get(job.id)
            if job.id not in self._numbers or (seen is not None and job.version <= seen.version):
                continue
            self._seen[job.id] = job
            yield Update(job)
            if job.terminal or job.status in self._statuses:
                yield from self._end(job.id, job, None)
        for job_id in found.missing:
            problem = {"title": "Not Found", "status": 404, "detail": f"There is no job {job_id}."}
            yield from self._end(job_id, None, NotFound(404, problem))

    def refuse(self, ids: Sequence[int], error: Exception) -> Iterator[Completed[Job]]:
        """Yield the ends of the waits for some jobs, because of an error."""
        for job_id in ids:
            yield from self._end(job_id, None, error)

    def expire(self, cause: BaseException | None) -> Iterator[Completed[Job]]:
        """Yield the ends of all waits, because the time is over."""
        for job_id in list(self._numbers):
            seen = self._seen.get(job_id)
            error = WaitTimeout(f"job {job_id}", seen, None if seen is None else seen.status)
            error.__cause__ = cause
            yield from self._end(job_id, None, error)

    def _end(
        self, job_id: int, job: Job | None, error: Exception | None
    ) -> Iterator[Completed[Job]]:
        for number in self._numbers.pop(job_id, []):
            yield Completed(number, job_id, job, error)


def _follow(rules: Rules, waiting: _Batches, timeout: float | None) -> Steps[Any]:
    deadline = rules.deadline(timeout)
    while batches := waiting.batches():
        headers: Mapping[str, str] = {}
        for ids in batches:
            path = f"{JOBS}?ids={','.join(map(str, ids))}"
            left = deadline - rules.clock()
            if left <= 0:
                yield from waiting.expire(None)
                return
            try:
                found = yield from rules.call("GET", path, _parse, repeatable=True, timeout=left)
            except Unavailable as error:  # for as long as there was time
                yield from waiting.expire(error.__cause__)
                return
            except ClientError as error:
                yield from waiting.refuse(ids, error)
            else:
                headers = found.headers
                yield from waiting.take(found)
        pause = rules.pause(headers)
        if waiting.batches():
            if rules.clock() + pause >= deadline:
                yield from waiting.expire(None)
                return
            yield Sleep(pause)


def _parse(response: Response) -> _Found:
    document = json.loads(response.body)
    match document:
        case {"items": list(items), "missing": list(missing)}:
            jobs = [Job.of(item, None) for item in items]
            return _Found(
                jobs, [each for each in missing if isinstance(each, int)], response.headers
            )
    raise ValueError("the response is not a batch of jobs")

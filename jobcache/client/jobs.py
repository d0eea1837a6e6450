"""Jobs of the service: their document, their paths, and the requests about them."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, TypedDict, Unpack
from urllib.parse import urlencode

from jobcache.client.core.errors import Unavailable, WaitTimeout
from jobcache.client.core.messages import LARGEST_BODY
from jobcache.client.core.responses import Older, parse_retry_after, read
from jobcache.client.core.rules import JSON, Reading

if TYPE_CHECKING:
    from collections.abc import Collection

    from jobcache.client.core.messages import Response, Steps
    from jobcache.client.core.rules import Rules

JOBS = "/api/v2/jobs"
"""The path of all jobs."""


@dataclass(frozen=True, slots=True)
class Job:
    """One version of a job.

    Attributes:
        id: its number.
        version: grows with every change.
        status: such as `rendering`.
        terminal: True if the job will not change any more.
        document: the whole document, these fields included.
        etag: the entity tag of the response; None if it had none.
    """

    id: int
    version: int
    status: str
    terminal: bool
    document: dict[str, Any]
    etag: str | None

    @property
    def percent(self) -> float:
        """The progress, 0 to 100."""
        return float(self.document["progress"]["percent"])

    @property
    def error(self) -> str | None:
        """Why the job failed; None if it did not."""
        error: str | None = self.document.get("error")
        return error

    @property
    def video_url(self) -> str | None:
        """The URL of the video; None until there is one."""
        url: str | None = self.document.get("video_url")
        return url

    @classmethod
    def parse(cls, body: bytes, etag: str | None) -> Self:
        """Read a document.

        Raises:
            ValueError: it is not a job.
        """
        return cls.of(json.loads(body), etag)

    @classmethod
    def of(cls, document: Any, etag: str | None) -> Self:  # noqa: ANN401 - JSON
        """Check a document that has been parsed.

        Raises:
            ValueError: it is not a job.
        """
        if not isinstance(document, dict):
            raise ValueError("the response is not the document of a job")  # noqa: TRY004 - see above
        found = [document.get(name) for name in ("id", "version", "status", "terminal")]
        match found:
            case [int(number), int(version), str(status), bool(terminal)]:
                return cls(number, version, status, terminal, document, etag)
        raise ValueError(f"id, version, status and terminal of a job cannot be {found}")


class _FollowedJob:
    """A job to follow: only a higher version is newer."""

    accept = JSON
    credentials = True
    largest_body = LARGEST_BODY
    spacing = 0.0  # versions cannot grow sooner than the job changes

    def __init__(self, job_id: int, statuses: Collection[str]) -> None:
        self.url = f"{JOBS}/{job_id}"
        self.tag: str | None = None
        self.seen: Job | None = None
        self.is_last = False
        self._job_id = job_id
        self._statuses = frozenset(statuses)

    def read(self, response: Response) -> Reading:
        """Take a response, except 304."""
        job = read(response, self._parse)
        before = self.seen
        if before is not None and job.version < before.version:
            reason = f"version {job.version} after {before.version}"
            raise Older(Unavailable(reason), parse_retry_after(response.headers))
        self.seen, self.tag = job, job.etag
        self.is_last = job.terminal or job.status in self._statuses
        return Reading(newer=before is None or job.version > before.version)

    def _parse(self, response: Response) -> Job:
        job = job_of(response)
        if job.id != self._job_id:
            raise ValueError(f"the response is job {job.id}")
        return job

    def begin_poll(self) -> None:
        """Do nothing: each poll goes to the same URL."""

    def expired(self) -> WaitTimeout:
        """Return the error to raise when the time is over."""
        last = None if self.seen is None else self.seen.status
        return WaitTimeout(f"job {self._job_id}", self.seen, last)


class NewJob(TypedDict, total=False):
    """Optional fields of a new job; the service has defaults."""

    scenes: int
    seconds_per_scene: float
    renderer: str


def wait_for(
    rules: Rules,
    job_id: int,
    *,
    until: Collection[str] = (),
    timeout: float | None = None,
    wait: int = 25,
    interval: float | None = None,
    conditional: bool = True,
) -> Steps[Job]:
    """Follow a job until it is terminal.

    Args:
        rules: what decides.
        job_id: the number of the job.
        until: statuses that end the wait, too.
        timeout: as for `Rules.follow`, and so are the others.
        wait: seconds to hold each request.
        interval: seconds between polls.
        conditional: whether requests name the version seen last.

    Raises:
        Refused: the service refuses to show this job.
        WaitTimeout: the time is over, or will be before the service may be polled again.
        ValueError: an argument is out of range.
    """
    if job_id < 1:
        raise ValueError(f"no job has the number {job_id}")
    return rules.follow(
        _FollowedJob(job_id, until),
        timeout=timeout,
        wait=wait,
        interval=interval,
        conditional=conditional,
    )


def job_of(response: Response) -> Job:
    """Return the job in a response.

    Raises:
        ValueError: the body is not a job.
    """
    return Job.parse(response.body, response.headers.get("etag"))


def create(
    rules: Rules, client_id: str, prompt: str, key: str | None, **fields: Unpack[NewJob]
) -> Steps[Job]:
    """Create a job. Its `Idempotency-Key` lets the request be sent again."""
    return rules.call(
        "POST",
        JOBS,
        job_of,
        {"client_id": client_id, "prompt": prompt, **fields},
        headers={"Idempotency-Key": uuid.uuid4().hex if key is None else key},
        repeatable=True,
    )


def get(rules: Rules, job_id: int) -> Steps[Job]:
    """Get the current version of a job."""
    return rules.call("GET", f"{JOBS}/{job_id}", job_of, repeatable=True)


def command(rules: Rules, job_id: int, name: str) -> Steps[Job]:
    """Approve, render or cancel a job: sent once, for it has no key that makes one of two."""
    return rules.call("POST", f"{JOBS}/{job_id}/{name}", job_of, repeatable=False)


def video_path(job_id: int) -> str:
    """Return the path of the video of a job."""
    return f"{JOBS}/{job_id}/video"


def storyboard(rules: Rules, job_id: int) -> Steps[dict[str, Any]]:
    """Get the storyboard of a job."""
    return rules.call("GET", f"{JOBS}/{job_id}/storyboard", _object, repeatable=True)


def statistics(rules: Rules) -> Steps[dict[str, Any]]:
    """Get the statistics of the cache."""
    return rules.call("GET", "/api/v2/cache/stats", _object, repeatable=True)


@dataclass(frozen=True, slots=True)
class Listed:
    """One page of a list of jobs.

    Attributes:
        jobs: newest first.
        cursor: of the next page; None if this is the last.
    """

    jobs: list[Job]
    cursor: str | None


def page(
    rules: Rules, *, client_id: str | None, status: str | None, size: int, cursor: str | None
) -> Steps[Listed]:
    """Get one page of a list of jobs."""
    wanted = {"client_id": client_id, "status": status, "limit": size, "cursor": cursor}
    query = urlencode({name: value for name, value in wanted.items() if value is not None})
    return rules.call("GET", f"{JOBS}?{query}", _listed, repeatable=True)


def _listed(response: Response) -> Listed:
    match json.loads(response.body):
        case {"items": list(items), "next_cursor": str() | None as cursor}:
            return Listed([Job.of(item, None) for item in items], cursor)
    raise ValueError("the response is not a page of jobs")


def _object(response: Response) -> dict[str, Any]:
    document = json.loads(response.body)
    if not isinstance(document, dict):
        raise ValueError("the response is not a JSON object")  # noqa: TRY004 - see `read`
    return document

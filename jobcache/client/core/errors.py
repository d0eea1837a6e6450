"""What a client of the service can run into, by what there is to do about it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from jobcache.errors import JobCacheError

if TYPE_CHECKING:
    from jobcache.client.jobs import Job


class JobsError(JobCacheError):
    """The base of every error of `jobcache.client`."""


class Refused(JobsError):  # noqa: N818 - reads as what happened
    """The service answered, and asking again would not change what it says.

    Attributes:
        status: the status of the answer.
        problem: its problem document (RFC 9457); empty if it had none.
    """

    def __init__(self, status: int, problem: dict[str, Any]) -> None:
        self.status = status
        self.problem = problem
        said = problem.get("detail") or problem.get("title") or "no reason given"
        super().__init__(f"{status}: {said}")


class Unauthorized(Refused):
    """401: there is no key, or nobody knows it."""


class Forbidden(Refused):
    """403: the key is good, but not for this."""


class NotFound(Refused):
    """404: there is no such job, or it is another client's."""


class Conflict(Refused):
    """409: the job is in a state that this cannot follow; the problem names it."""


class Invalid(Refused):
    """422: the request is wrong; the problem lists the fields."""


class Unavailable(JobsError):  # noqa: N818 - reads as what happened
    """No answer that can be used. `__cause__` is the last thing that went wrong."""


class WaitTimeout(JobsError, TimeoutError):  # noqa: N818 - as in asyncio and httpx
    """The job was not where it was awaited in time. `__cause__` is what went wrong last, if so.

    Attributes:
        job: the newest document that was seen; None if there was none.
    """

    def __init__(self, job_id: int, job: Job | None) -> None:
        self.job = job
        seen = "nothing was seen of it" if job is None else f"last seen {job.status}"
        super().__init__(f"job {job_id}: the time to wait is up, {seen}")


_BY_STATUS = {401: Unauthorized, 403: Forbidden, 404: NotFound, 409: Conflict, 422: Invalid}


def refusal(status: int, body: bytes) -> Refused:
    """The error that a final answer is."""
    try:
        problem = json.loads(body)
    except ValueError:
        problem = {}
    kind = _BY_STATUS.get(status, Refused)
    return kind(status, problem if isinstance(problem, dict) else {})

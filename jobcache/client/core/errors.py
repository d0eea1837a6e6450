"""Errors of a client, by what the caller can do about them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from jobcache.errors import JobCacheError

if TYPE_CHECKING:
    from collections.abc import Sequence


class ClientError(JobCacheError):
    """The base of every error of `jobcache.client`."""


class Refused(ClientError):  # noqa: N818 - reads as what happened
    """The service answered, and would answer the same if the request were sent again.

    Attributes:
        status: the status of the response.
        problem: its problem document (RFC 9457); empty if it had none.
    """

    def __init__(self, status: int, problem: dict[str, Any]) -> None:
        self.status = status
        self.problem = problem
        reason = problem.get("detail") or problem.get("title") or "no reason given"
        super().__init__(f"{status}: {reason}")


class Unauthorized(Refused):
    """401: the API key is missing or unknown."""


class Forbidden(Refused):
    """403: the API key does not permit this request."""


class NotFound(Refused):
    """404: the document does not exist, or the API key may not see it."""


class Gone(Refused):
    """410: the document existed, and has been deleted."""


class Conflict(Refused):
    """409: the current state does not permit this request; the problem names the state."""


class Invalid(Refused):
    """422: the request is wrong; the problem lists the fields."""


class Unavailable(ClientError):  # noqa: N818 - reads as what happened
    """There was no usable response. `__cause__` is the last error."""


class WaitTimeout(ClientError, TimeoutError):  # noqa: N818 - as in asyncio and httpx
    """The awaited state did not come in time. `__cause__` is the last error, if any.

    Attributes:
        seen: the newest document that was seen; None if there was none.
    """

    def __init__(self, subject: str, seen: Any, last: str | None = None) -> None:  # noqa: ANN401 - of either client
        self.seen = seen
        shown = "no version was seen" if last is None else f"last seen {last}"
        super().__init__(f"{subject}: the time to wait is over, {shown}")

    @property
    def job(self) -> Any:  # noqa: ANN401 - the class of the document is known to its client only
        """The same as `seen`: the newest version of the job, or None."""
        return self.seen


class BadLocation(ClientError):  # noqa: N818 - reads as what happened
    """A response names a URL that is not followed, or none where one is needed."""


class BodyTooLarge(ClientError):  # noqa: N818 - reads as what happened
    """The body of a response exceeds the limit; the rest of it was not read.

    Attributes:
        url: what was requested.
        limit: the limit in bytes, after decompression.
    """

    def __init__(self, url: str, limit: int) -> None:
        self.url = url
        self.limit = limit
        super().__init__(f"{url}: the body is larger than {limit} bytes")


class AllFailed(ClientError):  # noqa: N818 - reads as what happened
    """None of the waits had a result.

    Attributes:
        errors: one for each of them.
    """

    def __init__(self, errors: Sequence[Exception]) -> None:
        self.errors = list(errors)
        super().__init__("; ".join(str(error) for error in errors))


_BY_STATUS = {
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    410: Gone,
    422: Invalid,
}


def refusal(status: int, body: bytes) -> Refused:
    """Return the error for a response that is final."""
    try:
        problem = json.loads(body)
    except ValueError:
        problem = {}
    kind = _BY_STATUS.get(status, Refused)
    return kind(status, problem if isinstance(problem, dict) else {})

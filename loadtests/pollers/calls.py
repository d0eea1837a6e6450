"""Requests of users and workers, each in its row of Locust's tables, with checks of responses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gevent import GreenletExit

from jobcache.client.core.messages import Response, TransportError
from jobcache.client.jobs import Job
from loadtests.pollers import rows

if TYPE_CHECKING:
    from locust.contrib.fasthttp import FastHttpSession

    from jobcache.client.core.messages import Request
    from loadtests.pollers.polled_job import PolledJob
    from loadtests.pollers.rows import PollOutcome
    from loadtests.pollers.run import Run


class ServiceCalls:
    """Sends requests by Locust's HTTP client.

    Args:
        session: the client.
        run: the test that the requests belong to.

    Attributes:
        last_outcome: how the last poll was answered; None if it was not.
        last_status: the status of the last response to a change; 0 without one.
    """

    def __init__(self, session: FastHttpSession, run: Run) -> None:
        self.last_outcome: PollOutcome | None = None
        self.last_status = 0
        self._session = session
        self._run = run

    def poll(self, request: Request, job: PolledJob, seen: Job | None) -> Response | TransportError:
        """Send a poll.

        A response that no service should give is a failure in Locust's tables: a status that was
        not asked for, a version below `seen`, or one that lacks an acknowledged change.

        Args:
            request: by the rules of the client.
            job: the one that is polled.
            seen: what this user has seen of it last.
        """
        required = job.acknowledged.required()
        self.last_outcome = None
        try:
            return self._poll(request, seen, required)
        except GreenletExit:
            self._run.record.cut_off()
            raise

    def _poll(self, request: Request, seen: Job | None, required: int) -> Response | TransportError:
        with self._session.get(
            request.url, name=rows.NO_ANSWER, headers=request.headers, catch_response=True
        ) as found:
            if found.status_code == 0:
                return TransportError(ConnectionError(str(found.error)))
            headers = {name.lower(): text for name, text in (found.headers or {}).items()}
            response = Response(found.status_code, headers, found.content or b"")
            outcome = self.last_outcome = rows.outcome_of(response)
            found.request_meta["name"] = outcome.row
            self._run.record.poll(outcome)
            wrong = _fault(response, request, seen, required)
            if wrong is not None:
                found.failure(wrong)
            return response

    def post(
        self, path: str, row: str, expected: int, body: dict[str, object] | None = None
    ) -> Job | None:
        """Send a change; return the job in the response, or None if it was not as expected."""
        with self._session.post(path, name=row, json=body, catch_response=True) as found:
            self.last_status = found.status_code
            if found.status_code == 0:
                return None
            if found.status_code != expected:
                found.failure(f"status {found.status_code}, not {expected}")
                return None
            try:
                return Job.parse(found.content or b"", None)
            except ValueError as error:
                found.failure(str(error))
                return None

    def empty_cache(self) -> None:
        """Remove all entries from the cache, as an operator."""
        path, body = "/api/v2/cache/invalidate", {"all": True}
        with self._session.post(
            path, name=rows.EMPTY_CACHE, json=body, catch_response=True
        ) as found:
            if found.status_code not in {0, 200}:
                found.failure(f"status {found.status_code}, not 200")


def _fault(response: Response, request: Request, seen: Job | None, required: int) -> str | None:
    """Return what is wrong with the response to a poll, or None."""
    if response.status == 304 and "If-None-Match" in request.headers and seen is not None:
        version = seen.version
    elif response.status != 200:
        return f"status {response.status}, not 200"
    else:
        try:
            version = Job.parse(response.body, None).version
        except ValueError as error:
            return str(error)
    if seen is not None and version < seen.version:
        return f"version {version} after {seen.version}"
    if version < required:
        return f"version {version}, long after {required} was acknowledged"
    return None

"""The endpoints that clients poll: a job's status, and the stream of its versions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import Request, Response

from app.auth.middleware import caller_of
from app.jobs.api import responses
from app.jobs.api.answers import prefix_of
from app.jobs.api.parameters import (
    AcceptEncoding,
    IfNoneMatch,
    JobIdInPath,
    LastEventId,
    Prefer,
    joined,
)
from app.jobs.schemas import JobBody

if TYPE_CHECKING:
    from fastapi import APIRouter

    from app.jobs.service import JobService
    from jobcache.http.polling import Polling


def add_to(routes: APIRouter, service: JobService, polling: Polling) -> None:
    """Add the endpoints to a router."""

    @routes.get("/{job_id}", response_model=JobBody, responses=responses.POLLED)
    async def poll(
        job_id: JobIdInPath,
        request: Request,
        if_none_match: IfNoneMatch = None,
        accept_encoding: AcceptEncoding = None,
        prefer: Prefer = None,
    ) -> Response:
        """Return the status of a job, from the cache. `Retry-After` says when to poll again.

        With `Prefer: wait` and the known version in `If-None-Match`, the request is answered when
        there is a newer version, or when the time is up. `Preference-Applied` confirms that.
        """
        caller = caller_of(request)
        return await polling.poll(
            service.polled_document(job_id, caller, prefix_of(request)),
            if_none_match=joined(if_none_match),
            accept_encoding=joined(accept_encoding),
            prefer=joined(prefer),
            caller=caller,
            name=caller.name,
        )

    @routes.get("/{job_id}/events", response_class=Response, responses=responses.EVENTS)
    async def stream(
        job_id: JobIdInPath, request: Request, last_event_id: LastEventId = None
    ) -> Response:
        """Send the status of a job as server-sent events, until the job has ended.

        The name of each event is `status`, its `id` the version, and its `data` the job as a poll
        returns it. A slow client misses versions in between, but never the last one. A stream may
        end before the job does. The client then reconnects with `Last-Event-ID`, as browsers do.
        """
        caller = caller_of(request)
        return await polling.stream(
            service.polled_document(job_id, caller, prefix_of(request)),
            last_event_id=last_event_id,
            head=request.method == "HEAD",
            caller=caller,
            name=caller.name,
        )

"""The endpoint that streams the versions of a job as server-sent events."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from fastapi import Request, Response

from app.auth.middleware import caller_of
from app.http.deferred_response import DeferredResponse
from app.jobs.api import responses
from app.jobs.api.answers import prefix_of
from app.jobs.api.parameters import JobIdInPath, LastEventId
from app.jobs.events import HEADERS, is_terminal, seen_version

if TYPE_CHECKING:
    from fastapi import APIRouter

    from app.jobs.events import JobEvents
    from app.jobs.service import JobService


def add_to(routes: APIRouter, service: JobService, events: JobEvents) -> None:
    """Add the endpoint to a router."""

    @routes.get("/{job_id}/events", response_class=Response, responses=responses.EVENTS)
    async def stream(
        job_id: JobIdInPath, request: Request, last_event_id: LastEventId = None
    ) -> Response:
        """Send the status of a job as server-sent events, until the job has ended.

        The name of each event is `status`, its `id` the version, and its `data` the job as a poll
        returns it. A slow client misses versions in between, but never the last one. A stream may
        end before the job does. The client then reconnects with `Last-Event-ID`, as browsers do.
        """
        caller, seen = caller_of(request), seen_version(last_event_id)
        result = await service.poll(job_id, caller, min_version=seen)
        if result.entry.version < seen:
            seen = 0  # the id is not one of this job
        if seen == result.entry.version and is_terminal(result):
            return Response(status_code=204, headers={"Cache-Control": "no-cache"})
        if request.method == "HEAD":
            head = Response(headers=HEADERS)
            del head.headers["Content-Length"]  # a stream has none
            return head
        pieces = events.of(job_id, caller, result, seen, root_path=prefix_of(request))
        return DeferredResponse(partial(events.send, pieces, caller.name, caller=caller))

"""The endpoints that clients poll: a job's status, and the stream of its versions."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from app.auth.middleware import caller_of
from app.jobs.api import responses
from app.jobs.api.answers import prefix_of
from app.jobs.api.parameters import JobIdInPath
from app.jobs.schemas import JobBody
from app.jobs.service import JobService
from jobcache.http.fastapi import EventStream, Poll, PollingRoutes, parameters


def add_to(routes: APIRouter, service: JobService, polling: PollingRoutes) -> None:
    """Add the endpoints to a router."""

    @routes.get(
        "/{job_id}",
        response_model=JobBody,
        responses=responses.POLLED,
        openapi_extra={"parameters": parameters.POLL},
    )
    async def poll(
        job_id: JobIdInPath, request: Request, poll: Annotated[Poll, Depends(polling.poll)]
    ) -> Response:
        """Return the status of a job, from the cache. `Retry-After` says when to poll again.

        With `Prefer: wait` and the known version in `If-None-Match`, the request is answered when
        there is a newer version, or when the time is up. `Preference-Applied` confirms that.
        """
        document = service.polled_document(job_id, caller_of(request), prefix_of(request))
        return await poll.respond(document)

    @routes.get(
        "/{job_id}/events",
        response_class=Response,
        responses=responses.EVENTS,
        openapi_extra={"parameters": parameters.STREAM},
    )
    async def stream(
        job_id: JobIdInPath,
        request: Request,
        events: Annotated[EventStream, Depends(polling.events)],
    ) -> Response:
        """Send the status of a job as server-sent events, until the job has ended.

        The name of each event is `status`, its `id` the version, and its `data` the job as a poll
        returns it. A slow client misses versions in between, but never the last one. A stream may
        end before the job does. The client then reconnects with `Last-Event-ID`, as browsers do.
        """
        document = service.polled_document(job_id, caller_of(request), prefix_of(request))
        return await events.respond(document)

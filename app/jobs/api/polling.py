"""The endpoint that polls ask, and how it holds a poll that prefers to wait."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from fastapi import Request, Response

from app.auth.middleware import caller_of, unauthorized
from app.http.deferred_response import DeferredResponse
from app.jobs.api import responses
from app.jobs.api.answers import as_response, prefix_of
from app.jobs.api.parameters import AcceptEncoding, IfNoneMatch, JobIdInPath, Prefer, joined
from app.jobs.api.prefer import requested_wait
from app.jobs.conditional_get import conditions, may_wait, respond
from app.jobs.held_requests import ClientGone, HeldRequest, Revoked, cancel_on_disconnect
from app.jobs.schemas import JobBody
from app.jobs.service import JobNotFound
from jobcache import SourceUnavailable

if TYPE_CHECKING:
    from fastapi import APIRouter
    from starlette.types import Receive, Send

    from app.auth.callers import Caller
    from app.http.reply import Headers
    from app.jobs.held_requests import HeldRequests
    from app.jobs.service import JobService
    from jobcache import ReadResult


def add_to(
    routes: APIRouter, service: JobService, held: HeldRequests, *, longest_wait: int
) -> None:
    """Add the endpoint to a router.

    Args:
        routes: the router.
        service: for the jobs.
        held: for the polls that wait.
        longest_wait: the most seconds that a poll is held.
    """

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
        caller, tags = caller_of(request), joined(if_none_match)
        result = await service.poll(job_id, caller, min_version=conditions(tags).min_version)
        coding = joined(accept_encoding)
        seconds = requested_wait(joined(prefer), longest_wait)
        if seconds is None or not may_wait(result, tags):
            return as_response(respond(result, tags, coding, root_path=prefix_of(request)))
        waiting = _LongPoll(service, held, job_id, caller, seconds, prefix_of(request))
        return DeferredResponse(partial(waiting.answer, result, tags, coding))


@dataclass(frozen=True, slots=True)
class _LongPoll:
    """A poll that prefers to wait, and waits if there is a slot for it."""

    service: JobService
    held: HeldRequests
    job_id: int
    caller: Caller
    seconds: int
    root_path: str

    async def answer(  # noqa: PLR0917 - the last three are given by `DeferredResponseMiddleware`
        self,
        result: ReadResult,
        if_none_match: str | None,
        accept_encoding: str | None,
        path: str,
        receive: Receive,
        send: Send,
    ) -> None:
        """Wait for a newer version if there is a slot, then answer."""
        applied: Headers = []
        request = HeldRequest(self.caller)
        with self.held.slot("waits", self.caller.name, request) as has_slot:
            if has_slot:
                applied = [(b"preference-applied", b"wait=%d" % self.seconds)]
                try:
                    result = await self._newer(result, receive, request)
                except Revoked:
                    await unauthorized(path, token=b"")({"type": "http"}, receive, send)
                    return
        reply = respond(result, if_none_match, accept_encoding, root_path=self.root_path)
        response = as_response(reply)
        response.raw_headers += applied
        await response({"type": "http"}, receive, send)

    async def _newer(
        self, result: ReadResult, receive: Receive, request: HeldRequest
    ) -> ReadResult:
        version = result.entry.version
        waiting = self.service.wait_for_newer(self.job_id, self.caller, version, self.seconds)
        try:
            newer = await cancel_on_disconnect(receive, waiting, request)
            if newer is None:  # the time is up: answer as to a poll that comes now
                newer = await self.service.poll(self.job_id, self.caller, min_version=version)
        except ClientGone:
            return result  # nobody will read it
        except (SourceUnavailable, JobNotFound):
            return result  # it was true when the request came
        return newer

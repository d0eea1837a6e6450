"""The endpoints of jobs: HTTP in, HTTP out, and nothing decided here."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import json
import re
import stat
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Header, HTTPException, Query, Request, Response
from fastapi import Path as InPath
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse
from pydantic import BeforeValidator, Field, WithJsonSchema

from app.auth.callers import Role
from app.auth.middleware import caller_of, unauthorized
from app.auth.rules import forbidden, only
from app.http.deferred_response import DeferredResponse
from app.http.problems import problem
from app.http.routing import name_of
from app.jobs.api import responses
from app.jobs.api.prefer import LONGEST, wait_asked
from app.jobs.conditional_get import conditions, etag, holds, may_wait, respond
from app.jobs.documents import job_document, with_prefix
from app.jobs.events import HEADERS, is_terminal, seen_version
from app.jobs.held_requests import ClientGone, Place, Revoked, cancel_on_disconnect
from app.jobs.schemas import (
    LARGEST_ID,
    ClientId,
    Complete,
    CreateJob,
    Fail,
    JobBatch,
    JobBody,
    JobPage,
    ReportProgress,
)
from app.jobs.service import IllegalMove, JobNotFound
from app.jobs.states import Status
from app.jobs.storage import NewJob
from app.rendering.storyboard import Storyboard
from jobcache import SourceUnavailable

if TYPE_CHECKING:
    import os
    from pathlib import Path

    from starlette.types import Message, Receive, Scope, Send

    from app.auth.callers import Caller
    from app.http.reply import Headers, Reply
    from app.jobs.events import JobEvents
    from app.jobs.held_requests import HeldRequests
    from app.jobs.service import JobService
    from app.jobs.storage import Job
    from jobcache import ReadResult


_ONE_NUMBER = r"[1-9][0-9]{0,18}"


def _number(text: str) -> str:
    # int() also takes 1_0, +1, 1.0 and blanks; one number is to have one spelling
    if re.fullmatch(_ONE_NUMBER, text) is None:
        raise ValueError("a number is written in digits only, the first of them not 0")
    return text


Number = BeforeValidator(_number)
JobIdInPath = Annotated[int, Field(ge=1, le=LARGEST_ID), Number, InPath()]
Limit = Annotated[int, Field(ge=1, le=100), Number]
# Lists, for either may come in several lines, which are read as one (RFC 9110, 5.3).
Lines = Annotated[list[str] | None, WithJsonSchema({"type": "string"})]
IfNoneMatch = Annotated[Lines, Header()]
AcceptEncoding = Annotated[Lines, Header()]
Prefer = Annotated[
    Lines,
    Header(
        description="`wait=20`: seconds to be held until there is a newer version; the service has"
        " an upper limit, which Preference-Applied shows"
    ),
]
LastEventId = Annotated[
    str | None,
    Header(description="The id of the last event that was seen; what is no such id is as none"),
]
IdempotencyKey = Annotated[
    str | None, Header(min_length=1, max_length=255, pattern=r"^[\x21-\x7e]+$")
]

_PAGE = 20
_MOST_IDS = 100


def router(
    service: JobService, events: JobEvents, videos: Path, *, longest_wait: int = LONGEST
) -> APIRouter:
    """The endpoints under `/api/v2/jobs`.

    Args:
        service: what they call.
        events: what streams are made of.
        videos: where finished videos are.
        longest_wait: seconds that a poll is held at most.
    """
    routes = APIRouter(prefix="/api/v2/jobs", tags=["jobs"], generate_unique_id_function=name_of)

    @routes.post(
        "", status_code=202, response_model=JobBody, **only(Role.CLIENT, answers=responses.CREATED)
    )
    async def create(
        body: CreateJob, request: Request, idempotency_key: IdempotencyKey = None
    ) -> Response:
        """Ask for a video. The same `Idempotency-Key` again finds the job it made before."""
        if not caller_of(request).can_view(body.client_id):
            raise forbidden(f"This needs a key of client {body.client_id}, or an operator's.")
        digest = hashlib.sha256(body.model_dump_json().encode()).hexdigest()
        new = NewJob(
            client_id=body.client_id,
            prompt=body.prompt,
            scenes=body.scenes,
            seconds_per_scene=body.seconds_per_scene,
            renderer=body.renderer,
            idempotency_key=idempotency_key,
            request_hash=None if idempotency_key is None else digest,
        )
        job = await service.create(new)
        location = f"{_root(request)}/api/v2/jobs/{job.id}"
        return _changed(job, request, 202, {"Location": location})

    @routes.get(
        "",
        response_model=JobPage | JobBatch,
        responses=responses.FOUND,
        openapi_extra=responses.IDS,
    )
    async def find(
        *,
        request: Request,
        client_id: Annotated[ClientId | None, Query()] = None,
        status: Status | None = None,
        limit: Annotated[Limit | None, Query(description="20 unless given")] = None,
        cursor: Annotated[str | None, Query(max_length=64)] = None,
        ids: Annotated[str | None, Query(max_length=2100, include_in_schema=False)] = None,
    ) -> Response:
        """A page of jobs, newest first; or, with `ids`, up to 100 of them by id."""
        if ids is not None:
            if any(other is not None for other in (client_id, status, limit, cursor)):
                raise _invalid("query.ids", "goes with no other parameter")
            wanted = _ids(ids)
            found = await service.poll_many(wanted, caller_of(request))
            missing = [job_id for job_id in wanted if job_id not in found]
            return _items(request, list(found.values()), "missing", missing)
        below = None if cursor is None else _below(cursor)
        page = await service.page(
            caller_of(request),
            client_id=client_id,
            status=status,
            below=below,
            limit=_PAGE if limit is None else limit,
        )
        following = None if page.next_below is None else _cursor(page.next_below)
        return _items(request, page.bodies, "next_cursor", following)

    @routes.get("/{job_id}/storyboard", response_model=Storyboard, responses=responses.STORYBOARD)
    async def storyboard(
        job_id: JobIdInPath,
        request: Request,
        if_none_match: IfNoneMatch = None,
        accept_encoding: AcceptEncoding = None,
    ) -> Response:
        """The storyboard, once there is one."""
        held = _joined(if_none_match)
        answer = await service.storyboard(
            job_id, caller_of(request), min_version=conditions(held).min_version
        )
        return _sent(respond(answer, held, _joined(accept_encoding)))

    @routes.get(
        "/{job_id}/video",
        response_class=FileResponse,
        responses=responses.VIDEO,
        openapi_extra=responses.RANGE,
    )
    async def video(
        job_id: JobIdInPath, request: Request, if_none_match: IfNoneMatch = None
    ) -> Response:
        """The video of a completed job, whole or by `Range`."""
        answer = await service.poll(job_id, caller_of(request))
        job = answer.json()
        if job["status"] != Status.COMPLETED:
            raise IllegalMove(f"Job {job_id} has no video yet: it is {job['status']}.")
        return await _stored(job, videos / f"{job_id}.mp4", _joined(if_none_match))

    _add_polls(routes, service, events, longest_wait)
    _add_moves(routes, service)
    return routes


def _add_polls(
    routes: APIRouter, service: JobService, events: JobEvents, longest_wait: int
) -> None:
    @routes.get("/{job_id}", response_model=JobBody, responses=responses.POLLED)
    async def poll(
        job_id: JobIdInPath,
        request: Request,
        if_none_match: IfNoneMatch = None,
        accept_encoding: AcceptEncoding = None,
        prefer: Prefer = None,
    ) -> Response:
        """The status of a job, from the cache. `Retry-After` says when to ask again.

        With `Prefer: wait` and the version in `If-None-Match`, the answer comes when there is a
        newer one, or else when the time is up; `Preference-Applied` says that it was so.
        """
        caller, has = caller_of(request), _joined(if_none_match)
        answer = await service.poll(job_id, caller, min_version=conditions(has).min_version)
        accepted = _joined(accept_encoding)
        seconds = wait_asked(_joined(prefer), longest_wait)
        if seconds is None or not may_wait(answer, has):
            return _sent(respond(answer, has, accepted, root_path=_root(request)))
        waiting = _Wait(service, events.held, job_id, caller, seconds, _root(request))
        return DeferredResponse(partial(waiting.answer, answer, has, accepted))

    @routes.get("/{job_id}/events", response_class=Response, responses=responses.EVENTS)
    async def stream(
        job_id: JobIdInPath, request: Request, last_event_id: LastEventId = None
    ) -> Response:
        """The status of a job as server-sent events, until it is terminal.

        Each event is called `status`; its `id` is the version, its `data` the job as a poll returns
        it. Versions that a client is too slow for are left out, the last one never. A stream may
        end before the job does: come again with `Last-Event-ID`, as browsers do by themselves.
        """
        caller, seen = caller_of(request), seen_version(last_event_id)
        answer = await service.poll(job_id, caller, min_version=seen)
        if answer.entry.version < seen:
            seen = 0  # no id of this job's
        if seen == answer.entry.version and is_terminal(answer):
            return Response(status_code=204, headers={"Cache-Control": "no-cache"})
        if request.method == "HEAD":
            head = Response(headers=HEADERS)
            del head.headers["Content-Length"]  # a stream has none
            return head
        pieces = events.of(job_id, caller, answer, seen, root_path=_root(request))
        return DeferredResponse(partial(events.send, pieces, caller.name, caller=caller))


@dataclass(frozen=True, slots=True)
class _Wait:
    """A poll that may be held."""

    service: JobService
    held: HeldRequests
    job_id: int
    caller: Caller
    seconds: int
    root_path: str

    async def answer(  # noqa: PLR0917 - the last three are given by `DeferredResponseMiddleware`
        self,
        answer: ReadResult,
        has: str | None,
        accepted: str | None,
        path: str,
        receive: Receive,
        send: Send,
    ) -> None:
        applied: Headers = []
        slot = Place(self.caller)
        with self.held.slot("waits", self.caller.name, slot) as has_place:
            if has_place:
                applied = [(b"preference-applied", b"wait=%d" % self.seconds)]
                try:
                    answer = await self._newer(answer, receive, slot)
                except Revoked:
                    await unauthorized(path, token=b"")({"type": "http"}, receive, send)
                    return
        response = _sent(respond(answer, has, accepted, root_path=self.root_path))
        response.raw_headers += applied
        await response({"type": "http"}, receive, send)

    async def _newer(self, answer: ReadResult, receive: Receive, slot: Place) -> ReadResult:
        version = answer.entry.version
        waiting = self.service.wait_for_newer(self.job_id, self.caller, version, self.seconds)
        try:
            newer = await cancel_on_disconnect(receive, waiting, slot)
            if newer is None:  # as to whoever polls now
                newer = await self.service.poll(self.job_id, self.caller, min_version=version)
        except (ClientGone, SourceUnavailable, JobNotFound):
            return answer  # to nobody; or it is what was true when this was asked
        return newer


def _add_moves(routes: APIRouter, service: JobService) -> None:
    @routes.post(
        "/{job_id}/approve", response_model=JobBody, **only(Role.CLIENT, answers=responses.CHANGED)
    )
    async def approve(job_id: JobIdInPath, request: Request) -> Response:
        """The storyboard is as it should be."""
        return _changed(await service.approve(job_id, caller_of(request)), request)

    @routes.post(
        "/{job_id}/render",
        status_code=202,
        response_model=JobBody,
        **only(Role.CLIENT, answers=responses.BEGUN),
    )
    async def render(job_id: JobIdInPath, request: Request) -> Response:
        """Begin to render."""
        return _changed(await service.render(job_id, caller_of(request)), request, 202)

    @routes.post(
        "/{job_id}/cancel", response_model=JobBody, **only(Role.CLIENT, answers=responses.CHANGED)
    )
    async def cancel(job_id: JobIdInPath, request: Request) -> Response:
        """Stop the job, whatever it is at."""
        return _changed(await service.cancel(job_id, caller_of(request)), request)

    @routes.post(
        "/{job_id}/progress", response_model=JobBody, **only(Role.WORKER, answers=responses.CHANGED)
    )
    async def progress(job_id: JobIdInPath, body: ReportProgress, request: Request) -> Response:
        """A worker says how far it is."""
        job = await service.report_progress(
            job_id, body.percent, body.stage, body.message, worker=True
        )
        return _changed(job, request)

    @routes.post(
        "/{job_id}/complete", response_model=JobBody, **only(Role.WORKER, answers=responses.CHANGED)
    )
    async def complete(
        job_id: JobIdInPath, request: Request, body: Complete | None = None
    ) -> Response:
        """A worker has finished."""
        video_url = None if body is None else body.video_url
        return _changed(await service.complete(job_id, video_url, worker=True), request)

    @routes.post(
        "/{job_id}/fail", response_model=JobBody, **only(Role.WORKER, answers=responses.CHANGED)
    )
    async def fail(job_id: JobIdInPath, body: Fail, request: Request) -> Response:
        """A worker has given up."""
        return _changed(await service.fail(job_id, body.error, worker=True), request)


async def _stored(job: dict[str, Any], path: Path, if_none_match: str | None) -> Response:
    job_id = job["id"]
    if job["video_url"] is None:
        raise IllegalMove(f"Job {job_id} has no video here: its worker named none.")
    if job["video_url"] != f"/api/v2/jobs/{job_id}/video":
        raise IllegalMove(f"The video of job {job_id} is kept elsewhere, see its video_url.")
    found = await asyncio.to_thread(_stat, path)
    if found is None:
        raise HTTPException(404, f"The video of job {job_id} is no longer there.")
    response = _Video(
        path,
        media_type="video/mp4",
        headers={"Cache-Control": "private"},
        stat_result=found,
    )
    if if_none_match is not None and holds(if_none_match, response.headers["etag"]):
        kept = {name: response.headers[name] for name in ("etag", "cache-control")}
        return Response(status_code=304, headers=kept)
    return response


class _Video(FileResponse):
    """A file by `Range`, as RFC 9110 has it, and problem documents where that cannot be."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        refused: Message | None = None

        async def pass_on(message: Message) -> None:
            nonlocal refused
            if message["type"] == "http.response.start" and message["status"] in _RANGE_REFUSED:
                refused = message
            if refused is None:
                await send(message)

        def counts(name: bytes, value: bytes) -> bool:
            # 14.2: a Range is for GET, and one in a unit that nobody knows is as none at all
            known = value.partition(b"=")[0].strip().lower() == b"bytes"
            return name != b"range" or (known and scope["method"] == "GET")

        headers = [header for header in scope["headers"] if counts(*header)]
        await super().__call__({**scope, "headers": headers}, receive, pass_on)
        if refused is not None:
            status = refused["status"]
            bounds = {b"content-range": "Content-Range"}
            kept = {bounds[k]: v.decode() for k, v in refused["headers"] if k in bounds}
            answer = problem(status, _RANGE_REFUSED[status], instance=scope["path"], headers=kept)
            await answer(scope, receive, send)


_RANGE_REFUSED = {400: "The Range cannot be read.", 416: "The Range is not within the video."}


def _root(request: Request) -> str:
    """Return what links begin with: the path under which the client has the service."""
    root: str = request.scope.get("root_path", "")
    return root.rstrip("/")


def _changed(
    job: Job, request: Request, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    body = with_prefix(job_document(job).body, _root(request))
    tag = {"ETag": etag(job.version, gzip=False), "Cache-Control": "private, no-cache"}
    return Response(body, status, {**tag, **(headers or {})}, "application/json")


def _sent(reply: Reply) -> Response:
    response = Response(reply.body, reply.status)
    response.raw_headers = [*reply.headers]
    return response


def _items(request: Request, bodies: list[bytes], name: str, value: object) -> Response:
    body = b'{"items":[%b],"%b":%b}' % (
        with_prefix(b",".join(bodies), _root(request)),
        name.encode(),
        json.dumps(value).encode(),
    )
    headers = {"Cache-Control": "private, no-cache"}
    return Response(body, headers=headers, media_type="application/json")


def _joined(lines: list[str] | None) -> str | None:
    return None if lines is None else ", ".join(lines)


def _stat(path: Path) -> os.stat_result | None:
    try:
        result = path.stat()
    except FileNotFoundError:
        return None
    return result if stat.S_ISREG(result.st_mode) else None


def _ids(text: str) -> list[int]:
    parts = text.split(",")
    if len(parts) > _MOST_IDS:
        raise _invalid("query.ids", f"at most {_MOST_IDS} ids")
    ids = []
    for part in parts:
        if re.fullmatch(_ONE_NUMBER, part) is None or int(part) > LARGEST_ID:
            raise _invalid("query.ids", "job ids, separated by commas")
        ids.append(int(part))
    return list(dict.fromkeys(ids))


def _cursor(job_id: int) -> str:
    return base64.urlsafe_b64encode(str(job_id).encode()).decode().rstrip("=")


def _below(cursor: str) -> int:
    try:
        text = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode("ascii")
    except (binascii.Error, ValueError):
        text = ""
    # Decoding skips what it does not know: one cursor is to have one spelling, too.
    number = int(text) if re.fullmatch(_ONE_NUMBER, text) else 0
    if not 1 <= number <= LARGEST_ID or _cursor(number) != cursor:
        raise _invalid("query.cursor", "a next_cursor of an earlier page")
    return number


def _invalid(field: str, message: str) -> RequestValidationError:
    return RequestValidationError([{"loc": field.split("."), "msg": message, "type": "value"}])

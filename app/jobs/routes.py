"""The endpoints of jobs: HTTP in, HTTP out, and nothing decided here."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import json
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Header, HTTPException, Query, Response
from fastapi import Path as InPath
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse

from app.jobs.documents import job_document
from app.jobs.poll import conditions, etag, respond
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
from app.jobs.service import IllegalMove
from app.jobs.states import Status
from app.jobs.store import NewJob
from app.rendering.storyboard import Storyboard
from jobcache import identity_body

if TYPE_CHECKING:
    from pathlib import Path

    from app.jobs.service import JobService
    from app.jobs.store import Job

JobIdInPath = Annotated[int, InPath(ge=1, le=LARGEST_ID)]
IfNoneMatch = Annotated[str | None, Header()]
AcceptEncoding = Annotated[str | None, Header()]
IdempotencyKey = Annotated[
    str | None, Header(min_length=1, max_length=255, pattern=r"^[\x21-\x7e]+$")
]

_MOST_IDS = 100
_PROBLEM: dict[str, Any] = {"content": {"application/problem+json": {}}}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    404: {"description": "There is no such job", **_PROBLEM},
    409: {"description": "The job's state does not allow this", **_PROBLEM},
    413: {"description": "The body is too large", **_PROBLEM},
    422: {"description": "The request is not valid", **_PROBLEM},
    503: {"description": "The database cannot be reached", **_PROBLEM},
}
_NOT_MODIFIED: dict[int | str, dict[str, Any]] = {
    304: {"description": "The version in If-None-Match is the newest"}
}


def router(service: JobService, videos: Path) -> APIRouter:
    """The endpoints under `/api/v2/jobs`.

    Args:
        service: what they call.
        videos: where finished videos are.
    """
    routes = APIRouter(prefix="/api/v2/jobs", tags=["jobs"], responses=_RESPONSES)

    @routes.post("", status_code=202, response_model=JobBody)
    async def create(body: CreateJob, idempotency_key: IdempotencyKey = None) -> Response:
        """Ask for a video. The same `Idempotency-Key` again finds the job it made before."""
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
        return _changed(job, 202, {"Location": f"/api/v2/jobs/{job.id}"})

    @routes.get("", response_model=JobPage | JobBatch)
    async def find(
        client_id: Annotated[ClientId | None, Query()] = None,
        status: Status | None = None,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        cursor: Annotated[str | None, Query(max_length=64)] = None,
        ids: Annotated[str | None, Query(max_length=2100)] = None,
    ) -> Response:
        """A page of jobs, newest first; or, with `ids`, up to 100 of them by id."""
        if ids is not None:
            if client_id is not None or status is not None or cursor is not None:
                raise _invalid("query.ids", "goes with no other parameter")
            wanted = _ids(ids)
            found = await service.poll_many(wanted)
            missing = [job_id for job_id in wanted if job_id not in found]
            return _items(list(found.values()), "missing", missing)
        below = None if cursor is None else _below(cursor)
        page = await service.page(client_id=client_id, status=status, below=below, limit=limit)
        following = None if page.next_below is None else _cursor(page.next_below)
        return _items(page.bodies, "next_cursor", following)

    @routes.get("/{job_id}", response_model=JobBody, responses=_NOT_MODIFIED)
    async def poll(
        job_id: JobIdInPath,
        if_none_match: IfNoneMatch = None,
        accept_encoding: AcceptEncoding = None,
    ) -> Response:
        """The status of a job, from the cache. `Retry-After` says when to ask again."""
        answer = await service.poll(job_id, floor=_floor(if_none_match))
        return _raw(*respond(answer, if_none_match, accept_encoding))

    @routes.get("/{job_id}/storyboard", response_model=Storyboard, responses=_NOT_MODIFIED)
    async def storyboard(
        job_id: JobIdInPath,
        if_none_match: IfNoneMatch = None,
        accept_encoding: AcceptEncoding = None,
    ) -> Response:
        """The storyboard, once there is one."""
        answer = await service.storyboard(job_id, floor=_floor(if_none_match))
        return _raw(*respond(answer, if_none_match, accept_encoding))

    @routes.get(
        "/{job_id}/video",
        response_class=FileResponse,
        responses={200: {"content": {"video/mp4": {}}}, 206: {"content": {"video/mp4": {}}}},
    )
    async def video(job_id: JobIdInPath) -> Response:
        """The video of a completed job, whole or by `Range`."""
        answer = await service.poll(job_id)
        job = json.loads(identity_body(answer.entry))
        if job["status"] != Status.COMPLETED:
            raise IllegalMove(f"Job {job_id} has no video yet: it is {job['status']}.")
        own = f"/api/v2/jobs/{job_id}/video"
        path = videos / f"{job_id}.mp4"
        if job["video_url"] != own:
            raise IllegalMove(f"The video of job {job_id} is kept elsewhere, see its video_url.")
        if not await asyncio.to_thread(path.is_file):
            raise HTTPException(404, f"The video of job {job_id} is no longer there.")
        return FileResponse(path, media_type="video/mp4", headers={"Cache-Control": "private"})

    @routes.post("/{job_id}/approve", response_model=JobBody)
    async def approve(job_id: JobIdInPath) -> Response:
        """The storyboard is as it should be."""
        return _changed(await service.approve(job_id))

    @routes.post("/{job_id}/render", status_code=202, response_model=JobBody)
    async def render(job_id: JobIdInPath) -> Response:
        """Begin to render."""
        return _changed(await service.render(job_id), 202)

    @routes.post("/{job_id}/cancel", response_model=JobBody)
    async def cancel(job_id: JobIdInPath) -> Response:
        """Stop the job, whatever it is at."""
        return _changed(await service.cancel(job_id))

    @routes.post("/{job_id}/progress", response_model=JobBody)
    async def progress(job_id: JobIdInPath, body: ReportProgress) -> Response:
        """A worker says how far it is."""
        job = await service.report_progress(
            job_id, body.percent, body.stage, body.message, worker=True
        )
        return _changed(job)

    @routes.post("/{job_id}/complete", response_model=JobBody)
    async def complete(job_id: JobIdInPath, body: Complete | None = None) -> Response:
        """A worker has finished."""
        video_url = None if body is None else body.video_url
        return _changed(await service.complete(job_id, video_url, worker=True))

    @routes.post("/{job_id}/fail", response_model=JobBody)
    async def fail(job_id: JobIdInPath, body: Fail) -> Response:
        """A worker has given up."""
        return _changed(await service.fail(job_id, body.error, worker=True))

    return routes


def _changed(job: Job, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    document = job_document(job)
    tag = {"ETag": etag(job.version, gzip=False), "Cache-Control": "private, no-cache"}
    return Response(document.body, status, {**tag, **(headers or {})}, "application/json")


def _raw(status: int, headers: dict[str, str], body: bytes) -> Response:
    return Response(body, status, headers)


def _items(bodies: list[bytes], name: str, value: object) -> Response:
    body = b'{"items":[%b],"%b":%b}' % (
        b",".join(bodies),
        name.encode(),
        json.dumps(value).encode(),
    )
    headers = {"Cache-Control": "private, no-cache"}
    return Response(body, headers=headers, media_type="application/json")


def _floor(if_none_match: str | None) -> int:

    return conditions(if_none_match).floor


def _ids(text: str) -> list[int]:
    parts = text.split(",")
    if len(parts) > _MOST_IDS:
        raise _invalid("query.ids", f"at most {_MOST_IDS} ids")
    ids = []
    for part in parts:
        number = int(part) if part.isascii() and part.isdigit() and len(part) < 20 else 0  # noqa: PLR2004
        if not 1 <= number <= LARGEST_ID:
            raise _invalid("query.ids", "job ids, separated by commas")
        ids.append(number)
    return list(dict.fromkeys(ids))


def _cursor(job_id: int) -> str:
    return base64.urlsafe_b64encode(str(job_id).encode()).decode().rstrip("=")


def _below(cursor: str) -> int:
    try:
        text = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode("ascii")
    except (binascii.Error, ValueError):
        text = ""
    if not (text.isdigit() and 1 <= int(text) <= LARGEST_ID):
        raise _invalid("query.cursor", "a next_cursor of an earlier page")
    return int(text)


def _invalid(field: str, message: str) -> RequestValidationError:
    return RequestValidationError([{"loc": field.split("."), "msg": message, "type": "value"}])

"""The endpoints of what a job makes: its storyboard, and its video."""

from __future__ import annotations

import asyncio
import stat
from typing import TYPE_CHECKING, Any

from fastapi import HTTPException, Request, Response
from fastapi.responses import FileResponse

from app.auth.middleware import caller_of
from app.http.problems import problem
from app.jobs.api import responses
from app.jobs.api.parameters import AcceptEncoding, IfNoneMatch, JobIdInPath, joined
from app.jobs.service import IllegalTransition
from app.jobs.states import Status
from app.rendering.storyboard import Storyboard
from jobcache.http.conditional_get import conditions, holds, respond

if TYPE_CHECKING:
    import os
    from pathlib import Path

    from fastapi import APIRouter
    from starlette.types import Message, Receive, Scope, Send

    from app.jobs.service import JobService


def add_to(routes: APIRouter, service: JobService, videos: Path) -> None:
    """Add the endpoints to a router.

    Args:
        routes: the router.
        service: for the jobs.
        videos: the directory of finished videos.
    """

    @routes.get("/{job_id}/storyboard", response_model=Storyboard, responses=responses.STORYBOARD)
    async def storyboard(
        job_id: JobIdInPath,
        request: Request,
        if_none_match: IfNoneMatch = None,
        accept_encoding: AcceptEncoding = None,
    ) -> Response:
        """Return the storyboard, once there is one."""
        tags = joined(if_none_match)
        result = await service.storyboard(
            job_id, caller_of(request), min_version=conditions(tags).min_version
        )
        return respond(result, tags, joined(accept_encoding)).response()

    @routes.get(
        "/{job_id}/video",
        response_class=FileResponse,
        responses=responses.VIDEO,
        openapi_extra=responses.RANGE,
    )
    async def video(
        job_id: JobIdInPath, request: Request, if_none_match: IfNoneMatch = None
    ) -> Response:
        """Return the video of a completed job, or a part of it by `Range`."""
        result = await service.poll(job_id, caller_of(request))
        job = result.json()
        if job["status"] != Status.COMPLETED:
            raise IllegalTransition(f"Job {job_id} has no video yet: it is {job['status']}.")
        return await _stored(job, videos / f"{job_id}.mp4", joined(if_none_match))


async def _stored(job: dict[str, Any], path: Path, if_none_match: str | None) -> Response:
    job_id = job["id"]
    if job["video_url"] is None:
        raise IllegalTransition(f"Job {job_id} has no video here: its worker named none.")
    if job["video_url"] != f"/api/v2/jobs/{job_id}/video":
        raise IllegalTransition(f"The video of job {job_id} is kept elsewhere, see its video_url.")
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
    """A file that is sent by `Range` as RFC 9110 has it, with problem documents for errors."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the file, or the part of it that the request names."""
        refused: Message | None = None

        async def pass_on(message: Message) -> None:
            nonlocal refused
            if message["type"] == "http.response.start" and message["status"] in _RANGE_REFUSED:
                refused = message
            if refused is None:
                await send(message)

        def counts(name: bytes, value: bytes) -> bool:
            # 14.2: a Range is for GET, and one in an unknown unit counts as none
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


def _stat(path: Path) -> os.stat_result | None:
    try:
        result = path.stat()
    except FileNotFoundError:
        return None
    return result if stat.S_ISREG(result.st_mode) else None

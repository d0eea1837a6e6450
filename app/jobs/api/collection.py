"""The endpoints of all jobs: create one, list them, find some by id."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Annotated

from fastapi import Query, Request, Response

from app.auth.callers import Role
from app.auth.middleware import caller_of
from app.auth.rules import forbidden, only
from app.jobs.api import responses
from app.jobs.api.answers import changed_job, listed_jobs, prefix_of
from app.jobs.api.parameters import (
    IdempotencyKey,
    Limit,
    invalid,
    read_cursor,
    read_ids,
    write_cursor,
)
from app.jobs.schemas import ClientId, CreateJob, JobBatch, JobBody, JobPage
from app.jobs.states import Status
from app.jobs.storage import NewJob

if TYPE_CHECKING:
    from fastapi import APIRouter

    from app.jobs.service import JobService

_PAGE = 20


def add_to(routes: APIRouter, service: JobService) -> None:
    """Add the endpoints to a router."""

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
        location = f"{prefix_of(request)}/api/v2/jobs/{job.id}"
        return changed_job(service.document(job), request, 202, {"Location": location})

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
        """List jobs, newest first; or, with `ids`, return up to 100 jobs by id."""
        if ids is not None:
            if any(other is not None for other in (client_id, status, limit, cursor)):
                raise invalid("query.ids", "goes with no other parameter")
            wanted = read_ids(ids)
            found = await service.poll_many(wanted, caller_of(request))
            missing = [job_id for job_id in wanted if job_id not in found]
            return listed_jobs(request, list(found.values()), "missing", missing)
        below = None if cursor is None else read_cursor(cursor)
        page = await service.page(
            caller_of(request),
            client_id=client_id,
            status=status,
            below=below,
            limit=_PAGE if limit is None else limit,
        )
        following = None if page.next_below is None else write_cursor(page.next_below)
        return listed_jobs(request, page.bodies, "next_cursor", following)

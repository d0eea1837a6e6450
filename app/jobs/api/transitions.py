"""The endpoints that change the state of a job: those of its client, and those of a worker."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import Request, Response

from app.auth.callers import Role
from app.auth.middleware import caller_of
from app.auth.rules import only
from app.jobs.api import responses
from app.jobs.api.answers import changed_job
from app.jobs.api.parameters import JobIdInPath
from app.jobs.schemas import Complete, Fail, JobBody, ReportProgress

if TYPE_CHECKING:
    from fastapi import APIRouter

    from app.jobs.service import JobService


def add_to(routes: APIRouter, service: JobService) -> None:
    """Add the endpoints to a router."""
    _add_for_clients(routes, service)
    _add_for_workers(routes, service)


def _add_for_clients(routes: APIRouter, service: JobService) -> None:
    @routes.post(
        "/{job_id}/approve", response_model=JobBody, **only(Role.CLIENT, answers=responses.CHANGED)
    )
    async def approve(job_id: JobIdInPath, request: Request) -> Response:
        """Approve the storyboard, so that the video can be rendered."""
        return changed_job(
            service.document(await service.approve(job_id, caller_of(request))), request
        )

    @routes.post(
        "/{job_id}/render",
        status_code=202,
        response_model=JobBody,
        **only(Role.CLIENT, answers=responses.BEGUN),
    )
    async def render(job_id: JobIdInPath, request: Request) -> Response:
        """Start to render the video."""
        return changed_job(
            service.document(await service.render(job_id, caller_of(request))), request, 202
        )

    @routes.post(
        "/{job_id}/cancel", response_model=JobBody, **only(Role.CLIENT, answers=responses.CHANGED)
    )
    async def cancel(job_id: JobIdInPath, request: Request) -> Response:
        """Cancel the job, unless it has ended."""
        return changed_job(
            service.document(await service.cancel(job_id, caller_of(request))), request
        )


def _add_for_workers(routes: APIRouter, service: JobService) -> None:
    @routes.post(
        "/{job_id}/progress",
        response_model=JobBody,
        **only(Role.WORKER, answers=responses.CHANGED),
    )
    async def progress(job_id: JobIdInPath, body: ReportProgress, request: Request) -> Response:
        """Report the progress of a worker."""
        job = await service.report_progress(
            job_id, body.percent, body.stage, body.message, worker=True
        )
        return changed_job(service.document(job), request)

    @routes.post(
        "/{job_id}/complete",
        response_model=JobBody,
        **only(Role.WORKER, answers=responses.CHANGED),
    )
    async def complete(
        job_id: JobIdInPath, request: Request, body: Complete | None = None
    ) -> Response:
        """Report that a worker has finished the video."""
        video_url = None if body is None else body.video_url
        return changed_job(
            service.document(await service.complete(job_id, video_url, worker=True)), request
        )

    @routes.post(
        "/{job_id}/fail", response_model=JobBody, **only(Role.WORKER, answers=responses.CHANGED)
    )
    async def fail(job_id: JobIdInPath, body: Fail, request: Request) -> Response:
        """Report that a worker has failed."""
        return changed_job(
            service.document(await service.fail(job_id, body.error, worker=True)), request
        )

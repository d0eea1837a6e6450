"""The answers to errors of jobs, as problem documents: one table for all ways to answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from app.http.problems import problem, unavailable
from app.jobs.service import IllegalTransition, JobNotFound, RepeatMismatch, TooManyJobs
from jobcache import SourceUnavailable
from jobcache.errors import CacheError

if TYPE_CHECKING:
    from fastapi import FastAPI, Request
    from fastapi.responses import JSONResponse

_FULL_RETRY_AFTER = "30"  # seconds: about how long a job takes to end
_STATUS: dict[type[Exception], int] = {
    JobNotFound: 404,
    IllegalTransition: 409,
    RepeatMismatch: 422,
    TooManyJobs: 429,
}


def to_problem(error: Exception, path: str) -> JSONResponse | None:
    """Return the answer to an error; None for an error that should not have happened."""
    if isinstance(error, SourceUnavailable | CacheError):
        return unavailable(error, path)
    status = _STATUS.get(type(error))
    if status is None:
        return None
    headers = {"Retry-After": _FULL_RETRY_AFTER} if isinstance(error, TooManyJobs) else None
    return problem(status, str(error), instance=path, headers=headers)


def install(app: FastAPI) -> None:
    """Answer the errors of jobs with problem documents."""

    async def answer(request: Request, error: Exception) -> JSONResponse:
        response = to_problem(error, request.url.path)
        if response is None:
            raise error
        return response

    for kind in _STATUS:
        app.add_exception_handler(kind, answer)

"""Errors as problem documents (RFC 9457). No traceback ever leaves the process."""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, cast

from fastapi.encoders import jsonable_encoder
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match

from app.jobs.schemas import MOST_ERRORS
from app.jobs.service import IllegalMove, JobNotFound, RepeatMismatch, TooManyJobs
from jobcache import CacheError, SourceUnavailable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fastapi import FastAPI, Request

logger = logging.getLogger("app")
_METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")
_LONGEST_FIELD, _LONGEST_MESSAGE = 100, 500
_FULL_RETRY_AFTER = "30"  # seconds: about what a job needs to end
_RETRY_AFTER = "2"  # seconds: about what a database or cache that restarts needs


def problem(
    status: int,
    detail: str,
    *,
    instance: str,
    headers: Mapping[str, str] | None = None,
    **members: Any,  # noqa: ANN401 - extension members are the caller's
) -> JSONResponse:
    """A problem document."""
    content = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "instance": instance,
        **members,
    }
    # Some of these are sent without the application, which adds this to all other answers.
    headers = {**(headers or {}), "X-Content-Type-Options": "nosniff"}
    return JSONResponse(content, status, headers=headers, media_type="application/problem+json")


def install(app: FastAPI) -> None:
    """Answer every error of the service with a problem document."""

    async def simple(request: Request, error: Exception) -> JSONResponse:
        return problem(_STATUS[type(error)], str(error), instance=request.url.path)

    async def full(request: Request, error: Exception) -> JSONResponse:
        headers = {"Retry-After": _FULL_RETRY_AFTER}
        return problem(429, str(error), instance=request.url.path, headers=headers)

    async def unavailable(request: Request, error: Exception) -> JSONResponse:
        # Both say so in the log themselves.
        what = "database" if isinstance(error, SourceUnavailable) else "cache"
        return problem(
            503,
            f"The {what} cannot be reached; try again soon.",
            instance=request.url.path,
            headers={"Retry-After": _RETRY_AFTER},
        )

    async def invalid(request: Request, error: Exception) -> JSONResponse:
        failure = cast("RequestValidationError", error)
        # A client's own words may be long, and many.
        errors = [
            {
                "field": ".".join(map(str, item["loc"]))[:_LONGEST_FIELD],
                "message": str(item["msg"])[:_LONGEST_MESSAGE],
            }
            for item in failure.errors()[:MOST_ERRORS]
        ]
        return problem(
            422,
            "The request is not valid: "
            + "; ".join(f"{item['field']}: {item['message']}" for item in errors[:5]),
            instance=request.url.path,
            errors=jsonable_encoder(errors),
        )

    async def http(request: Request, error: Exception) -> JSONResponse:
        failure = cast("HTTPException", error)
        if failure.status_code == HTTPStatus.BAD_REQUEST:
            # FastAPI's word for a body that breaks its parser; to the client it is as any other.
            errors = [{"field": "body", "message": str(failure.detail)}]
            return problem(422, str(failure.detail), instance=request.url.path, errors=errors)
        headers = failure.headers
        if failure.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            headers = {"Allow": ", ".join(_allowed(request))}
        return problem(
            failure.status_code,
            str(failure.detail),
            instance=request.url.path,
            headers=headers,
        )

    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        # Without the traceback: the error goes on to the server, which logs that.
        logger.error("%s %s failed: %s", request.method, request.url.path, type(error).__name__)
        return problem(500, "The service failed; its log says why.", instance=request.url.path)

    for kind in _STATUS:
        app.add_exception_handler(kind, simple)
    app.add_exception_handler(TooManyJobs, full)
    app.add_exception_handler(SourceUnavailable, unavailable)
    app.add_exception_handler(CacheError, unavailable)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, unexpected)


def _allowed(request: Request) -> list[str]:
    # Each method has a route of its own, and the router names that of the first it finds only.
    asked = {name: request.scope.get(name, "") for name in ("path", "root_path")}
    return [
        method
        for method in _METHODS
        if any(
            route.matches({"type": "http", "method": method, "headers": [], **asked})[0]
            is Match.FULL
            for route in request.app.routes
        )
    ]


_STATUS: dict[type[Exception], int] = {JobNotFound: 404, IllegalMove: 409, RepeatMismatch: 422}

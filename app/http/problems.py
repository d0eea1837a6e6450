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

from app.http.request_body import MOST_ERRORS
from jobcache import SourceUnavailable
from jobcache.errors import CacheError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fastapi import FastAPI, Request

logger = logging.getLogger("app")
_METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")
_LONGEST_FIELD, _LONGEST_MESSAGE = 100, 500
_RETRY_AFTER = "2"  # seconds: about how long a database or cache takes to restart


def problem(
    status: int,
    detail: str,
    *,
    instance: str,
    headers: Mapping[str, str] | None = None,
    **members: Any,  # noqa: ANN401 - extension members are the caller's
) -> JSONResponse:
    """Return a problem document as a response.

    Args:
        status: the HTTP status.
        detail: what went wrong, for people.
        instance: the path of the request.
        headers: further headers of the response.
        members: extension members of the document.
    """
    content = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "instance": instance,
        **members,
    }
    return JSONResponse(content, status, headers=headers, media_type="application/problem+json")


def unavailable(error: Exception, path: str) -> JSONResponse:
    """Return 503 for a database or a cache that cannot be reached; both log that themselves."""
    part = "database" if isinstance(error, SourceUnavailable) else "cache"
    detail = f"The {part} cannot be reached; try again soon."
    return problem(503, detail, instance=path, headers={"Retry-After": _RETRY_AFTER})


def internal_error(error: Exception, method: str, path: str) -> JSONResponse:
    """Log an unexpected error in one line, and return 500."""
    logger.error("%s %s failed: %s", method, path, type(error).__name__)
    return problem(500, "The service failed; its log says why.", instance=path)


def install(app: FastAPI) -> None:
    """Answer every error that FastAPI, the cache or a bug raises with a problem document."""

    async def source_or_cache(request: Request, error: Exception) -> JSONResponse:
        return unavailable(error, request.url.path)

    async def invalid(request: Request, error: Exception) -> JSONResponse:
        failure = cast("RequestValidationError", error)
        # The texts that a client sent may be long, and many.
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
            # FastAPI's answer to a body that breaks its parser; to clients it is invalid input.
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
        # Starlette raises the error again after this, and the server logs its traceback.
        return internal_error(error, request.method, request.url.path)

    app.add_exception_handler(SourceUnavailable, source_or_cache)
    app.add_exception_handler(CacheError, source_or_cache)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, unexpected)


def _allowed(request: Request) -> list[str]:
    # Each method has its own route, and the router names only the method of the first match.
    target = {name: request.scope.get(name, "") for name in ("path", "root_path")}
    return [
        method
        for method in _METHODS
        if any(
            route.matches({"type": "http", "method": method, "headers": [], **target})[0]
            is Match.FULL
            for route in request.app.routes
        )
    ]

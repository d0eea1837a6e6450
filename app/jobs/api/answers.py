"""Responses with documents of jobs, whose links begin as the client needs them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import Response

from app.jobs.documents import with_prefix
from jobcache.http.batch import items_body
from jobcache.http.conditional_get import etag

if TYPE_CHECKING:
    from fastapi import Request

    from jobcache import Document


def prefix_of(request: Request) -> str:
    """Return the path under which the client has the service: links begin with it."""
    prefix: str = request.scope.get("root_path", "")
    return prefix.rstrip("/")


def changed_job(
    document: Document, request: Request, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    """Return a response with the new document of a job."""
    body = with_prefix(document.body, prefix_of(request))
    tag = {"ETag": etag(document.version, gzip=False), "Cache-Control": "private, no-cache"}
    more = {} if headers is None else headers
    return Response(body, status, {**tag, **more}, "application/json")


def listed_jobs(request: Request, bodies: list[bytes], name: str, value: object) -> Response:
    """Return the documents of jobs as `items`, beside one other member."""
    body = with_prefix(items_body(bodies, name, value), prefix_of(request))
    headers = {"Cache-Control": "private, no-cache"}
    return Response(body, headers=headers, media_type="application/json")

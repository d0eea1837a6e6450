"""The answers of the operations on jobs, for the OpenAPI document: headers, links, problems."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from app.http.openapi import problems
from app.jobs.schemas import LARGEST_ID
from jobcache.http.fastapi.responses import NOT_CACHED, header, polled, streamed

if TYPE_CHECKING:
    from jobcache.http.fastapi.responses import Responses

_CHANGED_HEADERS = {
    "ETag": header("The version of the job", pattern='^"[1-9][0-9]*-0"$'),
    **NOT_CACHED,
}
_VIDEO_HEADERS = {
    "ETag": header("The version of the file", pattern='^"[0-9a-f]+"$'),
    "Cache-Control": header("For its client only", const="private"),
}
_FILE_HEADERS = {
    **_VIDEO_HEADERS,
    "Accept-Ranges": header("A part can be asked for", const="bytes"),
    "Last-Modified": header("When the video was made"),
}


def _link(operation: str, job_id: str = "$response.body#/id", **parameters: str) -> dict[str, Any]:
    return {"operationId": operation, "parameters": {"job_id": job_id, **parameters}}


def _unchanged(operation: str, job_id: str = "$response.body#/id") -> dict[str, Any]:
    return _link(operation, job_id, **{"if-none-match": "$response.header.ETag"})


_STEPS = ("storyboard", "video", "approve", "render", "cancel", "progress", "complete", "fail")
_JOB: dict[str, Any] = {
    "description": "The job as it is now",
    "headers": _CHANGED_HEADERS,
    "links": {step: _link(step) for step in ("poll", *_STEPS)} | {"unchanged": _unchanged("poll")},
}
_LOCATION = {"Location": header("Where to poll", pattern="^(/[^/]+)*/api/v2/jobs/[1-9][0-9]*$")}

CREATED: Responses = {
    202: {**_JOB, "headers": _LOCATION | _CHANGED_HEADERS},
    **problems(413, 422, 429, 503),
}

CHANGED: Responses = {200: _JOB, **problems(404, 409, 413, 422, 503)}
"""A transition of a job."""

BEGUN: Responses = {202: _JOB, **problems(404, 409, 413, 422, 503)}
"""A transition that goes on after the answer."""

FOUND: Responses = {
    200: {
        "description": "Jobs",
        "headers": NOT_CACHED,
        "links": {
            "newest": _link("poll", "$response.body#/items/0/id"),
            "next": {
                "operationId": "find",
                "parameters": {"cursor": "$response.body#/next_cursor"},
            },
        },
    },
    **problems(422, 503),
}


def _cached(operation: str, answers: Responses, *errors: int) -> Responses:
    links = {"unchanged": _unchanged(operation, "$request.path.job_id")}
    return {**answers, 200: {**answers[200], "links": links}, **problems(*errors)}


POLLED = _cached("poll", polled(), 404, 422, 503)
STORYBOARD = _cached("storyboard", polled(held=False), 404, 409, 422, 503)
EVENTS: Responses = {**streamed(), **problems(404, 422, 503)}

VIDEO: Responses = {
    200: {"description": "The video", "headers": _FILE_HEADERS, "content": {"video/mp4": {}}},
    206: {
        "description": "The part of it that Range names",
        "headers": {**_FILE_HEADERS, "Content-Range": header("Which part")},
        "content": {"video/mp4": {}, "multipart/byteranges": {}},
    },
    304: {"description": "The tag in If-None-Match is the video's", "headers": _VIDEO_HEADERS},
    **problems(400, 404, 409, 416, 422, 503),
}

RANGE: dict[str, Any] = {
    "parameters": [
        {
            "name": "range",
            "in": "header",
            "description": "`bytes=0-99` and the like; any other unit is as none",
            "schema": {"type": "string"},
        }
    ]
}

IDS: dict[str, Any] = {
    "parameters": [
        {
            "name": "ids",
            "in": "query",
            "description": "Up to 100 ids, `1,2,3`; goes with no other parameter",
            "style": "form",
            "explode": False,
            "schema": {
                "type": "array",
                "items": {"type": "integer", "minimum": 1, "maximum": LARGEST_ID},
                "minItems": 1,
                "maxItems": 100,
            },
        }
    ]
}

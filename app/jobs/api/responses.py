"""The answers of the operations on jobs, for the OpenAPI document: headers, links, problems."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from app.http.openapi import NOT_CACHED, RETRY_AFTER, header, problems
from app.jobs.schemas import LARGEST_ID

if TYPE_CHECKING:
    from app.http.openapi import Responses

_CHANGED_HEADERS = {
    "ETag": header("The version of the job", pattern='^"[1-9][0-9]*-0"$'),
    **NOT_CACHED,
}
_POLL_HEADERS = {
    "ETag": header("The version, and which representation of it", pattern='^"[1-9][0-9]*-[0-9]+"$'),
    **NOT_CACHED,
    "Vary": header("Large bodies go compressed to those who accept it", const="Accept-Encoding"),
    "Cache-Status": header(
        "Where the answer came from (RFC 9211)",
        pattern="^jobcache; (hit|fwd=(miss|stale|bypass))(; [a-z-]+(=[A-Za-z0-9_-]+)?)*$",
    ),
    "Age": header("Seconds in the cache", type="integer", minimum=0, required=False),
    "Retry-After": {
        **RETRY_AFTER,
        "description": "When to poll again; absent once nothing will change",
        "required": False,
    },
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


def _cached(operation: str, *errors: int) -> Responses:
    unchanged = _unchanged(operation, "$request.path.job_id")
    return {
        200: {
            "description": "What it is now",
            "headers": _POLL_HEADERS,
            "links": {"unchanged": unchanged},
        },
        304: {
            "description": "The version in If-None-Match is the newest",
            "headers": _POLL_HEADERS,
        },
        **problems(*errors),
    }


_APPLIED = {
    "Preference-Applied": header(
        "The request was held, for as long as it had to be (RFC 7240)",
        pattern="^wait=[0-9]+$",
        required=False,
    )
}

POLLED = _cached("poll", 404, 422, 503)
for _status in (200, 304):
    POLLED[_status]["headers"] = _POLL_HEADERS | _APPLIED
STORYBOARD = _cached("storyboard", 404, 409, 422, 503)

_STREAMED = {"Cache-Control": header("Each stream is for one client", const="no-cache")}
_EVENT: dict[str, Any] = {
    "description": "One event; `retry`, in milliseconds, comes with the first",
    "type": "object",
    "required": ["id", "event", "data"],
    "properties": {
        "id": {"type": "string", "pattern": "^[1-9][0-9]*$"},
        "event": {"const": "status"},
        "data": {"type": "string", "contentMediaType": "application/json"},
        "retry": {"type": "integer", "minimum": 0},
    },
}

EVENTS: Responses = {
    200: {
        "description": "Events, one for each version that there was time for",
        "headers": {
            **_STREAMED,
            "X-Accel-Buffering": header("Events go out as they come", const="no"),
        },
        "content": {"text/event-stream": {"schema": _EVENT}},
    },
    204: {
        "description": "Last-Event-ID names the last version there will be: do not come again",
        "headers": _STREAMED,
    },
    **problems(404, 422, 503),
}

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

"""What the answers promise beyond their bodies, for the OpenAPI document: problems, headers, links.

An operation lists every status it answers with and no other; the tests hold it to that. In no list
are a failure of the service itself (500), which is outside of any contract, and a method that a
path does not have (405, with `Allow`), which is no operation.
"""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from app.jobs.schemas import LARGEST_ID, MOST_ERRORS

if TYPE_CHECKING:
    from fastapi import FastAPI

Responses = dict[int | str, dict[str, Any]]
"""As FastAPI takes them."""

_SCHEMAS = "#/components/schemas/{model}"
_ABOUT = """Video jobs, and their status from a coherent cache.

Every error is a problem document (RFC 9457). `HEAD` is answered wherever `GET` is; a method that is
not listed is 405, and `Allow` names those that are."""


class FieldProblem(BaseModel):
    """What is wrong with one part of a request."""

    model_config = ConfigDict(extra="forbid")

    field: str
    message: str


class Problem(BaseModel):
    """An error (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    errors: Annotated[list[FieldProblem], Field(max_length=MOST_ERRORS)] | None = None


def header(description: str, *, required: bool = True, **schema: Any) -> dict[str, Any]:  # noqa: ANN401
    """A header of an answer; `schema` describes its value, which is a string unless it says so."""
    return {
        "description": description,
        "required": required,
        "schema": {"type": "string", **schema},
    }


_RETRY_AFTER = header("Seconds until asking again makes sense", type="integer", minimum=1)
_NOT_CACHED = {"Cache-Control": header("Ask again each time", const="private, no-cache")}
_CHANGED_HEADERS = {
    "ETag": header("The version of the job", pattern='^"[1-9][0-9]*-0"$'),
    **_NOT_CACHED,
}
_POLL_HEADERS = {
    "ETag": header("The version, and which representation of it", pattern='^"[1-9][0-9]*-[0-9]+"$'),
    **_NOT_CACHED,
    "Vary": header("Large bodies go compressed to those who accept it", const="Accept-Encoding"),
    "Cache-Status": header(
        "Where the answer came from (RFC 9211)",
        pattern="^jobcache; (hit|fwd=(miss|stale|bypass))(; [a-z-]+(=[A-Za-z0-9_-]+)?)*$",
    ),
    "Age": header("Seconds in the cache", type="integer", minimum=0, required=False),
    "Retry-After": {
        **_RETRY_AFTER,
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

_CHALLENGE = {"WWW-Authenticate": header("What kind of key is needed (RFC 6750)")}

_PROBLEMS: dict[int, tuple[str, dict[str, Any]]] = {
    400: ("There is not exactly one Host header; or the Range cannot be read", {}),
    401: ("There is no key, or none that is known", _CHALLENGE),
    403: ("The key's role, or its client, does not allow this", _CHALLENGE),
    404: ("There is no such job", {}),
    409: ("The job's state does not allow this", {}),
    413: ("The body is too large", {}),
    414: ("The URL is too long", {}),
    416: (
        "The Range is not within the video",
        {"Content-Range": header("How long the video is", pattern=r"^bytes \*/[0-9]+$")},
    ),
    421: ("This service does not answer for the host that Host names", {}),
    422: ("The request is not valid", {}),
    429: ("Too many calls, or too many unfinished jobs", {"Retry-After": _RETRY_AFTER}),
    431: ("The headers are too large, or too many", {}),
    503: ("The database, or the cache, cannot be reached", {"Retry-After": _RETRY_AFTER}),
}


def problems(*statuses: int) -> Responses:
    """The errors that an operation answers with."""
    schema = {"schema": {"$ref": _SCHEMAS.format(model="Problem")}}
    return {
        status: {
            "description": _PROBLEMS[status][0],
            "content": {"application/problem+json": schema},
            "headers": _PROBLEMS[status][1],
        }
        for status in statuses
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
"""A move of a job."""

BEGUN: Responses = {202: _JOB, **problems(404, 409, 413, 422, 503)}
"""A move that goes on after the answer."""

FOUND: Responses = {
    200: {
        "description": "Jobs",
        "headers": _NOT_CACHED,
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


def publish(app: FastAPI) -> None:
    """Complete the application's document with what is so of every operation."""
    generate = app.openapi

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            _complete(generate())
        return generate()

    app.openapi = document  # type: ignore[method-assign]  # FastAPI's own way to extend it


_THIS_DOCUMENT: dict[str, Any] = {
    "summary": "Openapi",
    "description": "This document.",
    "operationId": "openapi",
    "responses": {
        "200": {
            "description": "OpenAPI 3.1",
            "content": {"application/json": {"schema": {"type": "object"}}},
        }
    },
}


def _complete(document: dict[str, Any]) -> None:
    document["info"]["description"] = _ABOUT
    problem = Problem.model_json_schema(ref_template=_SCHEMAS)
    document["components"]["schemas"] |= {**problem.pop("$defs"), "Problem": problem}
    document["paths"]["/openapi.json"] = {"get": deepcopy(_THIS_DOCUMENT)}
    for path in document["paths"].values():
        for operation in path.values():
            for parameter in operation.get("parameters", ()):
                without_null(parameter["schema"])
        if "get" in path:
            path["head"] = _head(path["get"])


def without_null(schema: dict[str, Any]) -> None:
    """Describe what is there or is not, but is never null, though its Python type has None."""
    choices = [choice for choice in schema.pop("anyOf", ()) if choice != {"type": "null"}]
    for choice in choices:
        schema |= choice


def _head(get: dict[str, Any]) -> dict[str, Any]:
    # As GET, without bodies, and so without what links would read from them; and a Range is
    # for GET (RFC 9110, 14.2).
    answers = {
        status: {name: answer[name] for name in answer if name not in {"content", "links"}}
        for status, answer in get["responses"].items()
        if status not in {"206", "400", "416"}
    }
    parameters = [each for each in get.get("parameters", ()) if each["name"] != "range"]
    name = f"{get['operationId']}_head"
    return {**get, "operationId": name, "parameters": parameters, "responses": answers}

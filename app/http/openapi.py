"""Parts of the OpenAPI document that all operations share: problems, headers, `HEAD`.

An operation lists every status that it answers with, and no other; the tests check that. Two are in
no list: a failure of the service itself (500), which no contract covers, and 405 (with `Allow`),
because a method that a path does not have is not an operation.
"""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from app.http.request_body import MOST_ERRORS
from jobcache.http.fastapi.responses import RETRY_AFTER, header

if TYPE_CHECKING:
    from fastapi import FastAPI

    from jobcache.http.fastapi.responses import Responses

_SCHEMAS = "#/components/schemas/{model}"
_ABOUT = """Video jobs, and their status from a coherent cache.

Every error is a problem document (RFC 9457). `HEAD` is answered wherever `GET` is; a method that is
not listed is 405, and `Allow` names those that are."""


class FieldProblem(BaseModel):
    """The error in one part of a request."""

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
    429: ("Too many calls, or too many unfinished jobs", {"Retry-After": RETRY_AFTER}),
    431: ("The headers are too large, or too many", {}),
    503: ("The database, or the cache, cannot be reached", {"Retry-After": RETRY_AFTER}),
}


def problems(*statuses: int) -> Responses:
    """Describe the errors that an operation answers with."""
    schema = {"schema": {"$ref": _SCHEMAS.format(model="Problem")}}
    return {
        status: {
            "description": _PROBLEMS[status][0],
            "content": {"application/problem+json": schema},
            "headers": _PROBLEMS[status][1],
        }
        for status in statuses
    }


def publish(app: FastAPI) -> None:
    """Complete the application's document with the facts that hold for every operation."""
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
    """Remove null from a schema, for a value that may be absent but never null."""
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

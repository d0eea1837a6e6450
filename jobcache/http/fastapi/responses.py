"""The responses to polls and event streams, for OpenAPI documents."""

from __future__ import annotations

from typing import Any

Responses = dict[int | str, dict[str, Any]]
"""Responses by status, in the form of FastAPI's argument `responses`."""


def header(description: str, *, required: bool = True, **schema: Any) -> dict[str, Any]:  # noqa: ANN401
    """Describe a header of a response; `schema` describes its value, a string by default."""
    return {
        "description": description,
        "required": required,
        "schema": {"type": "string", **schema},
    }


RETRY_AFTER = header("Seconds until asking again makes sense", type="integer", minimum=1)
NOT_CACHED = {"Cache-Control": header("Ask again each time", const="private, no-cache")}
POLL_HEADERS = {
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
APPLIED = {
    "Preference-Applied": header(
        "The request was held, for as long as it had to be (RFC 7240)",
        pattern="^wait=[0-9]+$",
        required=False,
    )
}
STREAMED = {"Cache-Control": header("Each stream is for one client", const="no-cache")}
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


_ERRORS: Responses = {
    404: {"description": "There is no such document for this client"},
    503: {
        "description": "The source of the document cannot be reached",
        "headers": {"Retry-After": RETRY_AFTER},
    },
}


def polled(*, held: bool = True) -> Responses:
    """Describe the responses to a poll; `held`: a poll can be held with `Prefer: wait`."""
    headers = POLL_HEADERS | APPLIED if held else POLL_HEADERS
    return {
        200: {"description": "What it is now", "headers": headers},
        304: {"description": "The version in If-None-Match is the newest", "headers": headers},
        **_ERRORS,
    }


def streamed() -> Responses:
    """Describe the responses that stream versions."""
    return {
        200: {
            "description": "Events, one for each version that there was time for",
            "headers": {
                **STREAMED,
                "X-Accel-Buffering": header("Events go out as they come", const="no"),
            },
            "content": {"text/event-stream": {"schema": _EVENT}},
        },
        204: {
            "description": "Last-Event-ID names the last version there will be: do not come again",
            "headers": STREAMED,
        },
        **_ERRORS,
    }


def batched() -> Responses:
    """Describe the responses to a batch."""
    return {200: {"description": "The documents", "headers": NOT_CACHED}, 503: _ERRORS[503]}

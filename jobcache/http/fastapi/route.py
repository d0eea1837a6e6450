"""The route class of polling endpoints: it answers HEAD, and releases dependencies first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi.routing import APIRoute
from starlette.routing import Match

from jobcache.http.deferred_response import answer_deferred
from jobcache.http.fastapi.parameters import read_by

if TYPE_CHECKING:
    from fastapi import Request
    from starlette.types import Message, Receive, Scope, Send

_HEAD = "jobcache.http.head"


class PollingRoute(APIRoute):
    """A route whose held requests hold nothing of the application.

    FastAPI keeps dependencies with `yield` until a response has been sent. For a long poll or an
    event stream that would be minutes: a database session for each. So this route sends a
    `DeferredResponse` after FastAPI has returned.

    It adds the headers that are read to the OpenAPI document, and answers HEAD where it answers
    GET. Dependencies see a GET; no body is sent.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401 - of `APIRoute`
        super().__init__(*arguments, **options)
        read = [each for one in self.dependant.dependencies for each in read_by(one.call)]
        if read:
            extra = {} if self.openapi_extra is None else self.openapi_extra
            self.openapi_extra = {**extra, "parameters": [*extra.get("parameters", ()), *read]}

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Match a HEAD request as a GET request."""
        if scope.get("method") == "HEAD" and self._has_no_head():
            scope = {**scope, "method": "GET"}
        return super().matches(scope)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request; send its deferred response after FastAPI has returned."""
        if scope["method"] == "HEAD" and self._has_no_head():
            scope = {**scope, "method": "GET", _HEAD: True}
            send = _without_body(send)
        await answer_deferred(super().handle, scope, receive, send)

    def _has_no_head(self) -> bool:
        methods = self.methods or ()
        return "GET" in methods and "HEAD" not in methods


def is_head(request: Request) -> bool:
    """Return True if the client's request was HEAD."""
    return request.method == "HEAD" or _HEAD in request.scope


def _without_body(send: Send) -> Send:
    async def send_head(message: Message) -> None:
        if message["type"] == "http.response.body":
            message = {**message, "body": b""}
        await send(message)

    return send_head

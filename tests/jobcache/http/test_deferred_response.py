"""A deferred response is sent once, after the application has returned."""

from __future__ import annotations

from typing import Any

from starlette.responses import PlainTextResponse

from jobcache.http.deferred_response import DeferredResponse, DeferredResponseMiddleware


async def test_with_the_middleware_twice_the_outer_one_sends_the_response() -> None:
    events: list[str] = []

    async def endpoint(scope: Any, receive: Any, send: Any) -> None:
        async def answer(scope: Any, receive: Any, send: Any) -> None:
            events.append("answered")
            await PlainTextResponse("later")(scope, receive, send)

        await DeferredResponse(answer)(scope, receive, send)
        events.append("endpoint has returned")

    inner = DeferredResponseMiddleware(endpoint)

    async def between(scope: Any, receive: Any, send: Any) -> None:
        await inner(scope, receive, send)
        events.append("inner middleware has returned")

    async def receive() -> Any:
        raise AssertionError("nothing is read")

    async def send(message: Any) -> None:
        sent.append(message["type"])

    sent: list[str] = []
    scope = {"type": "http", "path": "/", "headers": [], "method": "GET"}
    await DeferredResponseMiddleware(between)(scope, receive, send)
    assert events == ["endpoint has returned", "inner middleware has returned", "answered"]
    assert sent == ["http.response.start", "http.response.body"]

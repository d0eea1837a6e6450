"""The outermost middleware as a server sees it, where httpx cannot send such a request."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from app.http import loopback_only
from app.http.forwarded import TrustedProxies
from app.http.front import Front
from app.http.hosts import AllowedHosts
from tests.app.running import Start


def scope_of(kind: str = "http", *headers: tuple[bytes, bytes], **others: Any) -> dict[str, Any]:
    given = [(b"host", b"localhost"), *headers]
    return {"type": kind, "method": "GET", "path": "/x", "headers": given, "client": None} | others


async def sent_by(application: Any, scope: dict[str, Any]) -> list[Any]:
    """Return the messages that an application sends."""
    messages: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request"}

    async def send(message: Any) -> None:
        messages.append(message)

    await application(scope, receive, send)
    return messages


class Echo:
    """An application behind the front; it keeps the scopes that it was called with."""

    def __init__(self) -> None:
        self.scopes: list[Any] = []

    async def __call__(self, scope: Any, _: Any, send: Any) -> None:
        self.scopes.append(scope)
        await send({"type": "http.response.start", "status": 200, "headers": []})


def front(echo: Echo, *, closes_upgrades: bool = False) -> Front:
    return Front(
        echo,
        AllowedHosts(),
        (),
        keyed=False,
        proxies=TrustedProxies("127.0.0.1"),
        root_path="/ours",
        routes=(),
        closes_upgrades=closes_upgrades,
    )


@pytest.mark.parametrize("closes", [True, False])
async def test_a_request_for_an_upgrade_ends_its_connection_where_that_is_needed(
    *, closes: bool
) -> None:
    application = front(Echo(), closes_upgrades=closes)
    (start,) = await sent_by(application, scope_of("http", (b"upgrade", b"h2c")))
    assert ((b"connection", b"close") in start["headers"]) is closes
    (start,) = await sent_by(application, scope_of())
    assert (b"connection", b"close") not in start["headers"]


async def test_the_path_that_a_server_has_added_is_kept() -> None:
    echo = Echo()
    await sent_by(front(echo), scope_of(root_path="/servers"))
    await sent_by(front(echo), scope_of())
    assert [scope["root_path"] for scope in echo.scopes] == ["/servers", "/ours"]


async def test_what_is_no_request_over_http_is_passed_on_as_it_is() -> None:
    echo, scope = Echo(), scope_of("websocket")
    (message,) = await sent_by(front(echo), scope)
    assert message["headers"] == []
    assert echo.scopes == [scope]
    assert "root_path" not in scope


async def test_a_service_without_keys_refuses_other_addresses_than_loopback(start: Start) -> None:
    async with start(JOBCACHE_BACKEND="null") as service:
        transport, elsewhere = service.http._transport, ("192.0.2.1", 8000)
        assert isinstance(transport, httpx.ASGITransport)
        refused, body = await sent_by(transport.app, scope_of(server=elsewhere))
        assert refused["status"] == 403
        assert (b"x-content-type-options", b"nosniff") in refused["headers"]
        assert "JOBCACHE_API_KEYS" in json.loads(body["body"])["detail"]
        closed = await sent_by(transport.app, scope_of("websocket", server=elsewhere))
        assert closed == [{"type": "websocket.close", "code": 1008}]


@pytest.mark.parametrize(
    ("server", "local"),
    [
        (None, True),
        (("/run/service.sock", None), True),
        (("127.0.0.1", 80), True),
        (("::1", 80), True),
        (("::ffff:127.0.0.1", 80), True),
        (("192.0.2.1", 80), False),
        (("::ffff:192.0.2.1", 80), False),
    ],
)
def test_loopback_has_several_names(server: Any, *, local: bool) -> None:
    assert loopback_only.is_local(server) is local

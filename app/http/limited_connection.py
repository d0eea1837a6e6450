"""The set-up of a connection's limits, the same for both of uvicorn's protocols."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from app.http.connection_timer import ConnectionTimer
from app.http.early_responses import EarlyResponses
from app.http.graceful_close import GracefulTransport
from app.http.lifespan_state import LIMITS
from app.http.limits import ConnectionLimits

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from starlette.types import ASGIApp
    from uvicorn._types import ASGI3Application
    from uvicorn.protocols.http.h11_impl import H11Protocol
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

DEFAULT_LIMITS = ConnectionLimits()


def limit_connection(
    protocol: HttpToolsProtocol | H11Protocol,
    transport: asyncio.Transport,
    *,
    unread: Callable[[], bool],
    overdue: Callable[[], None],
    body_size: Callable[[], int],
) -> tuple[ConnectionLimits, GracefulTransport, ConnectionTimer]:
    """Prepare a new connection: its limits, its transport, and its timer.

    The application of the protocol is wrapped, so that early responses close the connection.

    Args:
        protocol: uvicorn's, before its own `connection_made`.
        transport: the connection.
        unread: tells whether the client may still be sending.
        overdue: called when the time limit of the timer is over.
        body_size: tells how many bytes of the current request's body have come.
    """
    limits = protocol.app_state.get(LIMITS, DEFAULT_LIMITS)
    guarded = GracefulTransport(transport, protocol.loop, limits, unread)
    timer = ConnectionTimer(protocol.loop, protocol.timeout_keep_alive, overdue)
    application = cast("ASGIApp", protocol.app)
    early = EarlyResponses(application, protocol, body_size)
    protocol.app = cast("ASGI3Application", early)
    return limits, guarded, timer

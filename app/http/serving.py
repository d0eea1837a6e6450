"""What a server process needs to hold requests: connections, few pauses, and an end to them.

uvicorn ends in this order: it tells each connection to shut down, waits until all answers under way
are complete, and only then tells the application. Requests that are held open would have it wait
for nothing, until they were cut off. So the first connection that is told passes it on.

Rejected: a `uvicorn.Server` of our own. uvicorn's workers make theirs themselves.
"""

from __future__ import annotations

import gc
import sys
from typing import TYPE_CHECKING, Any, cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from app.http.early_responses import EarlyResponses
from app.http.graceful_close import GracefulTransport
from app.http.keep_alive_timer import KeepAliveTimer
from app.http.limits import (
    BACKLOG_BYTES,
    BODY_BYTES,
    HEAD_BYTES,
    HEADERS,
    URL_BYTES,
    ConnectionLimits,
)

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Mapping

    from starlette.types import ASGIApp
    from uvicorn._types import ASGI3Application

DRAIN = "drain"
"""What the application's way to let go of held requests is called in the state of its lifespan."""
POLLS = "polls"
"""The same, of what knows plain polls: see `PollFastPath`."""
LIMITS = "limits"
"""The same, of the limits of each connection: see `ConnectionLimits`."""

_PIECE = 4096
"""Bytes that h11 is given at a time: its limit is on what it waits for, not on what it has."""

# By generation: net allocations, then collections of the younger. The first is small because what
# is given back counts against it: among requests that come and go it would not be reached for
# minutes, and then find all of them young, which took 25 to 120 ms.
_COLLECT_AFTER = 200, 20, 1_000


def drain(state: Mapping[str, Any]) -> None:
    """Have the application let go of what it holds. Safe to call again."""
    let_go = state.get(DRAIN)
    if let_go is not None:
        let_go()


class BoundedH11(h11.Connection):
    """The parser, with our limits on heads and trailers, which it counts as it waits for them."""

    def next_event(self) -> Any:  # noqa: ANN401 - as in h11
        """See h11."""
        event = super().next_event()
        if isinstance(event, h11.Request | h11.EndOfMessage):
            target = event.target if isinstance(event, h11.Request) else b""
            total = len(target) + sum(len(name) + len(value) for name, value in event.headers)
            if len(target) > URL_BYTES:
                raise h11.RemoteProtocolError("URL", error_status_hint=414)
            if total > HEAD_BYTES or len(event.headers) > HEADERS:
                raise h11.RemoteProtocolError("headers", error_status_hint=431)
        return event


class DrainingH11(H11Protocol):
    """uvicorn's protocol for where httptools is missing, with the limits of `app.http.exchange`.

    h11 itself parses one request at a time. What comes meanwhile is kept here, not there.
    """

    _guarded: GracefulTransport
    _timer: KeepAliveTimer
    _wait = ""  # what the time limit is for
    _held = b""
    _body_size = 0
    _stopping = False
    _advancing = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See asyncio."""
        self._limits = limits = self.app_state.get(LIMITS, ConnectionLimits())
        self.conn = BoundedH11(h11.SERVER, HEAD_BYTES)
        guarded = self._guarded = GracefulTransport(transport, self.loop, limits, self._unread)
        super().connection_made(cast("asyncio.Transport", guarded))
        self._timer = KeepAliveTimer(self.loop, self.timeout_keep_alive, self._overdue)
        early = EarlyResponses(
            cast("ASGIApp", self.app), lambda: self.cycle, lambda: self._body_size
        )
        self.app = cast("ASGI3Application", early)
        if not guarded.admit(len(self.connections)):
            return
        self._wait = "head"
        self._timer.begin(limits.head_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio."""
        self._guarded.lost()
        self._timer.close()
        self._held = b""
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        if self._guarded.is_closing():
            self._guarded.discard(len(data))
            return
        self._held += data
        self._advance()

    def _advance(self) -> None:
        if self._advancing:
            return
        self._advancing = True
        held, at = self._held, 0
        while at < len(held) and self._reads() and not self._guarded.is_closing():
            piece = held[at : at + _PIECE]
            at += len(piece)
            reading_body = self.conn.their_state is h11.SEND_BODY
            self._body_size = self._body_size + len(piece) if reading_body else 0
            self.conn.receive_data(piece)
            self.handle_events()
            if self._body_size > BODY_BYTES + self._limits.discard_bytes:
                self._fail(413)
        self._held = held[at:]
        self._advancing = False
        if not self._guarded.is_closing():
            self._guarded.set_backlog(len(self._held) > BACKLOG_BYTES)
            self._rewatch()

    def _reads(self) -> bool:
        return self.conn.their_state in {h11.IDLE, h11.SEND_BODY}

    def _should_upgrade(self) -> bool:
        return False

    def on_response_complete(self) -> None:
        """See uvicorn."""
        super().on_response_complete()
        self._unset_keepalive_if_required()  # which is ours to set
        self._advance()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - ours says more
        """See uvicorn, which calls this for what h11 refuses."""
        error = sys.exception()
        status = error.error_status_hint if isinstance(error, h11.RemoteProtocolError) else 400
        self._fail(status)

    def _fail(self, status: int) -> None:
        cycle = self.cycle  # of the request before, if that has been read to its end
        self._guarded.refuse(status, None if cycle is None or not cycle.more_body else cycle)

    def _unread(self) -> bool:
        return not self._stopping and (
            self.conn.their_state is h11.SEND_BODY
            or any(self.conn.trailing_data)
            or self._held != b""
        )

    def _rewatch(self) -> None:
        """Set the time limit that fits the state. That of a head is set once, whatever comes."""
        limits = self._limits
        state = self.conn.their_state
        wait, seconds = "", 0.0
        if self.flow.write_paused:
            wait, seconds = "send", limits.send_seconds
        elif state is h11.SEND_BODY and self.cycle.response_complete:
            wait, seconds = "rest", limits.discard_seconds
        elif state is h11.SEND_BODY:
            wait, seconds = "body", limits.body_seconds
        elif state is h11.IDLE and (self._wait == "head" or self.conn.trailing_data[0]):
            wait, seconds = "head", limits.head_seconds
        elif state is h11.IDLE:
            wait, seconds = "idle", self.timeout_keep_alive
        if wait == "":
            self._timer.cancel()
        elif wait != self._wait or wait == "body":
            self._timer.begin(seconds)
        self._wait = wait

    def _overdue(self) -> None:
        if self._wait in {"send", "rest"}:
            self._guarded.abort()
        elif self._wait == "idle" or not self._unread():
            self._guarded.close()
        else:
            self._fail(408)

    def pause_writing(self) -> None:
        """See asyncio."""
        super().pause_writing()
        if not self._guarded.is_closing():
            self._rewatch()

    def resume_writing(self) -> None:
        """See asyncio."""
        super().resume_writing()
        if not self._guarded.is_closing():
            self._rewatch()

    def shutdown(self) -> None:
        """See uvicorn."""
        self._stopping = True
        drain(self.app_state)
        if self._guarded.is_closing():
            self._guarded.abort()
            return
        super().shutdown()


def protocol() -> type[asyncio.Protocol]:
    """How HTTP is spoken."""
    try:
        from app.http.fast_path_protocol import FastPathProtocol  # noqa: PLC0415 - needs what may be missing
    except ImportError:  # where there is no httptools
        return DrainingH11
    return FastPathProtocol


def tune_garbage_collection() -> None:
    """Have Python look for garbage cycles less often; to be called when all is imported.

    A full collection walks through every object there is, and nothing else runs meanwhile. What
    thousands of held requests keep alive makes that long, and what comes and goes with them makes
    it often, by default; yet they leave no cycles behind. So the young are looked at while they are
    few, the old after many more allocations, and what the process began with not any more.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_COLLECT_AFTER)

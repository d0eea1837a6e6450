"""uvicorn's protocol for where httptools is missing, with the limits of `app.http.exchange`.

h11 itself parses one request at a time. Bytes that arrive meanwhile are kept here, not there.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from app.http.limited_connection import limit_connection
from app.http.limits import (
    BACKLOG_BYTES,
    BODY_BYTES,
    HEAD_BYTES,
    HEADERS,
    URL_BYTES,
    ConnectionLimits,
    Wait,
)

if TYPE_CHECKING:
    import asyncio

    from app.http.connection_timer import ConnectionTimer
    from app.http.graceful_close import GracefulTransport

_PIECE = 4096
"""Bytes that h11 is given at a time: it limits what it waits for, not what it was given."""


class LimitedH11Connection(h11.Connection):
    """h11's parser, with limits on complete heads and trailers."""

    def next_event(self) -> Any:  # noqa: ANN401 - as in h11
        """Return the next event, as in h11."""
        event = super().next_event()
        if isinstance(event, h11.Request | h11.EndOfMessage):
            target = event.target if isinstance(event, h11.Request) else b""
            total = len(target) + sum(len(name) + len(value) for name, value in event.headers)
            if len(target) > URL_BYTES:
                raise h11.RemoteProtocolError("URL", error_status_hint=414)
            if total > HEAD_BYTES or len(event.headers) > HEADERS:
                raise h11.RemoteProtocolError("headers", error_status_hint=431)
        return event


class LimitedH11Protocol(H11Protocol):
    """uvicorn's protocol on h11, which answers one request at a time, within limits."""

    _limits: ConnectionLimits
    _guarded: GracefulTransport
    _timer: ConnectionTimer
    _wait = Wait.NOTHING
    _held = b""
    _body_size = 0
    _stopping = False
    _advancing = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Set up the limits of a new connection, or refuse it if there are too many."""
        self._limits, guarded, self._timer = limit_connection(
            self,
            transport,
            unread=self._unread,
            overdue=self._overdue,
            body_size=lambda: self._body_size,
        )
        self._guarded = guarded
        self.conn = LimitedH11Connection(h11.SERVER, HEAD_BYTES)
        super().connection_made(cast("asyncio.Transport", guarded))
        if guarded.admit(len(self.connections)):
            self._wait = Wait.HEAD
            self._timer.begin(self._limits.seconds(Wait.HEAD))

    def connection_lost(self, exc: Exception | None) -> None:
        """Release the memory and the timer of a lost connection."""
        self._guarded.lost()
        self._timer.close()
        self._held = b""
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse received bytes, or discard them if the connection is closing."""
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
        """Go on with the bytes of the next request."""
        super().on_response_complete()
        self._unset_keepalive_if_required()  # `_timer` has this limit
        self._advance()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - a problem document has more
        """Refuse a request that h11 cannot parse; uvicorn calls this."""
        error = sys.exception()
        status = error.error_status_hint if isinstance(error, h11.RemoteProtocolError) else 400
        self._fail(status)

    def _fail(self, status: int) -> None:
        cycle = self.cycle  # of the previous request, if that has been read to its end
        self._guarded.refuse(status, None if cycle is None or not cycle.more_body else cycle)

    def _unread(self) -> bool:
        return not self._stopping and (
            self.conn.their_state is h11.SEND_BODY
            or any(self.conn.trailing_data)
            or self._held != b""
        )

    def _rewatch(self) -> None:
        """Set the time limit that fits the state. The limit of a head is set once per head."""
        state = self.conn.their_state
        wait = Wait.NOTHING
        if self.flow.write_paused:
            wait = Wait.SEND
        elif state is h11.SEND_BODY:
            wait = Wait.DISCARD if self.cycle.response_complete else Wait.BODY
        elif state is h11.IDLE:
            begun = self._wait is Wait.HEAD or self.conn.trailing_data[0]
            wait = Wait.HEAD if begun else Wait.KEEP_ALIVE
        if wait is Wait.BODY or wait not in {self._wait, Wait.NOTHING}:
            self._timer.begin(self._limits.seconds(wait))
        self._wait = wait

    def _overdue(self) -> None:
        if self._wait is Wait.NOTHING:
            return
        if self._wait in {Wait.SEND, Wait.DISCARD}:
            self._guarded.abort()
        elif self._wait is Wait.KEEP_ALIVE or not self._unread():
            self._guarded.close()
        else:
            self._fail(408)

    def pause_writing(self) -> None:
        """Watch for a client that does not read its response."""
        super().pause_writing()
        if not self._guarded.is_closing():
            self._rewatch()

    def resume_writing(self) -> None:
        """Go on: the client has read enough of its response."""
        super().resume_writing()
        if not self._guarded.is_closing():
            self._rewatch()

    def shutdown(self) -> None:
        """Close the connection after the response that is under way."""
        self._stopping = True
        if self._guarded.is_closing():
            self._guarded.abort()
            return
        super().shutdown()

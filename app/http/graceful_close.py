"""The closing of a connection in such a way that the client still gets the response.

A socket that is closed while it has unread bytes resets the connection. The client then loses what
it has not read yet, and sees an error instead of the response. So if the client may still be
sending, the connection is closed in three steps (RFC 9112, 9.6):

1. Nothing is written any more.
2. Received bytes are read and dropped.
3. The connection is closed when the client has closed its half, or at a limit.

A client may also not accept the response. A limit cuts that off, too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from app.http.early_responses import log_refusal, refusal

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from app.http.limits import ConnectionLimits

_REFUSED_AT_ONCE = 32
"""The most connections over the limit that get a response; further ones are just closed."""
_REFUSED_SECONDS = 1.0


class _Cycle(Protocol):
    response_started: bool
    disconnected: bool
    message_event: asyncio.Event


class GracefulTransport:
    """A transport for uvicorn's protocols, whose `close` delivers the written bytes first.

    uvicorn writes the head of a response, and then its body. If both come in the same turn of the
    event loop, they are sent together: a second system call would cost about as much as a hit.

    Reading pauses for two reasons: uvicorn's flow control, and a backlog of unparsed bytes. It goes
    on when neither is left.

    Args:
        transport: the connection.
        loop: whose time counts.
        limits: on the bytes and the time of reading while it closes.
        unread: tells whether the client may still be sending.

    Attributes:
        write: send bytes.
        is_closing: whether `close` has been called, or the connection is lost.
    """

    __slots__ = (
        "_backlogged",
        "_discarded",
        "_flow_paused",
        "_head",
        "_limits",
        "_loop",
        "_timer",
        "_transport",
        "_unread",
        "is_closing",
        "write",
    )

    def __init__(
        self,
        transport: asyncio.Transport,
        loop: asyncio.AbstractEventLoop,
        limits: ConnectionLimits,
        unread: Callable[[], bool],
    ) -> None:
        self._transport = transport
        self._loop = loop
        self._limits = limits
        self._unread = unread
        self._timer: asyncio.TimerHandle | None = None
        self._head = b""
        self._discarded = 0
        self._flow_paused = self._backlogged = False
        # The transport's own methods: polls would pay for a call in between.
        self.write: Callable[[bytes], object] = transport.write
        self.is_closing: Callable[[], bool] = transport.is_closing

    def get_extra_info(self, name: str, default: object = None) -> Any:  # noqa: ANN401 - as in asyncio
        """Return information about the connection, as the transport has it."""
        return self._transport.get_extra_info(name, default)

    def expect_head(self) -> None:
        """Hold the next write, the head of a response, until the body is written.

        The head is sent in the next turn of the event loop at the latest.
        """
        self._send_head()
        if not self.is_closing():
            self.write = self._hold

    def _hold(self, head: bytes) -> None:
        self._head = head
        self._loop.call_soon(self._send_head)
        self.write = self._write_behind_head

    def _write_behind_head(self, data: bytes) -> None:
        if data:
            self._transport.writelines((self._drop_head(), data))
        else:  # asyncio, from Python 3.12 on, never finishes with an empty piece
            self._send_head()

    def _send_head(self) -> None:
        if self._head:
            self._transport.write(self._drop_head())

    def _drop_head(self) -> bytes:
        """Return the head, which is held no longer."""
        head, self._head = self._head, b""
        self.write = self._transport.write
        return head

    def pause_reading(self) -> None:
        """Stop reading, for flow control."""
        self._flow_paused = True
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Read again, unless there is a backlog."""
        self._flow_paused = False
        if not self._backlogged and not self.is_closing():
            self._transport.resume_reading()

    def set_backlog(self, backlogged: bool) -> None:  # noqa: FBT001 - a state, which is its name
        """Stop reading because there is enough to parse, or read again."""
        if backlogged is self._backlogged:
            return
        self._backlogged = backlogged
        if backlogged:
            self._transport.pause_reading()
        elif not self._flow_paused and not self.is_closing():
            self._transport.resume_reading()

    def close(self, *, within: float | None = None) -> None:
        """Close when the written bytes have been sent and the client has stopped sending.

        Args:
            within: seconds; None: as the limits say.
        """
        if self.is_closing():
            return
        self._send_head()
        limits, transport = self._limits, self._transport
        unread = within is not None or self._unread()
        self.is_closing, self.write = _always, _drop
        if unread:
            seconds = limits.discard_seconds if within is None else within
            self._timer = self._loop.call_later(seconds, transport.abort)
            if transport.can_write_eof():
                transport.write_eof()
            transport.resume_reading()
            return
        if transport.get_write_buffer_size():
            self._timer = self._loop.call_later(limits.send_seconds, transport.abort)
        transport.close()

    def admit(self, connections: int) -> bool:
        """Return True if this connection is within the limit of a process; else refuse it.

        Args:
            connections: their number, this one included.
        """
        excess = connections - self._limits.connections
        if excess <= 0:
            return True
        log_refusal(503)
        if excess > _REFUSED_AT_ONCE:
            self.abort()
        else:
            self.write(refusal(503))
            self.close(within=_REFUSED_SECONDS)
        return False

    def refuse(self, status: int, cycle: _Cycle | None) -> None:
        """Refuse the request that is being read, if it has no response yet, and close.

        Args:
            status: the HTTP status.
            cycle: uvicorn's record of the request, if its application is running.
        """
        if self.is_closing():
            return
        log_refusal(status)
        if cycle is None or not cycle.response_started:
            self.write(refusal(status))
        if cycle is not None:  # tell its application that nobody reads the response
            cycle.disconnected = True
            cycle.message_event.set()
        self.close(within=self._limits.discard_seconds)

    def discard(self, size: int) -> None:
        """Count bytes that come while the connection closes, and abort it at their limit."""
        self._discarded += size
        if self._discarded > self._limits.discard_bytes:
            self.abort()

    def abort(self) -> None:
        """Close at once. Bytes that were written and not sent yet are lost."""
        self._drop_head()
        self.is_closing, self.write = _always, _drop
        self._transport.abort()

    def lost(self) -> None:
        """Release the timer of a lost connection."""
        self._drop_head()
        self.is_closing, self.write, self._unread = _always, _drop, _always
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _always() -> bool:
    return True


def _drop(data: bytes) -> None:
    """Drop bytes that are written to a closing connection."""

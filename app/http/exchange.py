"""One request at a time on each connection, answered once, in order, within limits.

uvicorn parses all bytes that it reads, and queues the requests. Here the bytes wait instead: the
parser gets them up to the end of one request, and goes on when that request has been answered.

    idle      --first byte-->          head     the time limit of heads
    head      --head complete-->       body     the application runs; the time limit of bodies
    body      --request complete-->    answer   bytes are kept, up to a limit; no time limit
    body      --response complete-->   body     the rest is dropped; a limit on bytes and time
    answer    --response complete-->   idle     keep-alive
    any       --error, limit-->        closing  one response at most; see `graceful_close`

So a process never has two requests of one connection. A refusal comes after the responses to
earlier requests. Pipelined requests take no more memory than their bytes, and a connection keeps
few of those.

No piece may contain the end of one request and the head of the next. Heads and chunked bodies end
with an empty line, other bodies at their announced length.

The parser has special rules for `Upgrade` and `CONNECT`: it would take the body for another
protocol. This service supports neither, so the parser gets such a head once more without them.

Trailers, the fields after a chunked body, are counted and dropped.
"""

from __future__ import annotations

import re
from enum import Enum, auto
from typing import TYPE_CHECKING, cast

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.http.early_responses import announced
from app.http.header_limits import RequestRefused, check_fields, check_head
from app.http.limited_connection import DEFAULT_LIMITS, limit_connection
from app.http.limits import BACKLOG_BYTES, BODY_BYTES, HEAD_BYTES, HEADERS, URL_BYTES, Wait

if TYPE_CHECKING:
    import asyncio

    from uvicorn._types import HTTPScope

    from app.http.connection_timer import ConnectionTimer
    from app.http.graceful_close import GracefulTransport
    from app.http.limits import ConnectionLimits

_AT_ONCE = 64
"""The most pieces that are parsed before other connections have a turn."""
_BLANK = re.compile(rb"[\r\n]*")


class Stage(Enum):
    """The stage of the current request. `_begun` distinguishes an idle connection from a head."""

    HEAD = auto()
    BODY = auto()
    ANSWER = auto()


# Globals are quicker than members, and polls look at them.
_HEAD, _BODY, _ANSWER = Stage.HEAD, Stage.BODY, Stage.ANSWER
_NOTHING, _KEEP_ALIVE, _SEND = Wait.NOTHING, Wait.KEEP_ALIVE, Wait.SEND


class Exchange(HttpToolsProtocol):
    """uvicorn's protocol, which parses one request at a time.

    It answers 414 or 431 to a head that is too large, and closes; see `header_limits`.
    """

    url = b""  # until the parser has begun to read one
    _limits: ConnectionLimits = DEFAULT_LIMITS
    _guarded: GracefulTransport
    _timer: ConnectionTimer
    _wait = _NOTHING
    _unparsed = 0  # bytes since a head, a piece of a body or a request was complete
    _stalled = False  # the application was not reading the body when its time limit was set
    _stage = _HEAD
    _ended: HTTPScope | None = None  # of the last request that has been read to its end
    _held = b""  # received bytes; those before `_at` have been parsed
    _at = 0
    _advancing = False
    _kept = False  # bytes were left when parsing stopped last
    _queued = False  # the bytes that are left have waited for a response
    _stopping = False
    _bare = False  # the parser reads this head for the second time, without its upgrade
    _method = ""  # that such a head had before, if it was replaced
    _upgrades: tuple[tuple[bytes, bytes], ...] = ()  # headers that were left out of such a head
    _body_size = 0  # bytes of the current body that have been read
    _announced: int | None = None  # its whole body; -1: in chunks; None: not looked up

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
        super().connection_made(cast("asyncio.Transport", guarded))
        if guarded.admit(len(self.connections)):
            self._watch(Wait.HEAD)

    def connection_lost(self, exc: Exception | None) -> None:
        """Release the memory and the timer of a lost connection."""
        self._guarded.lost()
        self._timer.close()
        self._held, self._at = b"", 0
        super().connection_lost(exc)
        self.app = self.config.loaded_app  # which does not refer to this connection

    def data_received(self, data: bytes) -> None:
        """Parse received bytes, or discard them if the connection is closing."""
        if self._guarded.is_closing():
            self._guarded.discard(len(data))
            return
        self._held = self._held[self._at :] + data if self._held else data
        self._at = 0
        self._advance()

    def shutdown(self) -> None:
        """Close the connection after the response that is under way."""
        self._stopping = True
        if self._guarded.is_closing():
            self._guarded.abort()
            return
        super().shutdown()

    # --- from bytes to requests ---

    def _advance(self) -> None:
        """Parse until a request is to be answered, or there is nothing left."""
        if self._advancing:
            return
        self._advancing = True
        turns = 0
        while self._held and self._stage is not _ANSWER and not self._guarded.is_closing():
            if turns == _AT_ONCE:
                self.loop.call_soon(self._advance)
                break
            turns += 1
            self._feed(self._take())
        self._advancing = False
        if self._guarded.is_closing():
            return
        if self._held or self._kept:
            self._kept = bool(self._held)
            self._queued = self._kept and (self._queued or self._stage is _ANSWER)
            self._guarded.set_backlog(len(self._held) - self._at > BACKLOG_BYTES)
        # Usually a whole poll has been answered: then the time limit has been set already.
        if (
            self._wait is not _KEEP_ALIVE
            or self._stage is not _HEAD
            or self.scope is not self._ended  # as `_begun` has it
        ) and (self._stage is not _ANSWER or self._wait is not _NOTHING):
            self._rewatch()

    def _take(self) -> bytes:
        """Return the next bytes of one request, at most up to its end."""
        held, at = self._held, self._at
        if self._stage is _BODY and self._remaining() > 0:
            end = at + self._remaining()
        elif held[at] in b"\r\n":
            # This may be the rest of the empty line that ends a head or a body.
            blank = _BLANK.match(held, at)
            end = at if blank is None else blank.end()
        else:
            end = held.find(b"\r\n\r\n", at) + 4
        if end <= at or end >= len(held):
            self._held, self._at = b"", 0
            return held[at:] if at else held
        self._at = end
        return held[at:end]

    def _remaining(self) -> int:
        """Return the number of bytes that are missing of a body; below 0 if it comes in chunks."""
        if self._announced is None:
            self._announced = announced(self.scope["headers"])
        return self._announced - self._body_size

    def _feed(self, piece: bytes) -> None:
        self._unparsed += len(piece)
        try:
            self.parser.feed_data(piece)
        except httptools.HttpParserUpgrade:
            self._feed(self._without_upgrade())
        except httptools.HttpParserError as error:
            refused = error.__context__
            self._fail(refused.status if isinstance(refused, RequestRefused) else 400)
        # The parser holds an incomplete header itself, and skips some bytes in silence.
        if self._unparsed > HEAD_BYTES:
            self._fail(414 if len(self.url) > URL_BYTES else 431)

    def _without_upgrade(self) -> bytes:
        """Return the head that has just been parsed, without its upgrade."""
        kept = [header for header in self.headers if header[0] != b"upgrade"]
        self._upgrades = tuple(header for header in self.headers if header[0] == b"upgrade")
        method, url = self.parser.get_method(), self.url
        version = self.parser.get_http_version().encode()
        if method == b"CONNECT":  # its URL is an address
            self._method, method, url = "CONNECT", b"POST", b"/"
        self._bare = True
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        lines = b"".join(b"%b: %b\r\n" % header for header in kept)
        return b"%b %b HTTP/%b\r\n%b\r\n" % (method, url, version, lines)

    def _should_upgrade(self) -> bool:
        return False

    def on_headers_complete(self) -> None:
        """Hand a request to the application, once its head is complete."""
        if self._unparsed > URL_BYTES or len(self.headers) > HEADERS:  # it might be too large
            check_head(self.url, self.headers)
        self._unparsed = 0
        if self.parser.should_upgrade():
            return  # the parser gets the head once more
        self._stage = _BODY
        self._body_size, self._announced = 0, None
        if self._bare:
            self.headers.extend(self._upgrades)
        if b"://" in self.url and not self.url.startswith(b"/"):
            self._name_host()
        self._guarded.expect_head()
        super().on_headers_complete()
        if self._bare:
            self.scope["method"] = self._method or self.scope["method"]
            self._bare, self._method, self._upgrades = False, "", ()
        self.headers = []  # for the trailers; the request keeps the list of its headers

    def _name_host(self) -> None:
        """Replace the Host header by the host of a URL in absolute form (RFC 9112, 3.2.2)."""
        url = httptools.parse_url(self.url)
        if url.host is not None:
            host = b"[%b]" % url.host if b":" in url.host else url.host
            port = b"" if url.port is None else b":%d" % url.port
            others = [header for header in self.headers if header[0] != b"host"]
            self.headers[:] = [*others, (b"host", host + port)]

    def on_body(self, body: bytes) -> None:
        """Pass on a piece of a body, and limit the bytes that are dropped.

        uvicorn limits only the bytes that it holds.
        """
        self._unparsed = 0
        self._body_size += len(body)
        if self._body_size > BODY_BYTES + self._limits.discard_bytes:
            if self.cycle.response_complete:
                self._guarded.abort()
            raise RequestRefused(413)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Finish a request, and check its trailers."""
        self._unparsed = 0  # bytes after it count anew
        if self.parser.should_upgrade():
            return
        self._ended = self.scope
        if self.headers:
            check_fields(self.headers)
        super().on_message_complete()
        if self.cycle.response_complete:
            self._stage = _HEAD
        else:
            self._stage = _ANSWER
            if self._wait is not _SEND:
                self._wait = _NOTHING

    def on_response_complete(self) -> None:
        """Go on with the bytes of the next request, instead of uvicorn's queue."""
        self.server_state.total_requests += 1
        if self._guarded.is_closing():
            return
        self.flow.resume_reading()
        if self._stage is _ANSWER:
            self._response_complete()
        else:
            self._rewatch()  # the rest of the request is dropped

    def _response_complete(self) -> None:
        """Begin to wait for the next request, or parse it if it has been received."""
        self._stage, self._wait = _HEAD, _KEEP_ALIVE  # as `_watch` has it, without the calls
        self._timer.begin()
        if self.flow.write_paused:
            self._rewatch()
        if self._held:
            self._advance()

    # --- the end of a connection, and its time limits ---

    def _fail(self, status: int) -> None:
        """Refuse the request that is being read, if it has no response yet, and close."""
        self._guarded.refuse(status, self.cycle if self._stage is _BODY else None)

    def _begun(self) -> bool:
        """Return True if a request has begun and not ended."""
        return self.scope is not self._ended

    def _unread(self) -> bool:
        """Return True if the client may still be sending."""
        return not self._stopping and (
            self._stage is _BODY or self._begun() or len(self._held) > self._at
        )

    def _watch(self, wait: Wait) -> None:
        """Set the time limit of a wait."""
        self._wait = wait
        if wait is _NOTHING:  # `_overdue` does nothing then
            return
        if wait is Wait.BODY:
            self._stalled = self.flow.read_paused
        self._timer.begin(self._limits.seconds(wait))

    def _rewatch(self) -> None:
        """Set the time limit that fits the state. The limit of a head is set once per head."""
        if self.flow.write_paused:
            wait = _SEND
        elif self._stage is _BODY and self.cycle.response_complete:
            wait = Wait.DISCARD
        elif self._stage is _BODY:
            self._watch(Wait.BODY)  # again after each read
            return
        elif self._stage is _ANSWER:
            wait = _NOTHING
        elif self._begun():
            wait = Wait.HEAD
        elif self._wait is Wait.HEAD:  # the client has sent only empty lines so far
            return
        else:
            wait = _KEEP_ALIVE
        if wait is not self._wait:
            self._watch(wait)

    def _overdue(self) -> None:
        """Close the connection if its time limit is over."""
        if self._wait is _NOTHING:
            return
        if self._wait in {_SEND, Wait.DISCARD}:
            self._guarded.abort()
        elif self._wait is Wait.BODY and self._stalled:
            self._watch(Wait.BODY)  # part of the time, the application did not read
        elif self._begun():
            self._fail(408)
        else:
            self._guarded.close()

    def pause_writing(self) -> None:
        """Limit the time in which the client has to accept most of what is buffered."""
        super().pause_writing()
        if not self._guarded.is_closing():
            self._watch(_SEND)

    def resume_writing(self) -> None:
        """Go on, because the client has accepted most of what was buffered."""
        super().resume_writing()
        if not self._guarded.is_closing():
            self._rewatch()

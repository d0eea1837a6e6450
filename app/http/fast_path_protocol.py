"""uvicorn's protocol, with a shortcut: a hit is written to the connection its poll was read from.

For each request uvicorn creates a response cycle, an event and a task, and checks every header that
is sent. All of that together costs more than a hit. So if the whole answer is at hand as soon as
the head of a poll has been read, this class writes it there and then. If the entry is in another
store, it is written when the store has answered, without a task. The answer is the one that the
application would give (`app.jobs.poll_fast_path`). Whenever anything is in the way, such as an
earlier answer on the same connection, uvicorn and the application answer.

This class is optional. It overrides private methods of uvicorn, so it works only with the versions
it was tested with, `TESTED_VERSIONS`; with others it logs one line and changes nothing. The setting
JOBCACHE_FAST_PROTOCOL=0 disables it, and other servers do without it.
"""

from __future__ import annotations

import functools
import logging
from typing import TYPE_CHECKING, Any, Protocol, cast

import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from app.http.exchange import Exchange, Stage
from app.http.lifespan_state import FAST_PATH
from app.http.limits import HEADERS, URL_BYTES, Wait
from jobcache.http.fast_path import ADDED_HEADER, MATCHED
from jobcache.http.reply import Reply

if TYPE_CHECKING:
    import asyncio

    from starlette.types import Scope
    from uvicorn._types import ASGI3Application
    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

    from jobcache import ReadResult
    from jobcache.http.fast_path import AdmittedPoll
    from jobcache.http.reply import AddsHeaders

logger = logging.getLogger("app")

TESTED_VERSIONS = ("0.54.",)
"""Beginnings of the versions of uvicorn that this class was tested with."""

# Globals are quicker than members.
_ANSWER, _NOTHING = Stage.ANSWER, Wait.NOTHING


@functools.cache  # one log line for each process
def is_tested(version: str) -> bool:
    """Return True if this class was tested with a version of uvicorn; else log that it was not."""
    tested = version.startswith(TESTED_VERSIONS)
    if not tested:
        logger.warning(
            "The fast protocol is disabled: it was tested with uvicorn %sx, not with %s",
            "x, ".join(TESTED_VERSIONS),
            version,
        )
    return tested


class AnswersPolls(Protocol):
    """Answers polls, if nothing about them is unusual, as `jobcache.http.fast_path.FastPolls`.

    Attributes:
        common_headers: those of every answer.
    """

    common_headers: AddsHeaders

    def admit(self, server: tuple[str, int | None] | None) -> bool:
        """Return True if connections to this address of the machine may be answered."""

    def match(self, scope: Scope) -> AdmittedPoll | Reply | None:
        """Return the reply to a poll, or the poll if its entry is not in this process."""


class FastPathProtocol(Exchange):
    """uvicorn's protocol, which writes hits itself."""

    _enabled = False
    _fast_path: AnswersPolls
    _pending: AdmittedPoll | None = None  # answers the request instead of the application
    _reading: asyncio.Future[ReadResult | None] | None = None  # of the pending poll
    _written = False  # the answer to the request that is being read
    _defaults: list[tuple[bytes, bytes]] | None = None
    _default_lines = b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Decide for a new connection whether its polls take the shortcut."""
        super().connection_made(transport)
        fast_path: AnswersPolls | None = self.app_state.get(FAST_PATH)
        # uvicorn has to see each request that it logs, counts, or adds its own prefix to.
        seen_by_uvicorn = self.access_log or self.limit_concurrency is not None or self.root_path
        if fast_path is None or seen_by_uvicorn or not is_tested(uvicorn.__version__):
            return
        if fast_path.admit(self.server):
            self._enabled, self._fast_path = True, fast_path

    def on_headers_complete(self) -> None:
        """Answer a poll whose answer is at hand, or read the store; leave the rest to uvicorn."""
        if not self._enabled:
            super().on_headers_complete()
            return
        poll = self._match()
        reply = poll if poll is None or isinstance(poll, Reply) else poll.begin()
        if reply is None:
            self._pending = None if isinstance(poll, Reply) else poll
            super().on_headers_complete()
            return
        self._unparsed = 0
        if isinstance(reply, Reply):
            self._written = True
            self._write(reply)
        else:
            assert not isinstance(poll, Reply)  # noqa: S101 - for the type checker
            self._pending, self._reading = poll, reply

    def on_message_complete(self) -> None:
        """Finish a request; one that is answered here needs nothing of uvicorn."""
        reading = self._reading
        if reading is not None:
            self._ended = self.scope
            self._stage, self._wait = _ANSWER, _NOTHING
            reading.add_done_callback(self._receive)
        elif self._written:
            self._ended = self.scope
            self._written = False
            self._response_written()
        else:
            super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Answer nothing any more."""
        self._reading = self._pending = None
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """Close the connection, behind the answer to the poll that is under way."""
        if self._reading is not None and self._stage is _ANSWER:
            self._leave_to_uvicorn()
        super().shutdown()

    # Private to uvicorn. If a version starts its tasks in another way, the application answers more
    # requests, and the tests that count the replies of this class fail.
    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        poll, self._pending = self._pending, None
        if poll is not None:
            app = cast("ASGI3Application", poll)
        super()._start_asgi_task(cycle, app)

    def _receive(self, reading: asyncio.Future[ReadResult | None]) -> None:
        """Answer the poll that has waited for the store."""
        poll = self._pending
        if reading is not self._reading or poll is None:
            return  # uvicorn has it, or the connection is lost
        if self.transport.is_closing():
            self._reading = self._pending = None
            return
        # In this order: `reply_to` counts the reply and logs it, so that it has to be sent.
        reply = None if self.flow.write_paused else poll.reply_to(reading)
        if reply is None:
            self._leave_to_uvicorn()
            return
        self._reading = self._pending = None
        self._write(reply)
        self._response_written()

    def _leave_to_uvicorn(self) -> None:
        """Call the steps of uvicorn that were postponed: the head and the request are complete.

        The parser has read nothing since, and the request has no body.
        """
        self._reading = None
        super().on_headers_complete()
        super().on_message_complete()

    def _response_written(self) -> None:
        """Finish a response that was written here, as uvicorn finishes others."""
        self.server_state.total_requests += 1
        self._response_complete()

    def _write(self, reply: Reply) -> None:
        defaults = self.server_state.default_headers
        if defaults is not self._defaults:  # uvicorn makes a new list each second, for the date
            self._defaults = defaults
            self._default_lines = b"".join(b"%b: %b\r\n" % header for header in defaults)
        scope: Any = self.scope
        lines = reply.lines or reply.header_lines(self._fast_path.common_headers)
        if ADDED_HEADER in scope:
            lines += b"%b: %b\r\n" % scope[ADDED_HEADER]
        self.transport.write(
            b"%b%b%b\r\n%b" % (STATUS_LINE[reply.status], self._default_lines, lines, reply.body)
        )

    def _match(self) -> AdmittedPoll | Reply | None:
        if self._bare or self._queued:
            return None
        if self._unparsed > URL_BYTES or len(self.headers) > HEADERS:  # maybe a head too large
            return None
        if self.flow.write_paused or self.transport.is_closing():  # the client reads nothing
            return None
        parser = self.parser
        if (
            parser.get_method() != b"GET"
            or parser.get_http_version() != "1.1"
            or not parser.should_keep_alive()
            or parser.should_upgrade()
            or self.expect_100_continue
        ):
            return None
        scope: Any = self.scope
        scope["method"], scope["query_string"] = "GET", b""
        scope["path"] = self.url.decode("latin-1")  # no plain poll has a query, or encoded letters
        poll = self._fast_path.match(scope)
        if poll is None:
            scope["extensions"] = {MATCHED: {}}
        return poll

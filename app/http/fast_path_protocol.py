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
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, cast

import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from app.http.exchange import Stage
from app.http.fast_path import MATCHED
from app.http.header_limits import HeaderLimits
from app.http.lifespan_state import FAST_PATH
from app.http.limits import HEADERS, URL_BYTES, Wait
from app.http.reply import Reply

if TYPE_CHECKING:
    import asyncio

    from uvicorn._types import ASGI3Application
    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

    from app.http.fast_path import FastPath, PendingPoll

logger = logging.getLogger("app")

TESTED_VERSIONS = ("0.54.",)
"""Beginnings of the versions of uvicorn that this class was tested with."""

_NOT_A_PATH = frozenset(b"?%#")
# Globals are quicker than members.
_HEAD, _KEEP_ALIVE = Stage.HEAD, Wait.KEEP_ALIVE


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


class FastPathProtocol(HeaderLimits):
    """uvicorn's protocol, which writes hits itself."""

    _enabled = False
    _fast_path: FastPath
    _pending: PendingPoll | None = None  # answers the request instead of the application
    _written = False  # the answer to the request that is being read
    _defaults: list[tuple[bytes, bytes]] | None = None
    _default_lines = b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Decide for a new connection whether its polls take the shortcut."""
        super().connection_made(transport)
        fast_path: FastPath | None = self.app_state.get(FAST_PATH)
        # uvicorn has to see each request that it logs, counts, or adds its own prefix to.
        seen_by_uvicorn = self.access_log or self.limit_concurrency is not None or self.root_path
        if fast_path is None or seen_by_uvicorn or not is_tested(uvicorn.__version__):
            return
        if fast_path.admit(self.server):
            self._enabled, self._fast_path = True, fast_path

    def on_headers_complete(self) -> None:
        """Answer a poll whose answer is at hand; leave any other request to uvicorn."""
        poll = self._match()
        reply: Reply | None
        if isinstance(poll, Reply):
            reply = poll
        else:
            reply = None if poll is None else poll.peek()
            if reply is None:
                self._pending = poll
                super().on_headers_complete()
                return
        self._unparsed = 0
        self._written = True
        self._write(reply)

    def on_message_complete(self) -> None:
        """Finish a request; one that is answered already needs nothing of uvicorn."""
        if not self._written:
            super().on_message_complete()
            return
        self._ended = self.scope
        self._written = False
        self._response_written()

    # Private to uvicorn. If a version starts its tasks in another way, the application answers more
    # requests, and the tests that count the replies of this class fail.
    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        poll, self._pending = self._pending, None
        if poll is None:
            super()._start_asgi_task(cycle, app)
            return
        # The store's answers arrive in the context of the request that has connected to it.
        context = copy_context()
        if not poll.ask(lambda reply: context.run(self._receive, cycle, poll, reply)):
            super()._start_asgi_task(cycle, cast("ASGI3Application", poll))

    def _receive(self, cycle: RequestResponseCycle, poll: PendingPoll, reply: Reply | None) -> None:
        if cycle.disconnected:
            return
        if reply is None or not cycle.keep_alive or not self._writable():
            super()._start_asgi_task(cycle, cast("ASGI3Application", poll))
            return
        cycle.response_started = cycle.response_complete = True
        self._write(reply)
        self._response_written()

    def _response_written(self) -> None:
        """Finish a response that was written here, as uvicorn finishes others."""
        self.server_state.total_requests += 1
        self._stage, self._wait = _HEAD, _KEEP_ALIVE
        self._timer.begin()
        if self.flow.write_paused:
            self._rewatch()
        if self._held:
            self._advance()

    def _write(self, reply: Reply) -> None:
        defaults = self.server_state.default_headers
        if defaults is not self._defaults:  # uvicorn makes a new list each second, for the date
            self._defaults = defaults
            self._default_lines = b"".join(b"%b: %b\r\n" % header for header in defaults)
        self.transport.write(
            b"%b%b%b\r\n%b"
            % (
                STATUS_LINE[reply.status],
                self._default_lines,
                reply.lines or self._fast_path.header_lines(reply),
                reply.body,
            )
        )

    def _match(self) -> PendingPoll | Reply | None:
        if not self._enabled or self._bare or self._queued:
            return None
        # As `_large` and `_writable` have it; every poll would pay for the calls.
        if self._unparsed > URL_BYTES or len(self.headers) > HEADERS:
            return None
        if self.flow.write_paused or self.transport.is_closing():
            return None
        parser = self.parser
        if (
            parser.get_method() != b"GET"
            or parser.get_http_version() != "1.1"
            or not parser.should_keep_alive()
            or parser.should_upgrade()
            or self.expect_100_continue
            or not _NOT_A_PATH.isdisjoint(self.url)
        ):
            return None
        scope: Any = self.scope
        scope["method"], scope["query_string"] = "GET", b""
        scope["path"] = self.url.decode("latin-1")
        poll = self._fast_path.match(scope)
        if poll is None:
            scope["extensions"] = {MATCHED: {}}
        return poll

    def _writable(self) -> bool:
        """Return True if the client reads what is written. No other response is under way."""
        return not (self.flow.write_paused or self.transport.is_closing())

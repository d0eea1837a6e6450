"""The shortest way there is: a hit is written to the connection that its poll was read from.

For each request uvicorn makes a response cycle, an event and a task, and looks at every header that
is sent; all of that together costs more than a hit. So where the whole answer is at hand as soon as
the head of a poll has been read, its bytes are written there and then. Where one look at a store
elsewhere is needed, they are written when it has answered, and there is no task. Nothing else is
different: the answer is what the application would say (`app.jobs.poll_fast_path`), and whenever
anything is in the way, such as an answer before it on the same connection, the application says it.

Where httptools is missing, and under other servers, there is no such way, and all works without it.
"""

from __future__ import annotations

from contextvars import copy_context
from typing import TYPE_CHECKING, Any, cast

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from app.http.exchange import Stage, Wait
from app.http.header_limits import HeaderLimits
from app.http.serving import POLLS

if TYPE_CHECKING:
    import asyncio

    from uvicorn._types import ASGI3Application
    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

    from app.jobs.conditional_get import Reply
    from app.jobs.poll_fast_path import Poll, PollFastPath

_NOT_A_PATH = frozenset(b"?%#")
# Globals are quicker than members.
_HEAD, _KEEP_ALIVE = Stage.HEAD, Wait.KEEP_ALIVE


class FastPathProtocol(HeaderLimits):
    """uvicorn's protocol, which writes hits itself."""

    _polls: PollFastPath | None = None
    _asking: Poll | None = None  # what is to be asked for instead of the application
    _written = False  # the answer to the request that is being read
    _defaults: list[tuple[bytes, bytes]] | None = None
    _default_lines = b""
    _common = b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See asyncio."""
        super().connection_made(transport)
        if not self.access_log and self.limit_concurrency is None:  # which are uvicorn's to heed
            self._polls = self.app_state.get(POLLS)
            if self._polls is not None:
                self._common = self._polls.lines

    def on_headers_complete(self) -> None:
        """See uvicorn."""
        poll = self._poll()
        reply = None if poll is None else poll.at_once()
        if reply is None:
            self._asking = poll
            super().on_headers_complete()
            return
        self._pending = 0
        self._written = True
        self._write(reply)

    def on_message_complete(self) -> None:
        """See uvicorn."""
        if not self._written:
            super().on_message_complete()
            return
        self._ended = self.scope
        self._written = False
        self._rest()

    # Private to uvicorn: if it starts its tasks in another way, the application says more, and the
    # tests that count what is said here turn red.
    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        poll, self._asking = self._asking, None
        if poll is None:
            super()._start_asgi_task(cycle, app)
            return
        # Answers of the store come in the context of whoever has connected to it.
        context = copy_context()
        if not poll.ask(lambda reply: context.run(self._asked, cycle, app, reply)):
            super()._start_asgi_task(cycle, app)

    def _asked(
        self, cycle: RequestResponseCycle, app: ASGI3Application, reply: Reply | None
    ) -> None:
        if cycle.disconnected:
            return
        if reply is None or not cycle.keep_alive or not self._writable():
            super()._start_asgi_task(cycle, app)
            return
        cycle.response_started = cycle.response_complete = True
        self._write(reply)
        self._rest()

    def _rest(self) -> None:
        """What is done once a response is complete, for one that was written here."""
        self.server_state.total_requests += 1
        self._stage, self._wait = _HEAD, _KEEP_ALIVE
        self._timer.begin()
        if self.flow.write_paused:
            self._rewatch()
        if self._held:
            self._advance()

    def _write(self, reply: Reply) -> None:
        defaults = self.server_state.default_headers
        if defaults is not self._defaults:  # uvicorn makes them anew every second, for the date
            self._defaults = defaults
            self._default_lines = b"".join(b"%b: %b\r\n" % header for header in defaults)
        self.transport.write(
            b"%b%b%b%b\r\n%b"
            % (
                STATUS_LINE[reply.status],
                self._default_lines,
                reply.lines,
                self._common,
                reply.body,
            )
        )

    def _poll(self) -> Poll | None:
        if self._polls is None or self._bare or self._queued:
            return None
        if self._large() or not self._writable():
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
        scope = cast("dict[str, Any]", self.scope)
        scope |= {"method": "GET", "path": self.url.decode("latin-1"), "query_string": b""}
        return self._polls.plain(scope)

    def _writable(self) -> bool:
        """Whether the client reads what is written. No other response is under way."""
        return not (self.flow.write_paused or self.transport.is_closing())

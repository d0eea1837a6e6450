"""The access log: one line for each response, also for polls that the fast path answers.

A line costs less than a record of `logging`, because it is put together here. The lines of one turn
of the event loop are written to standard error together. Several processes may share a pipe, which
keeps only writes of `PIPE_BUF` bytes apart; so no write is longer.

A line has the path without its query, and no header but the ids of the request. Where a path
contains what looks like an API key, the line does not.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

from app.http.request_context import REQUEST_ID, RequestContext, read_context

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from app.http.forwarded import TrustedProxies

_LONGEST_WRITE = 4096
_LONGEST_PATH = 512
_KEY = re.compile(r"jc_[0-9a-f]{12}_[A-Za-z0-9_-]{0,43}")
_PLAIN = re.compile(r"[A-Za-z0-9/._~-]*", re.ASCII).fullmatch


def _write_to_stderr(lines: str) -> None:
    """Write lines to standard error. A log that nobody takes ends no request."""
    with suppress(OSError, ValueError, AttributeError):  # closed, or there is none
        sys.stderr.write(lines)


class _Response(NamedTuple):
    """What a line says of a response and its request."""

    method: str
    path: str
    status: int
    size: int
    took_ms: float
    client: str
    context: RequestContext


class AccessLog:
    """Writes the access log of a process.

    Args:
        proxies: those that name the client in `X-Forwarded-For`.
        as_json: whether a line is a JSON object.
        write: writes whole lines.
        now: the time in seconds since the epoch.
    """

    def __init__(
        self,
        proxies: TrustedProxies,
        *,
        as_json: bool,
        write: Callable[[str], object] = _write_to_stderr,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._proxies = proxies
        self._format = _as_json if as_json else _as_text
        self._shown_second = _iso_second if as_json else _local_second
        self._write = write
        self._now = now
        self._second = -1
        self._second_text = ""
        self._lines: list[str] = []

    def add(
        self, scope: Scope, context: RequestContext, status: int, size: int, began_ns: int
    ) -> None:
        """Add the line of a response, which is written at the end of this turn of the loop.

        Args:
            scope: of the request.
            context: its ids.
            status: of the response.
            size: bytes of its body.
            began_ns: when the request had been read, by `time.perf_counter_ns`.
        """
        took = (time.perf_counter_ns() - began_ns) / 1e6
        now = self._now()
        second = int(now)
        if second != self._second:
            self._second, self._second_text = second, self._shown_second(second)
        path = scope["path"]
        if not _PLAIN(path) or "jc_" in path or len(path) > _LONGEST_PATH:
            path = _shown_path(path)
        moment = f"{self._second_text}{int((now - second) * 1000):03d}"
        response = _Response(
            scope["method"], path, status, size, took, self._client(scope), context
        )
        line = self._format(moment, response)
        if not self._lines:
            try:
                asyncio.get_running_loop().call_soon(self.flush)
            except RuntimeError:  # the loop is closing
                self._write(line)
                return
        self._lines.append(line)

    def flush(self) -> None:
        """Write the lines that have been added."""
        lines, self._lines = self._lines, []
        piece: list[str] = []
        length = 0
        for line in lines:
            if piece and length + len(line) > _LONGEST_WRITE:
                self._write("".join(piece))
                piece, length = [], 0
            piece.append(line)
            length += len(line)
        if piece:
            self._write("".join(piece))

    def _client(self, scope: Scope) -> str:
        """Return the address of the client, as the limits on calls have it."""
        for name, _ in scope["headers"]:
            if name == b"x-forwarded-for":
                break
        else:  # usually: then nothing need be parsed
            client = scope.get("client")
            return str(client[0]) if client else ""
        address = self._proxies.address(scope)
        return "" if address is None else str(address)


class LoggedApp:
    """ASGI middleware: add the line of each response.

    Args:
        app: the application, whose responses have `X-Request-Id`.
        log: where lines are added.
    """

    def __init__(self, app: ASGIApp, log: AccessLog) -> None:
        self._app = app
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request as ASGI middleware."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began_ns = time.perf_counter_ns()
        context = read_context(scope["headers"])
        status = size = 0

        async def send_on(message: Message) -> None:
            nonlocal status, size, context
            if message["type"] == "http.response.start":
                status = message["status"]
                for name, value in message.get("headers", ()):
                    if name == REQUEST_ID:
                        context = context._replace(request_id=value.decode("latin-1"))
            elif message["type"] == "http.response.body" and scope["method"] != "HEAD":
                size += len(message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, receive, send_on)
        finally:
            self._log.add(scope, context, status, size, began_ns)


def _shown_path(path: str) -> str:
    """Return a path as a log line may have it: in one line, without keys, and not too long."""
    shown = _KEY.sub("jc_***", path[: 2 * _LONGEST_PATH])
    if len(shown) > _LONGEST_PATH:
        shown = f"{shown[:_LONGEST_PATH]}…"
    return json.dumps(shown)[1:-1]


def _as_text(now: str, it: _Response) -> str:
    trace = f" trace_id={it.context.trace_id}" if it.context.trace_id else ""
    return (
        f"{now} INFO app.access: {it.method} {it.path} {it.status}, {it.size} bytes,"
        f" {it.took_ms:.3f} ms, {it.client} request_id={it.context.request_id}{trace}\n"
    )


def _as_json(now: str, it: _Response) -> str:
    # The method is a token, and the address and the ids have been checked: none needs escapes.
    trace = f',"trace_id":"{it.context.trace_id}"' if it.context.trace_id else ""
    return (
        f'{{"timestamp":"{now}Z","level":"info","logger":"app.access",'
        f'"event":"{it.method} {it.path} {it.status}","method":"{it.method}","path":"{it.path}",'
        f'"status":{it.status},"bytes":{it.size},"duration_ms":{it.took_ms:.3f},'
        f'"client":"{it.client}","request_id":"{it.context.request_id}"{trace}}}\n'
    )


def _iso_second(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S.")


def _local_second(second: int) -> str:
    # As `logging` has it by default.
    return time.strftime("%Y-%m-%d %H:%M:%S,", time.localtime(second))

"""A response as plain bytes: what the fast path keeps, and sends as often as it fits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from starlette.responses import Response

if TYPE_CHECKING:
    from starlette.types import Send

    Headers = list[tuple[bytes, bytes]]


class AddsHeaders(Protocol):
    """Knows the headers that a service adds to each of its responses."""

    def added(self, headers: Headers) -> Headers:
        """Return a new list of the headers of a response, with the added ones."""


class _NoHeaders:
    """A service that adds no headers."""

    def added(self, headers: Headers) -> Headers:
        """Return a copy of the headers."""
        return [*headers]


NO_HEADERS = _NoHeaders()


class Reply:
    """A response that may be sent many times, so nobody may change it.

    Attributes:
        status: the HTTP status.
        headers: as ASGI has them.
        body: the bytes that follow.
        lines: headers as they go over the wire, with the common ones, without the server's;
            empty until the fast path needs them.
    """

    __slots__ = ("_complete", "body", "headers", "lines", "status")

    def __init__(self, status: int, headers: Headers, body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body
        self.lines = b""
        self._complete: Headers | None = None

    @classmethod
    def of(cls, response: Response) -> Reply:
        """Return the reply that a response of Starlette would send."""
        return cls(response.status_code, [*response.raw_headers], bytes(response.body))

    def complete(self, common_headers: AddsHeaders) -> Headers:
        """Return the headers with the common ones. Nobody may change the list."""
        if self._complete is None:
            self._complete = common_headers.added(self.headers)
        return self._complete

    def header_lines(self, common_headers: AddsHeaders) -> bytes:
        """Return the headers with the common ones, as they go over the wire, and keep them."""
        if not self.lines:
            headers = self._complete or common_headers.added(self.headers)
            self.lines = b"".join(map(b"%b: %b\r\n".__mod__, headers))
        return self.lines

    def response(self) -> Response:
        """Return a response of Starlette that sends this reply."""
        response = Response(self.body, self.status)
        response.raw_headers = [*self.headers]
        return response

    async def send(
        self, send: Send, common_headers: AddsHeaders, added: tuple[bytes, bytes] | None = None
    ) -> None:
        """Send this reply by ASGI, with the common headers and one more, if it is given."""
        complete = self._complete
        if complete is None:
            complete = self.complete(common_headers)
        # A copy, because middleware around this may add some.
        headers = [*complete] if added is None else [*complete, added]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": self.body})

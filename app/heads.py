"""A limit on the heads of requests: URL and headers, before and while they are read.

uvicorn's parser collects a head for as long as a client sends one, and so would hold whatever it
is given: a middleware would come too late. h11, which uvicorn takes where httptools is missing, has
a limit of its own, on what it waits for the rest of, and answers 400.
"""

from __future__ import annotations

from http import HTTPStatus

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from app.limits import HEAD_BYTES, HEADERS, URL_BYTES
from app.problems import problem

_DETAILS = {
    414: f"A URL may have {URL_BYTES} bytes.",
    431: f"URL and headers may have {HEAD_BYTES} bytes together, and the headers be {HEADERS}.",
}


class _TooLarge(Exception):  # noqa: N818 - stops the parser; never leaves this module
    pass


class BoundedHead(HttpToolsProtocol):
    """uvicorn's protocol, which answers 414 or 431 to a head that is too large, and hangs up."""

    _refused = 0  # the status of the refusal
    _url_bytes = 0
    _head_bytes = 0
    _headers_seen = 0
    _heard = False  # whether the parser told of anything in this read
    _unheard_bytes = 0

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        if self._refused:
            return
        self._heard = False
        super().data_received(data)
        # The parser itself holds a header until it is complete, and skips some things in silence.
        self._unheard_bytes = 0 if self._heard else self._unheard_bytes + len(data)
        if self._unheard_bytes > HEAD_BYTES and not self._refused:
            self._refused = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            self.send_400_response("")

    def on_message_begin(self) -> None:
        """Begin to count."""
        super().on_message_begin()
        self._url_bytes = self._head_bytes = self._headers_seen = 0

    def on_url(self, url: bytes) -> None:
        """Count a piece of the URL."""
        self._heard = True
        self._url_bytes += len(url)
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count a header; those after a body in chunks come here, too."""
        self._heard = True
        self._headers_seen += 1
        self._count(len(name) + len(value))
        super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        """See uvicorn, which bounds what it holds of bodies."""
        self._heard = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        """See uvicorn."""
        self._heard = True
        super().on_message_complete()

    def _count(self, more: int) -> None:
        self._head_bytes += more
        if self._url_bytes > URL_BYTES:
            self._refused = HTTPStatus.REQUEST_URI_TOO_LONG
        elif self._head_bytes > HEAD_BYTES or self._headers_seen > HEADERS:
            self._refused = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
        else:
            return
        raise _TooLarge  # the parser passes it on as an error of its own

    def send_400_response(self, msg: str) -> None:
        """Refuse a request, for what it is refused for."""
        if not self._refused:
            super().send_400_response(msg)
            return
        if self.cycle is None or self.cycle.response_complete:
            # Otherwise an answer is under way, and this one would be taken for a part of it.
            refusal = problem(self._refused, _DETAILS[self._refused], instance="")
            head = b"".join(b"%b: %b\r\n" % header for header in refusal.raw_headers)
            body = bytes(refusal.body)
            self.transport.write(
                STATUS_LINE[self._refused] + head + b"connection: close\r\n\r\n" + body
            )
        self.transport.close()

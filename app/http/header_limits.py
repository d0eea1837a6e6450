"""The limits on all parts of a request but its body: URL, headers, trailers, sizes of chunks.

uvicorn's parser collects a head for as long as a client sends one, and holds all of it. Middleware
would run too late to limit that.
"""

from __future__ import annotations

from app.http.exchange import Exchange, RequestRefused
from app.http.limits import HEAD_BYTES, HEADERS, URL_BYTES


class HeaderLimits(Exchange):
    """uvicorn's protocol, which answers 414 or 431 to a head that is too large, and closes.

    Headers are not counted one by one, because every poll would pay for that. A complete head is
    measured only if so many bytes were read that it might be too large. An incomplete one is
    refused when more bytes have been read than a head may have.
    """

    def _refuse_head(self) -> None:
        self._fail(414 if len(self.url) > URL_BYTES else 431)

    def on_headers_complete(self) -> None:
        """Refuse a head that is too large."""
        if self._unparsed > URL_BYTES or len(self.headers) > HEADERS:  # it might be too large
            self._measure()
        self._unparsed = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Pass on a piece of a body, which does not count here."""
        self._unparsed = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Finish a request: bytes after it count anew."""
        self._unparsed = 0
        super().on_message_complete()

    def _measure(self) -> None:
        headers = self.headers
        if len(self.url) > URL_BYTES:
            raise RequestRefused(414)
        total = len(self.url) + sum(len(name) + len(value) for name, value in headers)
        if total > HEAD_BYTES or len(headers) > HEADERS:
            raise RequestRefused(431)

"""A limit on what is read of a request beside its body: URL, headers, trailers, sizes of chunks.

uvicorn's parser collects a head for as long as a client sends one, and so would hold whatever it
is given: a middleware would come too late.
"""

from __future__ import annotations

from app.http.exchange import Exchange, Refused
from app.http.limits import HEAD_BYTES, HEADERS, URL_BYTES


class HeaderLimits(Exchange):
    """uvicorn's protocol, which answers 414 or 431 to a head that is too large, and closes.

    Nothing is counted header by header, for every poll would pay for that. A head is weighed once
    it is whole, and only if so much was read that it might be too large; one that does not become
    whole is refused when more has been read than a head may have.
    """

    _unparsed = 0  # bytes since a head was complete, or a piece of a body came

    def _feed(self, piece: bytes) -> None:
        self._unparsed += len(piece)
        super()._feed(piece)
        # The parser itself holds a header until it is complete, and skips some things in silence.
        if self._unparsed > HEAD_BYTES:
            self._fail(414 if len(self.url) > URL_BYTES else 431)

    def on_headers_complete(self) -> None:
        """See uvicorn. What is too large gets no further."""
        if self._large():
            self._weigh()
        self._unparsed = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """See uvicorn, which bounds what it holds of bodies."""
        self._unparsed = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """See uvicorn."""
        self._unparsed = 0
        super().on_message_complete()

    def _large(self) -> bool:
        """Whether the head might be too large."""
        return self._unparsed > URL_BYTES or len(self.headers) > HEADERS

    def _weigh(self) -> None:
        headers = self.headers
        if len(self.url) > URL_BYTES:
            raise Refused(414)
        total = len(self.url) + sum(len(name) + len(value) for name, value in headers)
        if total > HEAD_BYTES or len(headers) > HEADERS:
            raise Refused(431)

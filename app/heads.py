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
from app.serving import drain

_DETAILS = {
    414: f"A URL may have {URL_BYTES} bytes.",
    431: f"URL and headers may have {HEAD_BYTES} bytes together, and the headers be {HEADERS}.",
}


class _TooLarge(Exception):  # noqa: N818 - stops the parser; never leaves this module
    pass


class BoundedHead(HttpToolsProtocol):
    """uvicorn's protocol, which answers 414 or 431 to a head that is too large, and hangs up.

    Nothing is counted header by header, for every poll would pay for that. A head is weighed once
    it is whole, and only if so much was read that it might be too large; one that does not become
    whole is refused when more has been read than a head may have.
    """

    url = b""  # until the parser has begun to read one
    _refused = 0  # the status of the refusal
    _read = 0  # bytes of the read under way
    _heard = False  # whether a head was complete, or a piece of a body came, in this read
    _since = 0  # bytes read since that was last so, that read included
    _unheard = 0  # the same, that read left out

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        if self._refused:
            return
        self._read = len(data)
        self._since += self._read
        self._heard = False
        super().data_received(data)
        # The parser itself holds a header until it is complete, and skips some things in silence.
        self._unheard = 0 if self._heard else self._unheard + self._read
        if self._unheard > HEAD_BYTES and not self._refused:
            self._refuse()
            self.send_400_response("")

    def shutdown(self) -> None:
        """See uvicorn, which calls this before it waits for the answers that are under way."""
        drain(self.app_state)
        super().shutdown()

    def on_headers_complete(self) -> None:
        """See uvicorn. What is too large gets no further."""
        if self._large():
            self._weigh()
        self._hear()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """See uvicorn, which bounds what it holds of bodies."""
        self._hear()
        super().on_body(body)

    def _large(self) -> bool:
        """Whether the head might be too large."""
        return self._since > URL_BYTES or len(self.headers) > HEADERS

    def _hear(self) -> None:
        self._heard = True
        self._since = self._read  # where in this read the next head begins is not known

    def _hear_whole(self) -> None:
        """Of a read that was one request from its first byte to its last, and needed no parser."""
        self._since = self._unheard = 0

    def _weigh(self) -> None:
        headers = self.headers
        total = len(self.url) + sum(len(name) + len(value) for name, value in headers)
        if len(self.url) > URL_BYTES or total > HEAD_BYTES or len(headers) > HEADERS:
            self._refuse()
            raise _TooLarge  # the parser passes it on as an error of its own

    def _refuse(self) -> None:
        long = len(self.url) > URL_BYTES
        self._refused = (
            HTTPStatus.REQUEST_URI_TOO_LONG if long else HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
        )

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

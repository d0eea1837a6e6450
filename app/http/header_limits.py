"""The limits on all parts of a request but its body: URL, headers, trailers, sizes of chunks.

uvicorn's parser collects a head for as long as a client sends one, and holds all of it. Middleware
would run too late to limit that. So `app.http.exchange` counts the bytes that it reads. A complete
head is measured only if so many bytes were read that it might be too large: every poll would pay
for counting its headers one by one. An incomplete one is refused when more bytes have been read
than a head may have.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from app.http.limits import HEAD_BYTES, HEADERS, URL_BYTES

if TYPE_CHECKING:
    from collections.abc import Sequence


class RequestRefused(Exception):  # noqa: N818 - stops the parser; never leaves the protocol
    """Stops the parser, because the request is refused.

    Args:
        status: the HTTP status of the refusal.
    """

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


def check_head(url: bytes, headers: Sequence[tuple[bytes, bytes]]) -> None:
    """Check the sizes of a complete head.

    Raises:
        RequestRefused: the URL, or the whole head, is too large.
    """
    if len(url) > URL_BYTES:
        raise RequestRefused(414)
    check_fields(headers, len(url))


def check_fields(fields: Sequence[tuple[bytes, bytes]], before: int = 0) -> None:
    """Check the sizes of headers or trailers.

    Args:
        fields: names and values.
        before: the number of bytes that count, too.

    Raises:
        RequestRefused: there are too many fields, or bytes.
    """
    total = before + sum(len(name) + len(value) for name, value in fields)
    if total > HEAD_BYTES or len(fields) > HEADERS:
        raise RequestRefused(431)

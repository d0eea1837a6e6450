"""Downloads that continue where they stopped: what to request, and what to keep of a response.

A lost connection does not lose what has come: the next request asks for the rest by `Range`. With
`If-Range` it gets the rest only if the file is still the same, and the whole file if it is not
(RFC 9110, 13.1.5 and 14.2).
"""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import TYPE_CHECKING, Protocol

from jobcache.client.core.errors import Unavailable
from jobcache.client.core.messages import Request, Sleep
from jobcache.client.core.responses import Unusable, read, received, unusable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jobcache.client.core.messages import Reply, Response, Steps
    from jobcache.client.core.rules import Rules

WITHOUT_PROGRESS = 30.0
"""Seconds of failures, without a byte between them, after which a download is given up."""

_OTHER_RANGE = frozenset({HTTPStatus.PARTIAL_CONTENT, HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE})
_RANGE = re.compile(r"bytes\s+(?:(\d{1,18})-(\d{1,18})|\*)/(\d{1,18}|\*)\s*", re.IGNORECASE)


class Part(Protocol):
    """The part of a file that is there already.

    Attributes:
        size: its length in bytes.
        etag: the strong entity tag of the file; None if it is not known.
    """

    size: int
    etag: str | None

    def restart(self, etag: str | None) -> None:
        """Drop all bytes; what follows belongs to the file with this entity tag."""

    def write(self, piece: bytes) -> None:
        """Append bytes."""


class Download:
    """One download: takes responses, and knows when the file is complete.

    Args:
        part: what is there of the file.
    """

    def __init__(self, part: Part) -> None:
        self._part = part
        self._total: int | None = None
        self._was_written = False  # whether the last response was

    @property
    def size(self) -> int:
        """The bytes that are there."""
        return self._part.size

    def headers(self) -> dict[str, str]:
        """Return the headers of the next request."""
        headers = {"Accept": "*/*", "Accept-Encoding": "identity"}
        if self._part.size and self._part.etag is not None:
            headers["Range"] = f"bytes={self._part.size}-"
            headers["If-Range"] = self._part.etag
        return headers

    def accepts(self, status: int, headers: Mapping[str, str]) -> bool:
        """Return whether the body of a response is to be written to the file.

        Args:
            status: of the response.
            headers: of the response, with names in lower case.
        """
        self._was_written = False
        if status == HTTPStatus.OK:
            etag, length = headers.get("etag", ""), headers.get("content-length", "")
            self._part.restart(etag if etag.startswith('"') else None)  # a weak one does not do
            self._total = int(length) if length.isascii() and length.isdigit() else None
            self._was_written = True
        elif status == HTTPStatus.PARTIAL_CONTENT:
            found = _RANGE.fullmatch(headers.get("content-range", ""))
            same = self._part.size == 0 or headers.get("etag") == self._part.etag
            if same and found and found[1] and int(found[1]) == self._part.size:
                self._total = None if found[3] == "*" else int(found[3])
                self._was_written = True
        return self._was_written

    def write(self, piece: bytes) -> None:
        """Append a piece of the body."""
        self._part.write(piece)

    def take(self, reply: Reply) -> None:
        """Take a reply: return if the file is complete.

        Raises:
            Refused: the response is a final error.
            Unusable: another request may bring the rest.
        """
        response = received(reply)
        if self._was_written:
            if self._total in {None, self._part.size}:
                return
            raise unusable(response, f"{self._part.size} bytes have come of {self._total}")
        if response.status in _OTHER_RANGE:
            found = _RANGE.fullmatch(response.headers.get("content-range", ""))
            if not found or found[1] or found[3] != str(self._part.size):
                self._part.restart(None)  # the part is not the beginning of the file
                raise unusable(response, f"{response.status}: another range, or another file")
            return  # all bytes were there before the request
        read(response, _no_file)


def download(rules: Rules, url: str, into: Download, timeout: float | None = None) -> Steps[None]:
    """Download a file.

    Args:
        rules: what decides on pauses.
        url: of the file.
        into: takes the responses.
        timeout: seconds for all of it, or None for no limit.

    Raises:
        Refused: the service has refused the request.
        Unavailable: nothing came for half a minute, or the time is over.
    """
    deadline = rules.deadline(timeout)
    failures, size, given_up_at = 0, into.size, rules.clock() + WITHOUT_PROGRESS
    while True:
        left = deadline - rules.clock()
        rules.counts.requests += 1
        reply = yield Request("GET", url, into.headers(), None, left, receiver=into)
        try:
            into.take(reply)
        except Unusable as failure:
            if into.size > size:
                failures, given_up_at = 0, rules.clock() + WITHOUT_PROGRESS
            size = into.size
            failures += 1
            pause = rules.after_failure(failure, failures)
            if rules.clock() + pause >= min(deadline, given_up_at):
                raise Unavailable(f"GET {url}: {failure.error!r}") from failure.error
        else:
            return
        yield Sleep(pause)


def _no_file(response: Response) -> None:
    raise ValueError(f"{response.status}: the response is no file")

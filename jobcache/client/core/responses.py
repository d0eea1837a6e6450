"""Reads a response: a document, a final refusal, or a failure that may pass."""

from __future__ import annotations

from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import TYPE_CHECKING

from jobcache.client.core.errors import Unavailable, refusal
from jobcache.client.core.messages import Response, T

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from jobcache.client.core.messages import Reply

_TEMPORARY = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS})
_MOST_DIGITS = 9  # no number of seconds has more


class Unusable(Exception):  # noqa: N818 - says what is the matter
    """There is no usable response, but another attempt may have one.

    Attributes:
        error: the reason.
        retry_after: the seconds of the response's `Retry-After`; None if it had none.
    """

    def __init__(self, error: Exception, retry_after: float | None = None) -> None:
        self.error = error
        self.retry_after = retry_after
        super().__init__(error, retry_after)


class Older(Unusable):
    """The response has a document that is older than one seen before."""


def unusable(response: Response, reason: str) -> Unusable:
    """Return the error for a response that cannot be used."""
    return Unusable(Unavailable(reason), parse_retry_after(response.headers))


def received(reply: Reply) -> Response:
    """Return the reply if it is a response.

    Raises:
        Unusable: it is none.
    """
    if isinstance(reply, Response):
        return reply
    raise Unusable(reply.error if reply is not None else Unavailable("no reply"))


def read(response: Response, parse: Callable[[Response], T]) -> T:
    """Return the document that a response contains.

    Args:
        response: the response.
        parse: returns the document of a successful response, or raises `ValueError`.

    Raises:
        Refused: the response is a final error.
        Unusable: the response is a temporary error, or no document.
    """
    status = response.status
    temporary = status in _TEMPORARY or status >= HTTPStatus.INTERNAL_SERVER_ERROR
    if temporary or status == HTTPStatus.NOT_MODIFIED:  # to a request without a condition
        raise unusable(response, str(refusal(status, response.body)))
    if not HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES:
        raise refusal(status, response.body)
    try:
        return parse(response)
    except ValueError as error:
        raise unusable(response, str(error)) from error


def parse_retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds of `Retry-After` (RFC 9110, 10.2.3), or None if it cannot be read.

    A date is compared with the `Date` of the same response, so that no two clocks have to agree.
    """
    value = headers.get("retry-after", "").strip()
    if value.isascii() and value.isdigit():
        return float(value) if len(value) <= _MOST_DIGITS else 10.0**_MOST_DIGITS
    try:
        due, sent = (parsedate_to_datetime(text) for text in (value, headers.get("date", "")))
        return max(0.0, (due - sent).total_seconds())
    except (OverflowError, TypeError, ValueError):
        return None

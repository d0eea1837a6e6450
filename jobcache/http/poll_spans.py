"""Spans of polls, which say how the poll was answered."""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jobcache.http.reply import Headers
    from jobcache.observability.instrumentation import Span

_CACHE_STATUS = re.compile(rb"jobcache; (?:fwd=)?(\w+).*?(; collapsed)?; detail=([\w-]+)")


@contextmanager
def answering(span: Span) -> Iterator[None]:
    """Have the span active within the block, and end it if the block raises."""
    try:
        with span.active():
            yield
    except BaseException as error:
        span.end({}, error)
        raise


def end_poll(span: Span, status: int, headers: Headers, *, long_poll: bool = False) -> None:
    """End the span of a poll.

    Args:
        span: the span.
        status: of the response.
        headers: of the response; `Cache-Status` tells the tier and the result.
        long_poll: whether the poll was held.
    """
    if not span.followed:
        span.end({})
        return
    attributes: dict[str, str | int | bool] = {
        "http.response.status_code": status,
        "jobcache.long_poll": long_poll,
    }
    for name, value in headers:
        if name == b"cache-status" and (found := _CACHE_STATUS.match(value)) is not None:
            attributes["jobcache.result"] = found[1].decode()
            attributes["jobcache.coalesced"] = found[2] is not None
            attributes["jobcache.tier"] = found[3].decode()
    span.end(attributes)

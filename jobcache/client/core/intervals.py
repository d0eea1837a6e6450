"""How long to wait before the next request."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from jobcache.client.core.responses import parse_retry_after

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

JITTER = 0.2
"""The largest part by which a wait is prolonged at random, so that clients spread."""

FIRST_BACKOFF = 0.5
"""The most seconds before the first repetition."""

LONGEST_BACKOFF = 15.0
"""The most seconds before any repetition, unless the service asks for more."""

DEFAULT_INTERVAL = 2.0
"""The seconds between polls if neither the service nor the caller says."""

SHORTEST = 0.1
"""The fewest seconds between polls: `Retry-After: 0` does not permit polling without a pause."""

_SLACK = 0.5  # seconds by which a request may be held shorter than was promised
_WAIT = re.compile(r'(?:^|[,;\s])wait\s*=\s*"?(\d{1,9})', re.IGNORECASE)


def after_failure(failures: int, retry_after: float | None, random: Callable[[], float]) -> float:
    """Return the seconds until the next attempt, after so many failures in a row.

    "Full jitter", from Marc Brooker, "Exponential Backoff And Jitter"; never sooner than
    `Retry-After` allows.
    """
    longest = min(LONGEST_BACKOFF, FIRST_BACKOFF * 2.0 ** min(failures - 1, 30))
    backoff = random() * longest
    return backoff if retry_after is None else max(backoff, _prolonged(retry_after, random))


def after_response(
    headers: Mapping[str, str], random: Callable[[], float], default: float = DEFAULT_INTERVAL
) -> float:
    """Return the seconds until the next poll, after a response that was not held.

    Args:
        headers: of the response.
        random: numbers from 0 to below 1.
        default: the seconds if there is no `Retry-After` that can be read.
    """
    retry_after = parse_retry_after(headers)
    return _prolonged(default if retry_after is None else retry_after, random)


def between(interval: float, random: Callable[[], float]) -> float:
    """Return `interval`, give or take a tenth."""
    return interval * (1 + JITTER * (random() - 0.5))


def was_held(
    request: Mapping[str, str], response: Mapping[str, str], seconds: float, *, newer: bool
) -> bool:
    """Return whether the service held a request, so that the next one may follow at once.

    A response that came too soon was not held, even if its headers say so: otherwise a service that
    answers at once would be polled without a pause.

    Args:
        request: the headers of the request.
        response: the headers of the response.
        seconds: between the two.
        newer: whether the response has a newer version; such a response may come at any time.
    """
    asked = _WAIT.search(request.get("Prefer", ""))
    applied = _WAIT.search(response.get("preference-applied", ""))
    if asked is None or applied is None:
        return False
    promised = min(int(asked[1]), int(applied[1])) - _SLACK
    return newer or 0 < promised <= seconds


def _prolonged(seconds: float, random: Callable[[], float]) -> float:
    return max(SHORTEST, seconds * (1 + JITTER * random()))

"""What to send next, and when: the rules of a client that polls.

- `If-None-Match` names the version seen last, in every request. It is also the minimum: an older
  version is ignored.
- `Prefer: wait` lets the service hold a request until there is a newer version. As long as the
  service does, the next request follows at once. A service that has nothing new and does not hold
  is polled as often as `Retry-After` allows: never sooner, and up to a fifth later.
- Temporary failures (no connection, no response in time, 408, 429, 5xx, a response that is no
  document) are retried, first soon, then ever later, at random times. The version that was seen
  stays seen. Any other response is final.
"""

from __future__ import annotations

import logging
import math
import random as _random
import time
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Generic

from jobcache.client.core import intervals
from jobcache.client.core.errors import Unavailable
from jobcache.client.core.messages import Counts, Request, Response, Sleep, T, Update
from jobcache.client.core.responses import Unusable, read, received, unusable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from jobcache.client.core.messages import Reply, Steps

logger = logging.getLogger("jobcache.client")

LONGEST_WAIT = 60
"""Seconds for which the service holds a request at most."""

ANSWER_WITHIN = 10.0
"""Seconds to wait for a response, beyond those for which it may be held."""

_ACCEPT = {"Accept": "application/json"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Followed(Generic[T]):
    """A document to follow.

    Attributes:
        path: what follows the address of the service.
        parse: returns the document for a body and its entity tag, or raises `ValueError`.
        is_last: whether a version ends the wait.
        expired: returns the error to raise when the time is over; its argument is the newest
            version seen, or None.
    """

    path: str
    parse: Callable[[bytes, str | None], T]
    is_last: Callable[[T], bool]
    expired: Callable[[T | None], Exception]


@dataclass(slots=True, kw_only=True)
class _Progress(Generic[T]):
    """The state of one wait."""

    followed: Followed[T]
    deadline: float
    hold: int
    conditional: bool
    seen: T | None = None
    holds: bool = True  # whether the service holds requests, as far as it has shown
    failures: int = 0  # in a row
    error: Exception | None = None  # the last of them

    @property
    def may_be_held(self) -> bool:
        """Whether the service can be asked to hold a request."""
        return self.hold > 0 and self.seen is not None and self.seen.etag is not None

    def timeout(self) -> Exception:
        """Return the error for a wait whose time is over."""
        error = self.followed.expired(self.seen)
        error.__cause__ = self.error
        return error

    def next_request(self, now: float) -> Request:
        """Return the next request, or raise the error of a wait whose time is over."""
        left = self.deadline - now
        if left <= 0:
            raise self.timeout()
        headers = dict(_ACCEPT)
        limit = ANSWER_WITHIN
        if self.conditional and self.seen is not None and self.seen.etag is not None:
            headers["If-None-Match"] = self.seen.etag
        if self.may_be_held:
            # Whole seconds, rounded up: a version that comes before the deadline counts.
            hold = min(self.hold, math.ceil(left)) if left < self.hold else self.hold
            headers["Prefer"] = f"wait={hold}"
            limit += hold
        return Request("GET", self.followed.path, headers, None, min(limit, left))


class Rules:
    """The rules, for any number of documents at once.

    Args:
        clock: seconds, monotonic.
        random: numbers from 0 to below 1.

    Attributes:
        counts: what has been done so far.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        random: Callable[[], float] = _random.random,
    ) -> None:
        self._clock = clock
        self._random = random
        self.counts = Counts()

    def follow(
        self,
        followed: Followed[T],
        *,
        timeout: float | None = None,
        wait: int = 25,
        interval: float | None = None,
        conditional: bool = True,
    ) -> Steps[T]:
        """Follow a document until its last version.

        Args:
            followed: the document.
            timeout: seconds for all of it, or None for no limit.
            wait: seconds for which the service is asked to hold each request, 0 to 60; 0 does not
                ask for it.
            interval: seconds between polls, give or take a tenth, whatever `Retry-After` says;
                None obeys `Retry-After`. For comparisons: it polls too often.
            conditional: False requests the whole document each time, held by nobody. For
                comparisons, too.

        Yields:
            What is to be done. Each newer version is in one `Update`, in order.

        Returns:
            The last version.

        Raises:
            Refused: the service refuses to show this document.
            Exception: `followed.expired`, if the time is over, or will be before the service may
                be polled again.
            ValueError: an argument is out of range.
        """
        if timeout is not None and not timeout > 0:
            raise ValueError(f"timeout must be above 0 seconds, or None, not {timeout!r}")
        if not 0 <= wait <= LONGEST_WAIT:
            raise ValueError(f"wait must be 0 to {LONGEST_WAIT} seconds, not {wait!r}")
        progress = _Progress(
            followed=followed,
            deadline=self._deadline(timeout),
            hold=wait if conditional else 0,
            conditional=conditional,
        )
        return self._follow(progress, interval)

    def _follow(self, progress: _Progress[T], interval: float | None) -> Steps[T]:
        while True:
            sent = self._clock()
            request = progress.next_request(sent)
            self.counts.requests += 1
            reply = yield request
            try:
                response, document = self._read(reply, progress, request.headers)
            except Unusable as failure:
                progress.failures += 1
                progress.error = failure.error
                pause = self._after_failure(failure, progress.failures)
            else:
                before, progress.seen = progress.seen, document
                progress.failures, progress.error = 0, None
                newer = before is None or document.version > before.version
                held = intervals.was_held(
                    request.headers, response.headers, self._clock() - sent, newer=newer
                )
                self.counts.held += held
                if held or not newer:
                    progress.holds = held
                if newer:
                    self.counts.updates += 1
                    yield Update(document)
                    if progress.followed.is_last(document):
                        return document
                # A version that was newer already does not show whether the service holds.
                at_once = held or (newer and progress.holds and progress.may_be_held)
                pause = 0.0 if at_once else self._after_response(response, sent, interval)
            if pause and self._clock() + pause >= progress.deadline:
                raise progress.timeout()
            if pause:
                yield Sleep(pause)

    def call(
        self,
        method: str,
        path: str,
        parse: Callable[[bytes, str | None], T],
        body: dict[str, Any] | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        repeatable: bool,
        timeout: float = 30,
    ) -> Steps[T]:
        """Send one request whose response is a document.

        Args:
            method: such as `POST`.
            path: what follows the address of the service.
            parse: returns the document for a body and its entity tag, or raises `ValueError`.
            body: sent as JSON; None for none.
            headers: of this request.
            repeatable: whether the request may be sent again after a temporary failure.
            timeout: seconds for all of it.

        Yields:
            What is to be done.

        Returns:
            The document.

        Raises:
            Refused: the service has refused the request.
            Unavailable: there was no usable response in time.
        """
        deadline = self._deadline(timeout)
        failures = 0
        while True:
            limit = min(ANSWER_WITHIN, deadline - self._clock())
            self.counts.requests += 1
            reply = yield Request(method, path, {**_ACCEPT, **(headers or {})}, body, limit)
            try:
                return read(received(reply), parse)
            except Unusable as failure:
                failures += 1
                pause = self._after_failure(failure, failures)
                if not repeatable or self._clock() + pause >= deadline:
                    raise Unavailable(f"{method} {path}: {failure.error!r}") from failure.error
            yield Sleep(pause)

    def _read(
        self, reply: Reply, progress: _Progress[T], headers: Mapping[str, str]
    ) -> tuple[Response, T]:
        """Return the response and the newest document; raise `Refused` or `Unusable`."""
        response, seen = received(reply), progress.seen
        if (
            response.status == HTTPStatus.NOT_MODIFIED
            and "If-None-Match" in headers
            and seen is not None
        ):
            self.counts.unchanged += 1
            return response, seen
        document = read(response, progress.followed.parse)
        if seen is not None and document.version < seen.version:
            self.counts.older += 1
            raise unusable(response, f"version {document.version} after {seen.version}")
        return response, document

    def _after_failure(self, failure: Unusable, failures: int) -> float:
        self.counts.failed += 1
        if failures == 2:  # noqa: PLR2004 - the first is often a kept connection that was closed
            logger.warning("no usable response, retrying: %r", failure.error)
        return intervals.after_failure(failures, failure.retry_after, self._random)

    def _after_response(self, response: Response, sent: float, interval: float | None) -> float:
        if interval is None:
            return intervals.after_response(response.headers, self._random)
        return max(0.0, sent + intervals.between(interval, self._random) - self._clock())

    def _deadline(self, timeout: float | None) -> float:
        return math.inf if timeout is None else self._clock() + timeout

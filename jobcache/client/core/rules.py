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
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol

from jobcache.client.core import intervals
from jobcache.client.core.errors import Unavailable
from jobcache.client.core.messages import Counts, Request, Response, Sleep, T, Update
from jobcache.client.core.responses import Older, Unusable, read, received

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from jobcache.client.core.messages import Reply, Steps

logger = logging.getLogger("jobcache.client")

LONGEST_WAIT = 60
"""Seconds for which the service holds a request at most."""

ANSWER_WITHIN = 10.0
"""Seconds to wait for a response, beyond those for which it may be held."""

JSON = "application/json"
"""The media type of the documents of jobs."""

_MOST_UNPROVEN = 2


class Reading(NamedTuple):
    """What a response to a poll has brought.

    Attributes:
        newer: whether there is a newer document.
        at_once: whether the next request follows without a pause, because it goes to another URL.
    """

    newer: bool
    at_once: bool = False


class Followed(Protocol[T]):
    """A document to follow, as far as it is known.

    Attributes:
        url: of the next request.
        tag: the entity tag of the last response from this URL; None if there is none.
        seen: the newest document; None before the first.
        is_last: whether that document ends the wait.
    """

    url: str
    tag: str | None
    seen: T | None
    is_last: bool

    @property
    def accept(self) -> str:
        """The media types to accept."""

    @property
    def credentials(self) -> bool:
        """Whether the caller's credentials may be sent to `url`."""

    @property
    def largest_body(self) -> int:
        """The most bytes of a response's body."""

    @property
    def spacing(self) -> float:
        """The fewest seconds between two requests, however soon the responses come."""

    def read(self, response: Response) -> Reading:
        """Take a response, except 304.

        Raises:
            Refused: the response is a final error.
            Unusable: another attempt may have a better response; `Older` counts apart.
        """

    def begin_poll(self) -> None:
        """Note that the next request is a new poll, and not the way to where a response leads."""

    def expired(self) -> Exception:
        """Return the error to raise when the time is over."""


@dataclass(slots=True, kw_only=True)
class _Progress(Generic[T]):
    """The state of one wait."""

    followed: Followed[T]
    deadline: float
    hold: int
    conditional: bool
    interval: float | None
    default_interval: float
    holds: bool = True  # whether the service holds requests, as far as it has shown
    unproven: int = 0  # responses in a row that do not show that
    failures: int = 0  # in a row
    error: Exception | None = None  # the last of them

    @property
    def may_be_held(self) -> bool:
        """Whether the service can be asked to hold a request."""
        return self.hold > 0 and self.followed.tag is not None

    def timeout(self) -> Exception:
        """Return the error for a wait whose time is over."""
        error = self.followed.expired()
        error.__cause__ = self.error
        return error

    def next_request(self, now: float) -> Request:
        """Return the next request, or raise the error of a wait whose time is over."""
        left = self.deadline - now
        if left <= 0:
            raise self.timeout()
        followed = self.followed
        headers = {"Accept": followed.accept}
        limit = ANSWER_WITHIN
        if self.conditional and followed.tag is not None:
            headers["If-None-Match"] = followed.tag
        if self.may_be_held:
            # Whole seconds, rounded up: a version that comes before the deadline counts.
            hold = min(self.hold, math.ceil(left)) if left < self.hold else self.hold
            headers["Prefer"] = f"wait={hold}"
            limit += hold
        return Request(
            "GET",
            followed.url,
            headers,
            None,
            min(limit, left),
            followed.credentials,
            followed.largest_body,
        )

    def may_follow_at_once(self, *, held: bool, newer: bool) -> bool:
        """Note whether a response was held; return whether the next request follows at once."""
        if held or not newer:
            self.holds = held
        self.unproven = 0 if held else self.unproven + 1
        # A document that was newer already does not show whether the service holds. A service that
        # never does, and has a newer document each time, must not be polled without a pause.
        doubtful = newer and self.holds and self.unproven <= _MOST_UNPROVEN
        return held or (doubtful and self.may_be_held)


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

    @property
    def clock(self) -> Callable[[], float]:
        """The clock: seconds, monotonic."""
        return self._clock

    def follow(
        self,
        followed: Followed[T],
        *,
        timeout: float | None = None,
        wait: int = 25,
        interval: float | None = None,
        default_interval: float = intervals.DEFAULT_INTERVAL,
        conditional: bool = True,
        first: Response | None = None,
    ) -> Steps[T]:
        """Follow a document until its last version.

        Args:
            followed: the document.
            timeout: seconds for all of it, or None for no limit.
            wait: seconds for which the service is asked to hold each request, 0 to 60; 0 does not
                ask for it.
            interval: seconds between polls, give or take a tenth, whatever `Retry-After` says;
                None obeys `Retry-After`. For comparisons: it polls too often.
            default_interval: seconds between polls if there is no `Retry-After`.
            conditional: False requests the whole document each time, held by nobody. For
                comparisons, too.
            first: a response that the caller has already, in place of the first request.

        Yields:
            What is to be done. Each newer document is in one `Update`, in order.

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
        if not default_interval > 0:
            raise ValueError(f"interval must be above 0 seconds, not {default_interval!r}")
        progress = _Progress(
            followed=followed,
            deadline=self.deadline(timeout),
            hold=wait if conditional else 0,
            conditional=conditional,
            interval=interval,
            default_interval=default_interval,
        )
        return self._follow(progress, first)

    def _follow(self, progress: _Progress[T], reply: Reply) -> Steps[T]:
        followed: Followed[T] = progress.followed
        headers: Mapping[str, str] = {}
        while True:
            sent = self._clock()
            if reply is None:
                request = progress.next_request(sent)
                headers = request.headers
                self.counts.requests += 1
                reply = yield request
            took = self._clock() - sent
            try:
                response, reading = self._read(reply, followed, headers)
            except Unusable as failure:
                followed.begin_poll()
                progress.failures += 1
                progress.error = failure.error
                pause = self.after_failure(failure, progress.failures)
            else:
                progress.failures, progress.error = 0, None
                newer = reading.newer
                held = intervals.was_held(headers, response.headers, took, newer=newer)
                self.counts.held += held
                if newer and followed.seen is not None:
                    self.counts.updates += 1
                    yield Update(followed.seen)
                if followed.is_last and followed.seen is not None:
                    return followed.seen
                if reading.at_once:
                    pause = 0.0
                else:
                    followed.begin_poll()
                    at_once = progress.may_follow_at_once(held=held, newer=newer)
                    pause = self._after_response(progress, response, sent, took, at_once=at_once)
            if pause and self._clock() + pause >= progress.deadline:
                raise progress.timeout()
            if pause:
                yield Sleep(pause)
            reply = None

    def call(
        self,
        method: str,
        path: str,
        parse: Callable[[Response], T],
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
            parse: returns the document of a successful response, or raises `ValueError`.
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
        deadline = self.deadline(timeout)
        failures = 0
        while True:
            limit = min(ANSWER_WITHIN, deadline - self._clock())
            self.counts.requests += 1
            reply = yield Request(method, path, {"Accept": JSON, **(headers or {})}, body, limit)
            try:
                return read(received(reply), parse)
            except Unusable as failure:
                failures += 1
                pause = self.after_failure(failure, failures)
                if not repeatable or self._clock() + pause >= deadline:
                    raise Unavailable(f"{method} {path}: {failure.error!r}") from failure.error
            yield Sleep(pause)

    def _read(
        self, reply: Reply, followed: Followed[T], headers: Mapping[str, str]
    ) -> tuple[Response, Reading]:
        """Take a reply; raise `Refused` or `Unusable`."""
        response = received(reply)
        if (
            response.status == HTTPStatus.NOT_MODIFIED
            and "If-None-Match" in headers
            and followed.seen is not None
        ):
            self.counts.unchanged += 1
            return response, Reading(newer=False)
        try:
            return response, followed.read(response)
        except Older:
            self.counts.older += 1
            raise

    def after_failure(self, failure: Unusable, failures: int) -> float:
        """Count and log a failure; return the seconds until the next attempt.

        Args:
            failure: the last one.
            failures: how many there were in a row.
        """
        self.counts.failed += 1
        if failures == 2:  # noqa: PLR2004 - the first is often a kept connection that was closed
            logger.warning("no usable response, retrying: %r", failure.error)
        return intervals.after_failure(failures, failure.retry_after, self._random)

    def _after_response(
        self,
        progress: _Progress[T],
        response: Response,
        sent: float,
        took: float,
        *,
        at_once: bool,
    ) -> float:
        if at_once:
            return max(0.0, progress.followed.spacing - took)
        if progress.interval is None:
            return self.pause(response.headers, progress.default_interval)
        due = sent + intervals.between(progress.interval, self._random)
        return max(0.0, due - self._clock())

    def pause(
        self, headers: Mapping[str, str], default: float = intervals.DEFAULT_INTERVAL
    ) -> float:
        """Return the seconds until the next poll, after a response with these headers.

        Args:
            headers: of a response that was not held.
            default: the seconds if there is no `Retry-After`.
        """
        return intervals.after_response(headers, self._random, default)

    def deadline(self, timeout: float | None) -> float:
        """Return the time at which so many seconds are over; infinity for None."""
        return math.inf if timeout is None else self._clock() + timeout

"""Operations of any service: what a response says about one, and which URL to poll next.

Understood are

- RFC 9110: 202 and 201 with `Location`, redirects, 303 to the result, `Retry-After`, `ETag`;
- operations of Google's AIP-151: `done`, `error`;
- Azure's operations: `Operation-Location` and `Azure-AsyncOperation`, `status`,
  `properties.provisioningState`, `resourceLocation`.

An operation has ended if its document says so. If the document has no field for it, the operation
has ended with the first successful response that has no `Retry-After`.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, NamedTuple, TypedDict
from urllib.parse import urldefrag

from jobcache.client.core.errors import BadLocation, Unavailable, WaitTimeout
from jobcache.client.core.intervals import SHORTEST
from jobcache.client.core.locations import origin, resolve, shown
from jobcache.client.core.responses import Unusable, read, unusable
from jobcache.client.core.rules import Reading
from jobcache.client.core.scheduler import Scheduler, completing
from jobcache.client.core.snapshots import Snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from jobcache.client.core.messages import Response, Steps
    from jobcache.client.core.rules import Rules

APPEARS_WITHIN = 10.0
"""Seconds for which 404 is a temporary failure where a response has just named the URL: the server
that answers may not know yet what another one has accepted."""

_MOST_REDIRECTS = 10
_TO_ANOTHER_DOCUMENT = frozenset({301, 303, 308})
_ONCE = frozenset({302, 307})  # the next poll goes to the same URL as before
_SAME_METHOD = frozenset({307, 308})
_NAMES_A_URL = frozenset({HTTPStatus.CREATED, HTTPStatus.ACCEPTED})
_RESULT_IS_THERE = frozenset({"PUT", "PATCH"})


class WaitOptions(TypedDict, total=False):
    """Arguments of waits for many operations, as `AsyncPoller.as_completed` describes them."""

    until: Callable[[Snapshot], object] | None
    on_progress: Callable[[Snapshot], object] | None
    timeout: float | None
    wait: int
    interval: float
    connections: int


class WaitSource(NamedTuple):
    """Where a wait begins.

    Attributes:
        url: what the caller waits for.
        method: of the request that has been sent already; GET if there was none.
        trusted: the URL to whose origin the caller sends credentials.
        response: of the request that has been sent already, or None.
    """

    url: str
    method: str
    trusted: str
    response: Response | None


def follow(
    rules: Rules,
    started: WaitSource,
    *,
    until: Callable[[Snapshot], object] | None,
    timeout: float | None,
    wait: int,
    interval: float,
    largest_body: int,
) -> Steps[Snapshot]:
    """Follow an operation until it has ended, as `AsyncPoller.wait_for` describes."""
    return rules.follow(
        FollowedOperation(started, rules.clock, until=until, largest_body=largest_body),
        timeout=timeout,
        wait=wait,
        default_interval=interval,
        first=started.response,
    )


def follow_all(
    rules: Rules,
    operations: Sequence[tuple[object, WaitSource]],
    *,
    until: Callable[[Snapshot], object] | None,
    timeout: float | None,
    wait: int,
    interval: float,
    largest_body: int,
    connections: int,
) -> Scheduler[Snapshot]:
    """Follow many operations over few connections.

    A server holds requests only if there is a connection for each operation: otherwise those that
    wait would keep the others from being polled.
    """
    held = wait if len(operations) <= connections else 0
    waits = [
        follow(
            rules,
            started,
            until=until,
            timeout=timeout,
            wait=held,
            interval=interval,
            largest_body=largest_body,
        )
        for _, started in operations
    ]
    numbered = enumerate(zip(operations, waits, strict=True))
    completed = [completing(number, source, steps) for number, ((source, _), steps) in numbered]
    return Scheduler(completed, rules.clock, connections)


class FollowedOperation:
    """An operation to follow, from the URL that the caller knows to its last document.

    Args:
        started: where the wait begins.
        clock: seconds, monotonic.
        until: whether a snapshot ends the wait; None leaves it to the server.
        largest_body: the most bytes of a body.

    Raises:
        ValueError: a URL is not an absolute one of HTTP or HTTPS.
    """

    accept = "application/json, */*;q=0.1"
    spacing = SHORTEST  # a document may differ each time, as one that contains the time does

    def __init__(
        self,
        started: WaitSource,
        clock: Callable[[], float],
        *,
        until: Callable[[Snapshot], object] | None,
        largest_body: int,
    ) -> None:
        self.url, _ = urldefrag(started.url)
        self.largest_body = largest_body
        self.tag: str | None = None
        self.seen: Snapshot | None = None
        self.is_last = False
        self._source = started.url
        self._origin = origin(started.trusted)
        self._clock = clock
        self._until = until
        self._method = started.method.upper()
        origin(self.url)
        self._target = self.url  # the URL to poll; after a temporary redirect `url` is another one
        self._named_at: float | None = None  # when the target was named, until it is found
        self._is_monitor = False  # whether the target is a status monitor of Azure
        self._result: str | None = None  # where the result of a monitored operation is
        self._has_said_when = False  # whether a response had `Retry-After`
        self._shown: bytes | None = None  # the body of the last new document
        self._redirects = 0

    @property
    def credentials(self) -> bool:
        """Whether the caller's credentials may be sent: only to the origin of the first URL."""
        return origin(self.url) == self._origin

    def begin_poll(self) -> None:
        """Return to the URL that is polled, after a temporary redirect."""
        self.url = self._target

    def expired(self) -> WaitTimeout:
        """Return the error to raise when the time is over."""
        last = None if self.seen is None else self.seen.label
        return WaitTimeout(shown(self._source), self.seen, last)

    def read(self, response: Response) -> Reading:
        """Take the response to a request of `url`, except 304.

        Raises:
            Refused: the response is a final error.
            Unusable: another attempt may have a better response.
            BadLocation: the response names a URL that is not followed, or names none.
        """
        is_redirect = response.status in _TO_ANOTHER_DOCUMENT | _ONCE
        if is_redirect and "location" in response.headers:
            return self._redirect(response)
        requested, self._redirects = self.url, 0
        if response.status == HTTPStatus.NOT_FOUND and self._may_still_appear():
            raise unusable(response, f"404: {shown(requested)} does not exist yet")
        snapshot = self._snapshot(response, requested)
        self._named_at = None
        self.tag = snapshot.etag
        method, self._method = self._method, "GET"
        monitor = snapshot.monitor
        if snapshot.status not in _NAMES_A_URL and method == "GET":
            monitor = None  # a status monitor may name itself
        says_when = "retry-after" in response.headers
        ended = False if monitor is not None else snapshot.has_ended
        # Without a field that says it, the lack of `Retry-After` is the end. A caller that has
        # a condition may be waiting at a server that never sends `Retry-After`, though.
        silent = ended is None and not says_when
        is_end = ended is True or (silent and (self._until is None or self._has_said_when))
        self._has_said_when |= says_when
        self.seen = snapshot = snapshot.ended(bool(ended) or silent)
        newer = snapshot.body not in {b"", self._shown}
        if newer:
            self._shown = snapshot.body
        if self._until is not None and snapshot.body and self._until(snapshot):
            self.is_last = True
        elif is_end:
            result = None if snapshot.error else snapshot.resource or self._result
            if result is not None and self._is_monitor:
                self._result = None
                self._poll(resolve(result, requested))
                return Reading(newer=newer, at_once=True)
            self.is_last = True
        else:
            self._choose_target(snapshot, monitor, method, requested)
        return Reading(newer=newer, at_once=method != "GET" and not says_when)

    def _snapshot(self, response: Response, requested: str) -> Snapshot:
        try:
            return read(
                response,
                lambda found: Snapshot.of(
                    self._source, requested, found, is_monitor=self._is_monitor
                ),
            )
        except Unusable as failure:
            if self._method == "GET":
                raise
            # The operation has not begun: only the caller can repeat the request.
            raise Unavailable(f"{self._method} {shown(requested)}: {failure.error}") from failure

    def _choose_target(
        self, snapshot: Snapshot, monitor: str | None, method: str, requested: str
    ) -> None:
        """Poll from now on what the response to a request names, or the same URL as before."""
        location = snapshot.headers.get("location")
        if monitor is not None:
            if location is not None:
                self._result = resolve(location, requested)
            elif method in _RESULT_IS_THERE:
                self._result = requested
            self._poll(resolve(monitor, requested), is_monitor=True)
        elif location is not None and snapshot.status in _NAMES_A_URL:
            self._poll(resolve(location, requested))
        elif method not in {"GET", "HEAD", *_RESULT_IS_THERE}:
            raise BadLocation(
                f"the response to {method} {shown(requested)} names no URL to poll: pass the URL"
                " of the operation"
            )

    def _poll(self, url: str, *, is_monitor: bool = False) -> None:
        if url == self._target and not (is_monitor and not self._is_monitor):
            return  # as Azure has it, each 202 may name the same URL again
        self.url = self._target = url
        self.tag = None
        self._named_at = self._clock()
        self._is_monitor = is_monitor

    def _redirect(self, response: Response) -> Reading:
        status, method = response.status, self._method
        self._redirects += 1
        if self._redirects > _MOST_REDIRECTS:
            raise BadLocation(f"{shown(self._source)} has redirected {_MOST_REDIRECTS} times")
        if status in _SAME_METHOD and method != "GET":
            raise BadLocation(f"{method} {shown(self.url)} was redirected, and had no effect yet")
        was_direct = self.url == self._target
        url = resolve(response.headers["location"], self.url)
        if method != "GET" or (status in _TO_ANOTHER_DOCUMENT and was_direct):
            self._method = "GET"
            self._poll(url)
        self.url = url
        return Reading(newer=False, at_once=True)

    def _may_still_appear(self) -> bool:
        return self._named_at is not None and self._clock() - self._named_at < APPEARS_WITHIN

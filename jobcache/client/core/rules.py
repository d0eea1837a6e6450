"""How to poll well, without I/O: what to send, how long to sleep, what to make of an answer.

`Rules.wait_for` and `Rules.call` are generators. They yield a step, are sent what came of it, and
return the job in the end:

    Ask     send this request; the reply is an `Response`, or a `TransportError` if there was none
    Pause   sleep; there is nothing to reply
    News    show the job to whoever is waiting; there is nothing to reply

So one piece of code decides for every way of doing the I/O: asynchronous, synchronous, and that of
the load test's users. What it decides:

- `If-None-Match` says what has been seen, always. It is also the floor: nothing older is taken.
- `Prefer: wait` lets the service hold the request until there is something newer. As long as it
  does, the next request follows at once. A service that has nothing new and does not hold is asked
  as often as `Retry-After` allows, never sooner, and up to a fifth later, so that clients spread.
- Whatever may pass (no connection, no answer in time, 408, 429, 5xx, an answer that is no job) is
  tried again, first soon, then ever later, at random times: "full jitter", from Marc Brooker,
  "Exponential Backoff And Jitter". What was seen stays seen. Any other answer is final.

An answer that was held too short is taken for one that was not held, or a service that answers at
once whatever it is asked would be asked without end.
"""

from __future__ import annotations

import logging
import math
import random
import re
import time
from collections.abc import Collection, Generator, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, TypeAlias

from jobcache.client.core.errors import Unavailable, WaitTimeout, refusal
from jobcache.client.jobs import Job

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger("jobcache.client")

LONGEST_WAIT = 60
"""Seconds for which the service holds a request at most."""

ANSWER_WITHIN = 10.0
"""Seconds for an answer, beyond those for which it may be held."""

JITTER = 0.2
"""What a pause is longer at most, as a part of it."""

FIRST_BACKOFF = 0.5
"""The most seconds before the first repetition."""

LONGEST_BACKOFF = 15.0
"""The most seconds before any repetition, unless the service asks for more."""

_UNTOLD = 2  # seconds between polls if the service does not say
_LEAST_PAUSE = 0.1  # seconds: `Retry-After: 0` is no leave to ask without end
_SLACK = 0.5  # seconds by which a request may be held shorter than was promised
_PASSING = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS})
_MOST_DIGITS = 9  # no number of seconds has more
_WAIT = re.compile(r'(?:^|[,;\s])wait\s*=\s*"?(\d{1,9})', re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Request:
    """Send a request.

    Attributes:
        method: such as `GET`.
        path: what follows the address of the service.
        headers: for this request; whoever sends it adds who is asking.
        body: to be sent as JSON; None for none.
        timeout: seconds after which no answer is to be expected any more.
    """

    method: str
    path: str
    headers: dict[str, str]
    body: dict[str, Any] | None
    timeout: float


@dataclass(frozen=True, slots=True)
class Sleep:
    """Sleep for so many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Update:
    """A newer version of the job."""

    job: Job


@dataclass(frozen=True, slots=True)
class Response:
    """What the service said. The names of `headers` are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class TransportError:
    """No answer, and why."""

    error: Exception


Step: TypeAlias = Request | Sleep | Update
Reply: TypeAlias = Response | TransportError | None
Steps: TypeAlias = Generator[Step, Reply, Job]


@dataclass(slots=True)
class Counts:
    """What a client has done so far; from several threads at once, about that.

    Attributes:
        requests: requests sent.
        failed: those without an answer, and those to be repeated for what was answered.
        unchanged: 304.
        held: answers that the service had held.
        news: newer versions.
        older: documents older than one seen before; they were not taken.
    """

    requests: int = 0
    failed: int = 0
    unchanged: int = 0
    held: int = 0
    news: int = 0
    older: int = 0


class _Again(Exception):  # noqa: N818 - says what to do
    """No answer that can be used, for now; `told` are the seconds of its `Retry-After`, if any."""

    def __init__(self, error: Exception, told: float | None = None) -> None:
        self.error = error
        self.told = told
        super().__init__(error, told)


@dataclass(slots=True, kw_only=True)
class _Wait:
    """What is asked for, and what has been seen so far."""

    job_id: int
    until: frozenset[str]
    deadline: float
    hold: int
    interval: float | None
    conditional: bool
    seen: Job | None = None
    holds: bool = True  # whether the service does, as far as it has shown
    failures: int = 0  # in a row
    error: Exception | None = None  # the last of them

    @property
    def may_be_held(self) -> bool:
        """True if the service can be asked to hold a request."""
        return self.hold > 0 and self.seen is not None and self.seen.etag is not None

    def poll(self, now: float) -> Request:
        """The next request."""
        left = self.deadline - now
        if left <= 0:
            raise WaitTimeout(self.job_id, self.seen) from self.error
        headers = {"Accept": "application/json"}
        limit = ANSWER_WITHIN
        if self.conditional and self.seen is not None and self.seen.etag is not None:
            headers["If-None-Match"] = self.seen.etag
        if self.may_be_held:
            # Whole seconds, and rather too many: what comes until the deadline counts.
            hold = min(self.hold, math.ceil(left)) if left < self.hold else self.hold
            headers["Prefer"] = f"wait={hold}"
            limit += hold
        return Request("GET", f"/api/v2/jobs/{self.job_id}", headers, None, min(limit, left))


class Rules:
    """The rules, for any number of jobs.

    Args:
        clock: seconds, from any beginning.
        chance: numbers from 0 to below 1.

    Attributes:
        counts: see `Counts`.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._clock = clock
        self._chance = chance
        self.counts = Counts()

    def wait_for(
        self,
        job_id: int,
        *,
        until: Collection[str] = (),
        timeout: float | None = None,
        wait: int = 25,
        interval: float | None = None,
        conditional: bool = True,
    ) -> Steps:
        """Follow a job until it is terminal.

        Args:
            job_id: which.
            until: statuses that end it, too.
            timeout: seconds for all of it, or None for as long as it takes.
            wait: seconds for which the service is asked to hold each request, 0 to 60; 0 is not to.
            interval: seconds between polls, give or take a tenth, whatever `Retry-After` says;
                None obeys that. For comparison: a service that is asked so is asked too often.
            conditional: False asks for the whole document each time, held by nobody. As above.

        Yields:
            What is to be done. `Update` has every newer version once, in order.

        Returns:
            The job as it was in the end.

        Raises:
            Refused: the service will not show this job.
            WaitTimeout: the time is up, or will be before the service may be asked again.
            ValueError: an argument is out of range.
        """
        _check(job_id, timeout, wait)
        return self._follow(
            _Wait(
                job_id=job_id,
                until=frozenset(until),
                deadline=self._deadline(timeout),
                hold=wait if conditional else 0,
                interval=interval,
                conditional=conditional,
            )
        )

    def _follow(self, wait: _Wait) -> Steps:
        while True:
            sent = self._clock()
            ask = wait.poll(sent)
            self.counts.requests += 1
            reply = yield ask
            try:
                job = self._read(reply, wait.job_id, wait.seen, ask.headers)
            except _Again as again:
                wait.failures += 1
                wait.error = again.error
                pause = self._after_failure(again, wait.failures)
            else:
                before, wait.seen = wait.seen, job
                wait.failures, wait.error = 0, None
                newer = before is None or job.version > before.version
                told = reply.headers if isinstance(reply, Response) else {}
                held = self._was_held(told, ask.headers, sent, newer=newer)
                if held or not newer:
                    wait.holds = held
                if newer:
                    self.counts.news += 1
                    yield Update(job)
                    if job.terminal or job.status in wait.until:
                        return job
                # What was newer already says nothing of whether the service would have held.
                at_once = held or (newer and wait.holds and wait.may_be_held)
                pause = 0.0 if at_once else self._until_next(told, sent, wait.interval)
            if pause and self._clock() + pause >= wait.deadline:
                raise WaitTimeout(wait.job_id, wait.seen) from wait.error
            if pause:
                yield Sleep(pause)

    def call(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        repeatable: bool,
        timeout: float = 30,
    ) -> Steps:
        """Send one request that a job answers.

        Args:
            method: such as `POST`.
            path: what follows the address of the service.
            body: to be sent as JSON; None for none.
            headers: for this request.
            repeatable: True if it may be sent again when there was no answer, or one that may pass.
            timeout: seconds for all of it.

        Yields:
            What is to be done.

        Returns:
            The job.

        Raises:
            Refused: the service has said no.
            Unavailable: there was no answer in time, or none that can be used.
        """
        deadline = self._deadline(timeout)
        failures = 0
        every = {"Accept": "application/json", **(headers or {})}
        while True:
            limit = min(ANSWER_WITHIN, deadline - self._clock())
            self.counts.requests += 1
            reply = yield Request(method, path, every, body, limit)
            try:
                return self._read(reply, None, None, every)
            except _Again as again:
                failures += 1
                pause = self._after_failure(again, failures)
                if not repeatable or self._clock() + pause >= deadline:
                    raise Unavailable(f"{method} {path}: {again.error!r}") from again.error
            yield Sleep(pause)

    def _read(
        self, reply: Reply, job_id: int | None, seen: Job | None, asked_with: Mapping[str, str]
    ) -> Job:
        """The job as the reply has it. Raises `Refused`, which is final, or `_Again`."""
        if not isinstance(reply, Response):
            raise _Again(reply.error if reply is not None else Unavailable("no reply"))
        if reply.status == HTTPStatus.NOT_MODIFIED and "If-None-Match" in asked_with and seen:
            self.counts.unchanged += 1
            return seen
        job = _job(reply, job_id)
        if seen is not None and job.version < seen.version:
            self.counts.older += 1
            raise _again(reply, f"version {job.version} after {seen.version}")
        return job

    def _after_failure(self, again: _Again, failures: int) -> float:
        """Seconds until the next try, after so many failures in a row."""
        self.counts.failed += 1
        if failures == 2:  # noqa: PLR2004 - the first is often a kept connection that was closed
            logger.warning("no usable answer, trying on: %r", again.error)
        most = min(LONGEST_BACKOFF, FIRST_BACKOFF * 2.0 ** min(failures - 1, 30))
        told = 0.0 if again.told is None else self._later(again.told)
        return max(self._chance() * most, told)

    def _was_held(
        self, told: Mapping[str, str], asked_with: Mapping[str, str], sent: float, *, newer: bool
    ) -> bool:
        """True if the service holds requests, and so may be asked again at once."""
        asked = _WAIT.search(asked_with.get("Prefer", ""))
        applied = _WAIT.search(told.get("preference-applied", ""))
        if asked is None or applied is None:
            return False
        promised = min(int(asked[1]), int(applied[1])) - _SLACK
        if not newer and not 0 < promised <= self._clock() - sent:
            return False
        self.counts.held += 1
        return True

    def _until_next(self, headers: Mapping[str, str], sent: float, interval: float | None) -> float:
        """Seconds until the next poll, after an answer that was not held."""
        if interval is not None:
            pause = interval * (1 + JITTER * (self._chance() - 0.5))
            return max(0.0, sent + pause - self._clock())
        told = _retry_after(headers)
        return self._later(_UNTOLD if told is None else told)

    def _later(self, seconds: float) -> float:
        return max(_LEAST_PAUSE, seconds * (1 + JITTER * self._chance()))

    def _deadline(self, timeout: float | None) -> float:
        return math.inf if timeout is None else self._clock() + timeout


def _job(answer: Response, job_id: int | None) -> Job:
    """The job that an answer is. Raises `Refused` or `_Again` if it is none."""
    passing = answer.status in _PASSING or answer.status >= HTTPStatus.INTERNAL_SERVER_ERROR
    if passing or answer.status == HTTPStatus.NOT_MODIFIED:  # to a request without a condition
        raise _again(answer, str(refusal(answer.status, answer.body)))
    if not HTTPStatus.OK <= answer.status < HTTPStatus.MULTIPLE_CHOICES:
        raise refusal(answer.status, answer.body)
    try:
        job = Job.parse(answer.body, answer.headers.get("etag"))
    except ValueError as error:
        raise _again(answer, str(error)) from error
    if job_id not in {None, job.id}:
        raise _again(answer, f"the answer is job {job.id}")
    return job


def _again(answer: Response, reason: str) -> _Again:
    return _Again(Unavailable(reason), _retry_after(answer.headers))


def _check(job_id: int, timeout: float | None, wait: int) -> None:
    if job_id < 1:
        raise ValueError(f"no job has the number {job_id}")
    if timeout is not None and not timeout > 0:
        raise ValueError(f"timeout must be above 0 seconds, or None, not {timeout!r}")
    if not 0 <= wait <= LONGEST_WAIT:
        raise ValueError(f"wait must be 0 to {LONGEST_WAIT} seconds, not {wait!r}")


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """`Retry-After` (RFC 9110, 10.2.3) in seconds; None if there is none that can be read.

    A date is compared with the `Date` of the same answer, so that no two clocks have to agree.
    """
    told = headers.get("retry-after", "").strip()
    if told.isascii() and told.isdigit():
        return float(told[:_MOST_DIGITS]) if len(told) <= _MOST_DIGITS else 10.0**_MOST_DIGITS
    try:
        moments = [parsedate_to_datetime(text) for text in (told, headers.get("date", ""))]
        return max(0.0, (moments[0] - moments[1]).total_seconds())
    except (OverflowError, TypeError, ValueError):
        return None

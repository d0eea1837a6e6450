"""Checks the responses to polls and writes against everything that was known before.

Pure and synchronous code: it receives requests and responses and returns the findings. It knows
neither HTTP nor faults. A client reports each request before it sends it, and the checker records
what is known at that moment. No response may be older than that.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


class Kind(StrEnum):
    """A kind of wrong response."""

    STALE_ACKNOWLEDGED = "older than acknowledged"
    """A writer had been told of a newer version before the request began."""
    STALE_SEEN = "older than seen"
    """An answer with a newer version had arrived before the request began."""
    BACKWARD = "backward"
    """This very client had been given a newer version."""
    MIN_VERSION = "below its ETag"
    """The client said in `If-None-Match` that it had a newer version."""
    TERMINAL = "terminal undone"
    """A job that had ended is shown to go on."""
    BYTES = "other bytes"
    """One version, two bodies: so a version given twice, too."""
    WRONG = "wrong document"
    """Of another job, or of another version than its ETag says, or unreadable."""
    MISSING = "missing"
    """404 for a job that exists."""
    ORDER = "not newer"
    """A change was acknowledged with a version that was known before it began."""
    LOST = "lost"
    """In the end the database has less than was acknowledged or shown."""
    DIFFERS = "differs in the end"
    """Nothing changes any more, and a process shows something else than the database has."""
    REFUSED = "refused"
    """An answer that is neither the document nor what the fault allows instead."""
    UNANSWERED = "unanswered"
    """No answer, of a process that was running."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One defect of one response.

    Attributes:
        kind: the kind of defect.
        job_id: the job.
        detail: a description.
        age: how long before the request began something newer was known, in seconds; None where
            no delay could explain it.
    """

    kind: Kind
    job_id: int
    detail: str
    age: float | None = None


def is_excused(finding: Finding, bound: float | None) -> bool:
    """Whether a promise that staleness ends after `bound` seconds (None: there is none) covers it.

    The age is counted up to the beginning of the request, so it is never overstated.
    """
    return bound is not None and finding.age is not None and finding.age <= bound


@dataclass(frozen=True, slots=True)
class PendingRequest:
    """A request, and what was known about its job when it was sent.

    Attributes:
        client: the client that sent it.
        job_id: the job.
        at: when it was sent.
        acknowledged: the highest version that was acknowledged to a writer; 0 if none.
        seen: the highest version in any response that had arrived.
        own: the highest version that this client had received.
        tag: the version in its `If-None-Match`; 0 without one.
        ended: the version with which the job had ended; 0 if it had not.
    """

    client: str
    job_id: int
    at: float
    acknowledged: int = 0
    seen: int = 0
    own: int = 0
    tag: int = 0
    ended: int = 0

    @property
    def known(self) -> int:
        """Return the highest known version; 0 if the job is unknown."""
        return max(self.acknowledged, self.seen)


@dataclass(slots=True)
class _Job:
    acknowledged: int = 0
    seen: int = 0
    ended: int = 0
    # Each version that was the highest known, and when it became that; both grow.
    versions: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    bodies: dict[int, int] = field(default_factory=dict)  # hashes, by version

    def learn(self, version: int, now: float) -> None:
        if not self.versions or version > self.versions[-1]:
            self.versions.append(version)
            self.times.append(now)


class Ledger:
    """Everything that is known about all jobs.

    Args:
        clock: monotonic time in seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._jobs: dict[int, _Job] = {}
        self._own: dict[tuple[str, int], int] = {}

    @property
    def job_ids(self) -> list[int]:
        """Return the ids of all known jobs."""
        return list(self._jobs)

    def known(self, job_id: int) -> int:
        """Return the highest known version of a job; 0 if it is unknown."""
        job = self._jobs.get(job_id)
        return 0 if job is None else max(job.acknowledged, job.seen)

    def begin(self, client: str, job_id: int, tag: int = 0) -> PendingRequest:
        """Record a request about a job; call this right before it is sent."""
        now = self._clock()
        job = self._jobs.get(job_id)
        if job is None:
            return PendingRequest(client, job_id, now, tag=tag)
        own = self._own.get((client, job_id), 0)
        return PendingRequest(client, job_id, now, job.acknowledged, job.seen, own, tag, job.ended)

    def begin_unknown(self, client: str, job_id: int) -> PendingRequest:
        """Record a request whose job only the response names: a creation, a list."""
        return PendingRequest(client, job_id, self._clock())

    def answered(self, pending: PendingRequest, version: int, body: bytes | None) -> list[Finding]:
        """Check the response to a read.

        Args:
            pending: what `begin` returned.
            version: of the answer, by its ETag.
            body: its bytes; None if it had none (304).
        """
        job = self._jobs.setdefault(pending.job_id, _Job())
        findings = self._judge_bytes(pending, job, version, body)
        if any(finding.kind is Kind.WRONG for finding in findings):
            return findings  # and says nothing of this job
        findings += self._judge_version(pending, job, version)
        job.seen = max(job.seen, version)
        self._note(pending, job, version)
        return findings

    def acknowledged(
        self, pending: PendingRequest, version: int, body: bytes, *, changes: bool
    ) -> list[Finding]:
        """Check the response to a write.

        Args:
            pending: what `begin` returned.
            version: of the answer.
            body: its bytes.
            changes: True if it cannot have been a repetition that changed nothing.
        """
        job = self._jobs.setdefault(pending.job_id, _Job())
        findings = self._judge_bytes(pending, job, version, body)
        if any(finding.kind is Kind.WRONG for finding in findings):
            return findings
        findings += self._judge_version(pending, job, version)
        if changes and version == pending.known:
            detail = f"a change became version {version}, which was known before"
            findings.append(Finding(Kind.ORDER, pending.job_id, detail))
        job.acknowledged = max(job.acknowledged, version)
        self._note(pending, job, version)
        return findings

    def not_found(self, pending: PendingRequest) -> list[Finding]:
        """Check a 404 response."""
        if pending.known == 0:
            return []
        detail = f"404 where version {pending.known} was known"
        return [Finding(Kind.MISSING, pending.job_id, detail)]

    def compare(self, job_id: int, version: int | None, *, terminal: bool) -> list[Finding]:
        """Compare the final version of a job in the database; None if the job does not exist."""
        job = self._jobs[job_id]
        known = max(job.acknowledged, job.seen)
        if version is None or version < known:
            detail = f"the database has version {version}; {known} was given out"
            return [Finding(Kind.LOST, job_id, detail)]
        if job.ended and not terminal:
            detail = f"ended with version {job.ended}, and goes on in the database"
            return [Finding(Kind.TERMINAL, job_id, detail)]
        return []

    def _judge_version(self, pending: PendingRequest, job: _Job, version: int) -> list[Finding]:
        if version >= max(pending.known, pending.own, pending.tag) and not job.ended:
            return []  # nearly always
        findings = []

        def hidden(kind: Kind, newer: int) -> None:
            since = job.times[bisect_right(job.versions, version)]
            detail = f"version {version} where {newer} was known"
            findings.append(Finding(kind, pending.job_id, detail, max(0.0, pending.at - since)))

        if version < pending.acknowledged:
            hidden(Kind.STALE_ACKNOWLEDGED, pending.acknowledged)
        if version < pending.seen:
            hidden(Kind.STALE_SEEN, pending.seen)
        if version < pending.own:
            hidden(Kind.BACKWARD, pending.own)
        if version < pending.tag:
            detail = f"version {version} to a client that said it has {pending.tag}"
            findings.append(Finding(Kind.MIN_VERSION, pending.job_id, detail))
        if pending.ended and version < pending.ended:
            hidden(Kind.TERMINAL, pending.ended)
        if job.ended and version > job.ended:
            detail = f"version {version} of a job that ended with {job.ended}"
            findings.append(Finding(Kind.TERMINAL, pending.job_id, detail))
        return findings

    def _judge_bytes(
        self, pending: PendingRequest, job: _Job, version: int, body: bytes | None
    ) -> list[Finding]:
        if body is None:
            if version == pending.tag:
                return []
            detail = f"304 with version {version} to a client that has {pending.tag}"
            return [Finding(Kind.WRONG, pending.job_id, detail)]
        digest = hash(body)
        known = job.bodies.get(version)
        if known is None:
            return self._judge_document(pending, job, version, body)
        if known != digest:
            detail = f"version {version} had another body before: {body[:400]!r}"
            return [Finding(Kind.BYTES, pending.job_id, detail)]
        return []

    def _judge_document(
        self, pending: PendingRequest, job: _Job, version: int, body: bytes
    ) -> list[Finding]:
        try:
            document: Any = json.loads(body)
            claimed = document["id"], document["version"]
            terminal = bool(document["terminal"])
        except (ValueError, KeyError, TypeError):
            detail = f"not a job: {body[:200]!r}"
            return [Finding(Kind.WRONG, pending.job_id, detail)]
        if claimed != (pending.job_id, version):
            detail = f"job {claimed[0]} version {claimed[1]}, with the ETag of {version}"
            return [Finding(Kind.WRONG, pending.job_id, detail)]
        job.bodies[version] = hash(body)
        if terminal and (job.ended == 0 or version < job.ended):
            job.ended = version
            if job.versions and job.versions[-1] > version:
                detail = f"ended with version {version}, and {job.versions[-1]} was known"
                return [Finding(Kind.TERMINAL, pending.job_id, detail)]
        return []

    def _note(self, pending: PendingRequest, job: _Job, version: int) -> None:
        job.learn(version, self._clock())
        if version > pending.own:
            own = pending.client, pending.job_id
            self._own[own] = max(self._own.get(own, 0), version)

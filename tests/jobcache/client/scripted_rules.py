"""The rules for jobs, run by a script in a time of its own."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from jobcache.client import Job
from jobcache.client.core.messages import (
    Reply,
    Request,
    Response,
    Sleep,
    Steps,
    TransportError,
    Update,
)
from jobcache.client.core.rules import Rules
from jobcache.client.jobs import wait_for


@dataclass
class Script:
    """Runs the rules in a time of its own, with replies from a list: (seconds it took, reply)."""

    replies: list[tuple[float, Reply]]
    chance: float = 0.0
    now: float = 1000.0
    requests: list[Request] = field(default_factory=list)
    pauses: list[float] = field(default_factory=list)
    updates: list[Job] = field(default_factory=list)
    newest_at: list[tuple[Request, int]] = field(default_factory=list)  # version at each request
    paused_after: list[tuple[float, float]] = field(default_factory=list)  # and `Retry-After`

    def __post_init__(self) -> None:
        self.rules = Rules(clock=lambda: self.now, random=lambda: self.chance)

    def wait(self, **options: Any) -> Job:
        return self.run(wait_for(self.rules, 7, **options))

    def run(self, steps: Steps[Job]) -> Job:
        replies, reply, retry_after = iter(self.replies), None, 0.0
        while True:
            try:
                step = steps.send(reply)
            except StopIteration as end:
                job: Job = end.value
                return job
            reply = None
            match step:
                case Request():
                    self.requests.append(step)
                    self.newest_at.append((step, self.versions[-1] if self.updates else 0))
                    took, reply = next(replies)
                    if took > step.timeout:
                        took, reply = step.timeout, TransportError(TimeoutError())
                    self.now += took
                    headers = reply.headers if isinstance(reply, Response) else {}
                    seconds = headers.get("retry-after", "")
                    retry_after = float(seconds) if seconds.isdigit() else 0.0
                case Sleep(seconds):
                    self.pauses.append(seconds)
                    self.paused_after.append((seconds, retry_after))
                    self.now += seconds
                case Update(job):
                    self.updates.append(job)

    def headers(self, name: str) -> list[str | None]:
        return [request.headers.get(name) for request in self.requests]

    @property
    def versions(self) -> list[int]:
        return [job.version for job in self.updates]

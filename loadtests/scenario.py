"""The description of a scenario: who polls what, and how."""

from __future__ import annotations

from dataclasses import dataclass, replace

_COMPRESSION = 15
"""How many times shorter jobs and intervals of a demonstration are."""


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """What clients do until their jobs are done. Times are in seconds.

    Attributes:
        name: a short name, which is also that of its file.
        description: a sentence for the report.
        users: how many clients there are.
        mode: how they ask: `plain` requests all of a job, `etag` what is new, `wait` what is new
            once there is something.
        interval: between the polls of a client, unless it waits.
        shared_jobs: how many jobs they all poll; 0 gives each client a job of its own.
        job_seconds: how long a job takes.
        updates: how many progress reports a job makes.
        driver: the module of `loadtests.drivers` that imitates the clients; empty for Locust.
        redis_hangs_after: after how many seconds of polls Redis stops to answer, if the backend
            uses it; 0 for never.
        redis_hangs_for: for how long.
        in_demonstration: whether `--quick` includes it.
    """

    name: str
    description: str
    users: int
    mode: str = "plain"
    interval: float = 3.0
    shared_jobs: int = 0
    job_seconds: float = 120.0
    updates: int = 20
    driver: str = ""
    redis_hangs_after: float = 0.0
    redis_hangs_for: float = 0.0
    in_demonstration: bool = False

    def compressed(self) -> Scenario:
        """Return the scenario with shorter jobs and intervals, and as many polls for each job."""
        return replace(
            self,
            interval=self.interval / _COMPRESSION,
            job_seconds=self.job_seconds / _COMPRESSION,
            redis_hangs_after=self.redis_hangs_after / _COMPRESSION,
            redis_hangs_for=self.redis_hangs_for / _COMPRESSION,
        )

    def settings(self) -> dict[str, str]:
        """Return the settings as text, for the report."""
        jobs = f"{self.shared_jobs} shared" if self.shared_jobs else "one for each client"
        after, lasts = self.redis_hangs_after, self.redis_hangs_for
        fault = {"Redis hangs": f"after {after:.3g} s, for {lasts:.3g} s"} if after else {}
        return {
            "clients": str(self.users),
            "polls": "held until a change"
            if self.mode == "wait"
            else f"every {self.interval:.3g} s",
            "mode": self.mode,
            "jobs": f"{jobs}, {self.job_seconds:.3g} s long, with {self.updates} updates",
            **fault,
        }

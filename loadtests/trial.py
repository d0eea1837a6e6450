"""One run: a service with one backend, and users that poll it until their jobs are done."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.devservers import RedisServer
from benchmarks.backends import NEEDS_REDIS
from benchmarks.process import Process
from benchmarks.service import Service
from loadtests.pollers.rows import COUNTERS

if TYPE_CHECKING:
    from app.devservers import PostgresServer

SCENARIOS = {"own": 0, "shared": 1}
"""How many jobs the users of each scenario share."""

_SPARE = 60.0  # seconds beyond a job's for starting, agreeing to storyboards, and the last polls
_STOP = 30.0  # seconds for Locust to start, and to end once its time is up


class LocustFailed(Exception):  # noqa: N818 - says what is the matter
    """Locust ended without a report; the message ends with its last output."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The options that all runs of a command share.

    Attributes:
        scenario: one of `SCENARIOS`.
        seconds: how long a job takes.
        updates: how many progress reports it makes.
        interval: seconds between a user's polls, in those of `POLL_MODES` where they are paced.
    """

    scenario: str
    seconds: float
    updates: int
    interval: float


def run(
    plan: Plan, mode: str, backend: str, users: int, postgres: PostgresServer | None
) -> dict[str, Any]:
    """Run it. Returns what `loadtests.table` shows as a row.

    Args:
        plan: what to do.
        mode: one of `POLL_MODES`.
        backend: one of `benchmarks.backends.NEEDS_REDIS`.
        users: how many there are; all begin at once.
        postgres: where the jobs are, in a database of this run's own; None for SQLite.

    Raises:
        ServiceFailed: the service did not start, or could not be asked for its statistics.
        LocustFailed: there is no report.
    """
    settings = {
        "JOBCACHE_BACKEND": backend,
        "JOBCACHE_RENDERER": "simulated",
        "JOBCACHE_SIMULATED_SECONDS": str(plan.seconds),
        "JOBCACHE_SIMULATED_UPDATES": str(plan.updates),
    }
    with ExitStack() as stack:
        if NEEDS_REDIS[backend]:
            settings["REDIS_URL"] = stack.enter_context(RedisServer()).url
        if postgres is not None:
            name = f"{backend}-{mode}-{users}"
            postgres.create_database(name)
            stack.callback(postgres.drop_database, name)
            settings["DATABASE_URL"] = postgres.url(name)
        service = stack.enter_context(Service(settings))
        service.wait_until_ready()
        before = service.stats()
        seen = _poll(plan, mode, users, service.url)
        after = service.stats()
    return {"users": users, "backend": backend, "mode": mode, **seen, **_difference(before, after)}


def _poll(plan: Plan, mode: str, users: int, url: str) -> dict[str, Any]:
    limit = plan.seconds + 2 * plan.interval + _SPARE
    with tempfile.TemporaryDirectory(prefix="jobcache-") as place:
        report = Path(place) / "report.json"
        command = [
            *(sys.executable, "-m", "locust", "-f", str(Path(__file__).with_name("locustfile.py"))),
            *("--headless", "--only-summary", "--host", url, "--report", str(report)),
            *("--users", str(users), "--spawn-rate", str(users), "--run-time", f"{limit:.0f}s"),
            *("--poll-mode", mode, "--poll-interval", str(plan.interval)),
            *("--shared-jobs", str(SCENARIOS[plan.scenario]), "--jobs-per-user", "1"),
            *("--renderer", "service"),
        ]
        kept = {name: text for name, text in os.environ.items() if not name.startswith("LOCUST_")}
        with Process(command, kept) as locust:
            with contextlib.suppress(subprocess.TimeoutExpired):
                locust.wait(limit + _STOP)
            if not report.exists():
                raise LocustFailed(f"there is no report:\n{locust.log_tail()}")
        seen: dict[str, Any] = json.loads(report.read_text("utf-8"))
        return seen


def _difference(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    def grown(*path: str) -> int:
        values = []
        for found in (before, after):
            value: Any = found
            for name in path:
                value = value.get(name, 0)
            values.append(int(value))
        return values[1] - values[0]

    purposes = {name: grown("database", "purposes", name) for name in after["database"]["purposes"]}
    return {
        "reads": grown("statistics", "total_requests"),
        **{name: grown("statistics", name) for name in COUNTERS},
        "cache_errors": grown("statistics", "errors"),
        "selects_by_polls": purposes.get("load", 0),
        "statements": sum(purposes.values()),
        "purposes": purposes,
    }
